//! A fleet as docs/access.md sets it up: certificates and tokens of the command's, TLS everywhere, files that change while it serves.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use stoker_registry::testing::Etcd;
use stoker_tests::cluster::server::Server;
use stoker_tests::{program, within};
use tokio::process::Command;

/// What the command said, as text.
struct Said {
    good: bool,
    out: String,
    error: String,
}

/// Runs the command, with nothing of ours from outside.
async fn stoker(variables: &[(&str, &str)], words: &[&str]) -> Said {
    let mut command = Command::new(program("stoker"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("STOKER_")) {
        command.env_remove(name);
    }
    command
        .args(words)
        .envs(variables.iter().copied())
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let Output { status, stdout, stderr } = within("the command's end", command.output()).await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Said { good: status.success(), out: text(stdout), error: text(stderr) }
}

/// An entry of an access file, and the token for it.
async fn token(name: &str, grants: &[&str]) -> (String, Value) {
    let words = [&["-ojson", "token", name], grants].concat();
    let made: Value = serde_json::from_str(&stoker(&[], &words).await.out).unwrap();
    (made["token"].as_str().unwrap().to_owned(), made["entry"].clone())
}

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

const FUNCTIONS: &str = "app: demo
functions:
  - name: tell
    command: [sh, -c, 'echo \"$REGION $PASSWORD\"']
    env: {REGION: north, PASSWORD: {secret: db/password}}
    memory: 32MiB
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_with_tls_and_tokens() {
    let Some(etcd) = Etcd::start().await else { return };
    let directory = tempfile::tempdir().unwrap();
    // A function is another user, and this is where it starts.
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let at = |name: &str| directory.path().join(name).display().to_string();
    let made = stoker(&[], &["certs", "--directory", &at("certs"), "--host", "lb.example"]).await;
    assert!(made.good, "{}", made.error);
    let (admin, entry) = token("admin", &["--invoke", "*", "--manage", "*", "--observe", "*"]).await;
    let (stranger, other) = token("stranger", &["--invoke", "other"]).await;
    let access = |tokens: &[&Value]| serde_json::json!({ "tokens": tokens }).to_string();
    write(&directory.path().join("access.yaml"), &access(&[&entry, &other]));
    write(&directory.path().join("functions.yaml"), FUNCTIONS);
    write(&directory.path().join("secrets/demo/db/password"), "first\n");

    let tls = |role: &str| {
        let file = |name: String| at(&format!("certs/{name}"));
        [
            ("TLS_CERTIFICATE", file(format!("{role}.pem"))),
            ("TLS_KEY", file(format!("{role}.key"))),
            ("TLS_CA", file("ca.pem".to_owned())),
            ("ETCD", etcd.endpoint()),
            ("LISTEN", "127.0.0.1:0".to_owned()),
            ("ADMIN_LISTEN", "127.0.0.1:0".to_owned()),
        ]
    };
    let mark = format!("secure-{}", std::process::id());
    let more = [
        ("STATE", at("state")),
        ("SECRETS", at("secrets")),
        ("ACCESS", at("access.yaml")),
        ("MEMORY", "256MiB".into()),
        ("CPU", "1".into()),
    ];
    let mut runner = Server::start("stoker-runner", "secure-r", &mark, tls("runner").into_iter().chain(more));
    let runner_pages = runner.logged("starting").await["admin"].as_str().unwrap().to_owned();
    let runner_at = runner.logged("serving").await["address"].as_str().unwrap().to_owned();
    let more = [
        ("HTTP_LISTEN", "127.0.0.1:0".to_owned()),
        ("ACCESS", at("access.yaml")),
        ("AUDIT", at("audit.jsonl")),
    ];
    let mut balancer = Server::start("stoker-lb", "secure-b", &mark, tls("balancer").into_iter().chain(more));
    let serving = balancer.logged("serving").await;
    balancer.logged("ready").await;
    let port = serving["grpc"].as_str().unwrap().rsplit(':').next().unwrap().to_owned();
    let (server, ca) = (format!("https://localhost:{port}"), at("certs/ca.pem"));
    let known = [("STOKER_SERVER", server.as_str()), ("STOKER_CA_FILE", &ca), ("STOKER_TOKEN", &admin)];

    // Who shows a token is let in, all the way into a function, and what is secret is where it belongs.
    let functions = at("functions.yaml");
    let applied = stoker(&known, &["apply", "-f", &functions]).await;
    assert!(applied.good, "{}", applied.error);
    let call = async || stoker(&known, &["call", "demo/tell", "--timeout", "20s"]).await;
    let first = call().await;
    assert_eq!((first.out.as_str(), first.good), ("north first\n", true), "{}", first.error);
    let described = stoker(&known, &["describe", "demo/tell", "-o", "json"]).await;
    assert!(described.out.contains("db/password") && !described.out.contains("first"), "{}", described.out);
    // A container that was made ahead may still have the old one; each call takes one.
    write(&directory.path().join("secrets/demo/db/password"), "second\n");
    let mut told = Vec::new();
    while told.last().is_none_or(|last| last == "north first\n") && told.len() < 5 {
        told.push(call().await.out);
    }
    assert_eq!(told.last().map(String::as_str), Some("north second\n"), "{told:?}");

    // The pages of both are for those who may observe everything, however they come; whether the servers live is everybody's to see.
    let pages = [serving["admin"].as_str().unwrap().to_owned(), runner_pages];
    let curl = async |admin: &str, path: &str, words: &[&str]| {
        let port = admin.rsplit(':').next().unwrap();
        let mut curl = Command::new("curl");
        // The runner's certificate is for no host.
        curl.args([
            "-sk",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            &format!("https://localhost:{port}{path}"),
        ]);
        let output = within("curl's end", curl.args(words).kill_on_drop(true).output()).await.unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let (bearer, basic, wrong) = (
        format!("Authorization: Bearer {admin}"),
        format!("anybody:{admin}"),
        format!("Authorization: Bearer {stranger}"),
    );
    for page in &pages {
        for (path, words, status) in [
            ("/livez", vec![], "200"),
            ("/readyz", vec![], "200"),
            ("/metrics", vec![], "401"),
            ("/config", vec![], "401"),
            ("/metrics", vec!["-H", &*bearer], "200"),
            ("/metrics", vec!["-u", &*basic], "200"),
            ("/config", vec!["-H", &*wrong], "403"),
        ] {
            assert_eq!(curl(page, path, &words).await, status, "{page}{path} {words:?}");
        }
    }

    // Everybody else is not, and is told why.
    let without = |token: &'static str| {
        [
            ("STOKER_SERVER", server.clone()),
            ("STOKER_CA_FILE", ca.clone()),
            ("STOKER_TOKEN", token.to_owned()),
        ]
    };
    let refused = async |variables: &[(&str, String)], says: &str| {
        let variables: Vec<_> = variables.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let said = stoker(&variables, &["functions", "-o", "json"]).await;
        assert!(!said.good && said.error.contains(says), "{says} in {}", said.error);
        assert!(!said.error.contains("stk_"), "{}", said.error);
    };
    refused(&without("")[..2], "UNAUTHENTICATED").await;
    refused(&without("stk_forged"), "UNAUTHENTICATED").await;
    let plain = format!("http://127.0.0.1:{port}");
    refused(&[("STOKER_SERVER", plain)], "with TLS is written https://").await;
    refused(&[("STOKER_SERVER", server.clone())], "cannot be spoken to by TLS").await;
    let wrong_host = format!("https://127.0.0.2:{port}");
    refused(&[("STOKER_SERVER", wrong_host), ("STOKER_CA_FILE", ca.clone())], "").await;
    refused(
        &[("STOKER_SERVER", "http://192.0.2.1:7070".into()), ("STOKER_TOKEN", admin.clone())],
        "in the clear",
    )
    .await;
    // A runner takes nobody but balancers: not with a client's certificate either.
    let (cert, key) = (at("certs/client-admin.pem"), at("certs/client-admin.key"));
    let there = ("STOKER_SERVER", format!("https://{runner_at}"));
    refused(
        &[
            there,
            ("STOKER_CA_FILE", ca.clone()),
            ("STOKER_CERT_FILE", cert.clone()),
            ("STOKER_KEY_FILE", key.clone()),
        ],
        "",
    )
    .await;
    let theirs = [("STOKER_SERVER", server.as_str()), ("STOKER_CA_FILE", &ca), ("STOKER_TOKEN", &stranger)];
    let denied = stoker(&theirs, &["delete", "demo/tell", "-o", "json"]).await;
    assert!(!denied.good && denied.error.contains("PERMISSION_DENIED"), "{}", denied.error);

    // The access file is taken up as it changes: the token goes, a certificate comes.
    let certificate = serde_json::json!([{
        "name": "by-certificate", "san": "spiffe://stoker/client/admin", "invoke": ["*"], "manage": ["*"], "observe": ["*"],
    }]);
    let changed = serde_json::json!({ "tokens": [other], "certificates": certificate }).to_string();
    write(&directory.path().join("access.yaml"), &changed);
    balancer.logged("certificates and access file are as they are on disk").await;
    runner.logged("certificates and access file are as they are on disk").await;
    for page in &pages {
        assert_eq!(curl(page, "/metrics", &["-H", &bearer]).await, "401");
        assert_eq!(curl(page, "/metrics", &["--cert", &cert, "--key", &key]).await, "200");
    }
    let by_certificate = [
        ("STOKER_SERVER", server.as_str()),
        ("STOKER_CA_FILE", &ca),
        ("STOKER_CERT_FILE", &cert),
        ("STOKER_KEY_FILE", &key),
    ];
    let said = stoker(&by_certificate, &["runners", "-o", "json"]).await;
    assert!(said.good && said.out.contains("secure-r"), "{}", said.error);
    refused(&without("")[..2], "UNAUTHENTICATED").await;
    assert!(!call().await.good, "the token was taken back");

    // Settings and certificates are read again at SIGHUP, which ends nothing; a certificate that does not fit its key changes nothing.
    std::fs::copy(at("certs/client-admin.pem"), at("certs/runner.pem")).unwrap();
    runner.logged("what is on disk cannot be used, and what was read before stays").await;
    for server in [&balancer, &runner] {
        kill_process(Pid::from_raw(server.pid()).unwrap(), Signal::HUP).unwrap();
        server.logged("the settings were read again").await;
    }
    let said = stoker(&by_certificate, &["call", "demo/tell"]).await;
    assert!(said.good, "{}", said.error);
    balancer.stop().await;
    runner.stop().await;
    let audit = std::fs::read_to_string(at("audit.jsonl")).unwrap();
    let has = |parts: &[&str]| audit.lines().any(|line| parts.iter().all(|part| line.contains(part)));
    assert!(has(&["\"apply\"", "demo/tell", "\"admin\"", "\"ok\""]), "{audit}");
    assert!(has(&["\"manage\"", "\"stranger\"", "PERMISSION_DENIED"]) && !audit.contains("stk_"), "{audit}");
}
