//! A whole process as a server makes it: settings, log, traces, metrics, admin port, signals, end. The process is this test
//! program, started again for the test `child`.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use stoker_runtime::admin::{self, Admin, Pages};
use stoker_runtime::config::kind::TRUTH;
use stoker_runtime::config::{Key, Outcome, Program};
use stoker_runtime::lifecycle::{self, Ending, Readiness, Signals};
use stoker_runtime::logs::{self, Logs};
use stoker_runtime::metrics::Metrics;
use stoker_runtime::telemetry::{self, Identity, Telemetry};

static LISTEN: Key<SocketAddr> = admin::listen("127.0.0.1:0");
static HANG: Key<bool> = Key::new("test.hang", TRUTH, "false", "The drain never ends");
static BLOCK: Key<bool> = Key::new("test.block", TRUTH, "false", "The drain blocks its thread");
static PROGRAM: Program = Program {
    name: "stoker-test",
    version: "1.2.3",
    about: "A process for tests.",
    examples: "  stoker-test",
    tables: &[&[&LISTEN, &HANG, &BLOCK], logs::KEYS, telemetry::KEYS],
};

#[test]
#[ignore = "a process that the other tests start"]
fn child() {
    let Ok(Outcome::Run(settings)) = PROGRAM.load([], std::env::vars_os()) else { panic!("wrong settings") };
    let logs = Logs::start(&settings).expect("the log");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let signals = Signals::listen().expect("signals");
        let identity = Identity { service: "stoker-test", version: "1.2.3", instance: "one".to_owned() };
        let telemetry = Telemetry::start(&telemetry::Config::new(&settings, &identity)).expect("telemetry");
        let (metrics, readiness) = (Metrics::default(), Readiness::new("starting"));
        metrics.describe_process("stoker-test", "1.2.3");
        logs.measure(&metrics);
        telemetry.measure(&metrics);
        let pages = Pages::new(readiness.clone(), metrics, &settings);
        let admin = Admin::start(settings.get(&LISTEN), pages, None).await.expect("the admin port");
        readiness.ready();
        tracing::info!(admin = %admin.address(), "serving");
        let why = signals.stop_requested().await;
        readiness.stopping(why);
        tracing::info!(why, "draining");
        let limit = if settings.get(&BLOCK) { Duration::ZERO } else { Duration::from_secs(600) };
        let ending = Ending::begin(limit).expect("the end begins");
        if settings.get(&BLOCK) {
            std::thread::park();
        }
        if settings.get(&HANG) {
            ending.phase("calls", Duration::from_secs(600), std::future::pending::<()>()).await;
        }
        ending.phase("spans", Duration::from_secs(60), telemetry.stop(Duration::from_secs(60))).await;
        ending.phase("admin port", Duration::from_secs(60), admin.stop(Duration::from_secs(60))).await;
    });
    logs.stop(Duration::from_secs(60));
}

/// The process, and what it logs.
struct Process {
    child: Child,
    log: BufReader<ChildStderr>,
    admin: String,
}

impl Process {
    fn start(variables: &[(&str, &str)]) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["child", "--exact", "--ignored", "--nocapture"])
            .envs(variables.iter().copied())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let log = BufReader::new(child.stderr.take().expect("it is piped"));
        let mut process = Self { child, log, admin: String::new() };
        process.admin = process.until("serving")["admin"].as_str().expect("an address").to_owned();
        process
    }

    /// The first line of the log with this message.
    fn until(&mut self, message: &str) -> serde_json::Value {
        for line in self.log.by_ref().lines() {
            let line = line.expect("it logs text");
            // Other threads of the test program write there too.
            let Ok(line) = serde_json::from_str::<serde_json::Value>(&line) else { continue };
            if line["message"] == message {
                return line;
            }
        }
        panic!("it ended without {message:?}");
    }

    fn tell(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
    }

    fn ask(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.admin).expect("it listens");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        answer
    }

    fn code(mut self) -> Option<i32> {
        self.child.wait().expect("it ends").code()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn serves_and_ends_in_order() {
    let mut process = Process::start(&[("STOKER_TELEMETRY_ENDPOINT", "http://127.0.0.1:9")]);
    assert!(process.ask("/readyz").starts_with("HTTP/1.1 200"));
    let metrics = process.ask("/metrics");
    for line in [
        "stoker_build_info{program=\"stoker-test\",version=\"1.2.3\"} 1",
        "stoker_log_lines_dropped_total 0",
        "stoker_telemetry_spans_total{outcome=\"sent\"} 0",
        "process_cpu_seconds_total ",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    assert!(process.ask("/config").contains("variable STOKER_TELEMETRY_ENDPOINT"));
    process.tell(Signal::TERM);
    assert_eq!(process.until("draining")["why"], "SIGTERM");
    assert_eq!(process.until("stopping")["phase"], "spans");
    assert_eq!(process.until("stopping")["phase"], "admin port", "the last line is written too");
    assert_eq!(process.code(), Some(0));
}

#[test]
fn a_second_signal_leaves_at_once() {
    let mut process = Process::start(&[("STOKER_TEST_HANG", "true")]);
    process.tell(Signal::INT);
    assert_eq!(process.until("draining")["why"], "SIGINT");
    assert!(process.ask("/readyz").contains("not ready: SIGINT"));
    process.tell(Signal::TERM);
    assert_eq!(process.code(), Some(lifecycle::IMPATIENT));
}

#[test]
fn an_end_that_blocks_is_ended() {
    let process = Process::start(&[("STOKER_TEST_BLOCK", "true")]);
    process.tell(Signal::TERM);
    assert_eq!(process.code(), Some(lifecycle::STUCK));
}
