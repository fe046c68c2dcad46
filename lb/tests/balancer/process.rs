//! `stoker-lb` as a process: what it says of its settings, its ports, and its end.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, ChildStderr, Command, Output, Stdio};

const PROGRAM: &str = env!("CARGO_BIN_EXE_stoker-lb");

/// Without anything of ours from outside.
fn program() -> Command {
    let mut command = Command::new(PROGRAM);
    for (name, _) in
        std::env::vars().filter(|(name, _)| name.starts_with("STOKER_") || name.starts_with("OTEL_"))
    {
        command.env_remove(name);
    }
    command
}

fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    program().args(arguments).envs(variables.iter().copied()).output().expect("it runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn settings_and_where_they_come_from() {
    let directory = std::env::temp_dir();
    let file = directory.join(format!("stoker-lb-{}.yaml", std::process::id()));
    std::fs::write(&file, "max_calls: 5\nqueue:\n  per_function: 7\netcd:\n  - http://a:1\n  - http://b:2\n")
        .expect("a file");
    let shown = run(
        &["--config", file.to_str().expect("a path"), "--max-wait", "3s", "--print-config"],
        &[
            ("STOKER_NAME", "here"),
            ("STOKER_ETCD_USER", "u"),
            ("STOKER_ETCD_PASSWORD", "sesame"),
            ("STOKER_MAX_CALLS", "6"),
            ("STOKER_MAX_CONNECTIONS", "8"),
            ("STOKER_SEND_TIMEOUT", "5s"),
        ],
    );
    std::fs::remove_file(&file).expect("it is there");
    assert!(shown.status.success(), "{}", text(&shown.stderr));
    let shown = text(&shown.stdout).replace(&file.display().to_string(), "FILE");
    assert!(!shown.contains("sesame"), "{shown}");
    let ours: Vec<_> = shown.lines().take_while(|line| !line.starts_with("log:")).collect();
    assert_eq!(ours.join("\n"), include_str!("settings.golden").trim_end(), "{shown}");
}

#[test]
fn every_mistake_at_once() {
    let wrong = run(
        &["--listen", "127.0.0.1:80", "--admin-listen=127.0.0.1:80", "--max-wait", "3", "--listn", "x"],
        &[("STOKER_ETCD", "ftp://x"), ("STOKER_QUEUE_TOTAL", "0")],
    );
    assert_eq!(wrong.status.code(), Some(2));
    let said = text(&wrong.stderr);
    for part in [
        "variable STOKER_ETCD: `etcd`",
        "variable STOKER_QUEUE_TOTAL: `queue.total`",
        "flag --max-wait: `max_wait`: `3` has no unit",
        "did you mean `--listen`?",
    ] {
        assert!(said.contains(part), "{part} in {said}");
    }
    let both = run(
        &[
            "--listen",
            "127.0.0.1:80",
            "--admin-listen=127.0.0.1:80",
            "--etcd",
            "http://x:1",
            "--etcd-user",
            "u",
            "--max-connections=9999999999",
            "--send-timeout=0s",
        ],
        &[],
    );
    let said = text(&both.stderr);
    assert!(
        said.contains("--max-connections: `max_connections`: 9999999999 connections take twice"),
        "{said}"
    );
    assert!(said.contains("flag --send-timeout: `send_timeout`: is less than a second"), "{said}");
    assert!(said.contains("flag --admin-listen: `admin_listen`: 127.0.0.1:80 is taken"), "{said}");
    assert!(said.contains("flag --etcd-user: `etcd_user`: has no password"), "{said}");
    assert!(text(&run(&[], &[]).stderr).contains("`etcd` is missing"));
}

#[test]
fn ports_for_others_take_tls_and_an_access_file() {
    let start = |arguments: &[&str]| {
        let fixed = ["--etcd", "http://127.0.0.1:1", "--listen", "0.0.0.0:1", "--http-listen", "[::]:2"];
        run(&[&fixed[..], arguments].concat(), &[])
    };
    let bare = start(&["--admin-listen", "10.0.0.1:3"]);
    let said = text(&bare.stderr);
    assert_eq!(bare.status.code(), Some(2), "{said}");
    for key in ["--listen: `listen`", "--http-listen: `http_listen`", "--admin-listen: `admin_listen`"] {
        let line = |part: &str| said.lines().any(|line| line.contains(key) && line.contains(part));
        assert!(line("there is no TLS: give `tls.certificate`"), "{key} in {said}");
        assert_eq!(
            line("nobody is asked who they are: give `access`"),
            !key.contains("admin"),
            "{key} in {said}"
        );
    }
    let half =
        text(&start(&["--tls-certificate", "/nowhere/x.pem", "--access", "/nowhere/access.yaml"]).stderr);
    assert!(half.contains("`tls.certificate`: has no key: give `tls.key` too"), "{half}");
    assert!(half.contains("`access`: /nowhere/access.yaml: cannot be read: No such file"), "{half}");
    let alone = ["--tls-certificate", "/nowhere/x.pem", "--tls-key", "/nowhere/x.key"];
    assert!(text(&start(&alone).stderr).contains("give `tls.ca` too"));
}

/// A balancer whose etcd is not there.
struct Running {
    child: Child,
    log: BufReader<ChildStderr>,
    serving: serde_json::Value,
}

impl Running {
    fn start(etcd: &str) -> Self {
        let mut running = Self::begin(etcd, &[]);
        running.serving = running.says("serving");
        running
    }

    /// Started, however far it has come.
    fn begin(etcd: &str, arguments: &[&str]) -> Self {
        let mut child = program()
            .args(["--etcd", etcd, "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"])
            .args(["--admin-listen", "127.0.0.1:0", "--drain-grace", "1h", "--name", "lb-test"])
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let log = BufReader::new(child.stderr.take().expect("it is piped"));
        Self { child, log, serving: serde_json::Value::Null }
    }

    /// The next line of its log with this message.
    fn says(&mut self, message: &str) -> serde_json::Value {
        loop {
            let mut line = String::new();
            assert!(self.log.read_line(&mut line).expect("it writes") > 0, "it ended without `{message}`");
            let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
            if line["message"] == message {
                return line;
            }
        }
    }

    fn address(&self, port: &str) -> &str {
        self.serving[port].as_str().expect("an address")
    }

    fn page(&self, path: &str) -> String {
        let mut socket = TcpStream::connect(self.address("admin")).expect("it listens");
        write!(socket, "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").expect("it reads");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).expect("it answers");
        answer
    }

    fn signal(&self, name: &str) {
        let done = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status();
        assert!(done.expect("kill runs").success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// An address of etcd at which nothing is.
fn nowhere() -> String {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    format!("http://{}", gone.expect("a port"))
}

/// SIGHUP while it is being started, and SIGUSR2, which upgrades runners.
#[test]
fn signals_that_do_not_ask_it_to_end_do_not_end_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let settings = directory.path().join("lb.yaml");
    let settings = settings.to_str().expect("a path");
    assert!(Command::new("mkfifo").arg(settings).status().expect("mkfifo runs").success());
    let mut balancer = Running::begin(&nowhere(), &["--config", settings]);
    // Opens with the other end: it reads its settings, and waits for them.
    let mut told = std::fs::File::options().write(true).open(settings).expect("it reads its settings");
    // For whoever reads them again, which would wait for another to write.
    std::fs::remove_file(settings).and_then(|()| std::fs::write(settings, "max_calls: 5\n")).expect("a file");
    balancer.signal("HUP");
    balancer.signal("USR2");
    writeln!(told, "max_calls: 5").expect("it still reads them");
    // It reads them once more if it hears of the SIGHUP later: nobody would be at the other end.
    std::fs::remove_file(settings).expect("it is there");
    std::fs::write(settings, "max_calls: 5\n").expect("a file");
    drop(told);
    balancer.says("serving");
    balancer.signal("USR2");
    let said = balancer.says("SIGUSR2 is for runners: this program is not upgraded in place");
    assert!(
        said["instead"].as_str().is_some_and(|instead| instead.contains("start another balancer")),
        "{said}"
    );
    balancer.signal("TERM");
    assert_eq!(balancer.child.wait().expect("it ends").code(), Some(0));
}

#[test]
fn it_serves_its_pages_without_etcd_and_ends_when_told() {
    let mut balancer = Running::start(&nowhere());
    assert!(balancer.page("/livez").starts_with("HTTP/1.1 200"));
    let ready = balancer.page("/readyz");
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("waiting for the first view"), "{ready}");
    let metrics = balancer.page("/metrics");
    for name in [
        "stoker_lb_calls_total{door=\"http\",code=\"OK\"} 0",
        "stoker_lb_call_duration_seconds_bucket{door=\"invoke\",le=\"0.0001\"} 0",
        "stoker_lb_placements_total{why=\"warm\"} 0",
        "stoker_lb_placement_tries_count 0",
        "stoker_lb_queue_oldest_seconds 0",
        "stoker_etcd_interrupted{part=\"fleet\"}",
        "stoker_etcd_last_answer_timestamp_seconds 0",
        "stoker_lb_calls_in_flight 0",
        "stoker_lb_queue_length 0",
        "stoker_lb_queue_wait_seconds_count 0",
        "stoker_lb_offers_total{result=\"refused_full\"} 0",
        "stoker_lb_runners{state=\"ready\"} 0",
        "stoker_lb_sessions 0",
    ] {
        assert!(metrics.contains(name), "{name} in {metrics}");
    }
    let config = balancer.page("/config");
    assert!(config.contains("\"drain_grace\"") && config.contains("lb-test"), "{config}");
    balancer.signal("TERM");
    balancer.says("stopping");
    assert_eq!(balancer.child.wait().expect("it ends").code(), Some(0));
}

#[test]
fn a_second_signal_leaves_at_once() {
    let mut balancer = Running::start(&nowhere());
    // A request that never comes to its end keeps it for a moment.
    let mut half = TcpStream::connect(balancer.address("http")).expect("it listens");
    half.write_all(b"POST /invoke/a/f HTTP/1.1\r\nhost:").expect("it reads");
    // Its page is served after the request was accepted.
    balancer.page("/livez");
    balancer.signal("INT");
    balancer.says("stopping");
    balancer.signal("TERM");
    assert_eq!(balancer.child.wait().expect("it ends").code(), Some(130));
}
