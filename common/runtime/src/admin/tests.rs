//! A client's view of the port.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::config::{Outcome, Program};
use crate::metrics::{Counter, Def};

static CALLS: Def<Counter> = Def::counter("calls", "Calls");

static LISTEN: Key<SocketAddr> = listen("127.0.0.1:0");
static PROGRAM: Program = Program { name: "p", version: "1", about: "", examples: "", tables: &[&[&LISTEN]] };

async fn start() -> (Admin, Readiness) {
    let Ok(Outcome::Run(settings)) = PROGRAM.load([], []) else { panic!("there are only defaults") };
    let readiness = Readiness::new("no view of the fleet yet");
    let metrics = Metrics::default();
    metrics.one(&CALLS).add_one();
    let pages = Pages::new(readiness.clone(), metrics, &settings);
    (Admin::start(settings.get(&LISTEN), pages, None).await.unwrap(), readiness)
}

async fn ask(address: SocketAddr, line: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("{line} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn pages() {
    let (admin, readiness) = start().await;
    let at = admin.address();
    assert!(ask(at, "GET /livez").await.starts_with("HTTP/1.1 200"));
    let not_ready = ask(at, "GET /readyz").await;
    assert!(not_ready.starts_with("HTTP/1.1 503"), "{not_ready}");
    assert!(not_ready.ends_with("\r\n\r\nnot ready: no view of the fleet yet\n"), "{not_ready}");
    readiness.ready();
    assert!(ask(at, "GET /readyz").await.starts_with("HTTP/1.1 200"));
    readiness.stopping("SIGTERM");
    assert!(ask(at, "GET /readyz").await.contains("not ready: SIGTERM"));
    let metrics = ask(at, "GET /metrics").await;
    assert!(
        metrics.contains(Form::Prometheus.media_type()) && metrics.contains("calls_total 1"),
        "{metrics}"
    );
    let config = ask(at, "GET /config?x=y").await;
    let (_, config) = config.split_once("\r\n\r\n").unwrap();
    let config: serde_json::Value = serde_json::from_str(config).unwrap();
    assert_eq!(config["admin_listen"]["value"], "127.0.0.1:0");
    assert!(ask(at, "GET /").await.starts_with("HTTP/1.1 404"));
    assert!(ask(at, "HEAD /livez").await.ends_with("\r\n\r\n"));
    let post = ask(at, "POST /livez").await;
    assert!(post.starts_with("HTTP/1.1 405") && post.contains("allow: GET, HEAD"), "{post}");
    admin.stop(Duration::from_secs(5)).await;
    assert!(TcpStream::connect(at).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn clients_that_send_nothing_hold_neither_others_nor_the_end() {
    let (admin, _readiness) = start().await;
    let at = admin.address();
    let mut silent = Vec::new();
    for _ in 1..CONNECTIONS {
        silent.push(TcpStream::connect(at).await.unwrap());
    }
    assert!(ask(at, "GET /livez").await.starts_with("HTTP/1.1 200"));
    let mut half = TcpStream::connect(at).await.unwrap();
    half.write_all(b"GET /livez HT").await.unwrap();
    admin.stop(Duration::ZERO).await;
    for mut stream in silent {
        // Closed or reset: in any case over.
        assert!(matches!(stream.read(&mut [0]).await, Ok(0) | Err(_)));
    }
}

/// A port with a page, on which is how often it was looked at.
async fn start_with_page() -> Admin {
    let Ok(Outcome::Run(settings)) = PROGRAM.load([], []) else { panic!("there are only defaults") };
    let looks = std::sync::atomic::AtomicU64::new(0);
    let live = Live::new("<style>a</style><script>b</script>", Duration::from_millis(1), move || {
        format!("{{\"look\":{}}}", looks.fetch_add(1, std::sync::atomic::Ordering::Relaxed)).into()
    });
    let pages = Pages::new(Readiness::new(""), Metrics::default(), &settings).live(live);
    Admin::start(settings.get(&LISTEN), pages, None).await.unwrap()
}

async fn open(address: SocketAddr, path: &str, host: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await.unwrap();
    stream
}

/// Reads until this has come, or the end.
async fn read_to(stream: &mut TcpStream, part: &str) -> String {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while !text.contains(part) {
        match stream.read(&mut buffer).await.unwrap() {
            0 => break,
            n => text += std::str::from_utf8(&buffer[..n]).unwrap(),
        }
    }
    text
}

#[tokio::test]
async fn a_page_runs_nothing_but_its_own_and_is_shown_to_this_machine() {
    let admin = start_with_page().await;
    let at = admin.address();
    let get = async |path: &str, host: &str| read_to(&mut open(at, path, host).await, "never").await;
    let page = get("/", "localhost:7090").await;
    assert!(page.starts_with("HTTP/1.1 200") && page.ends_with("<script>b</script>"), "{page}");
    for policy in [
        "default-src 'none'",
        // SHA-256 of `b` and of `a`.
        "script-src 'sha256-PiPoFgA5WUoziU9lZOGxNIu9egCI1CxKy3PurtWcAJ0=';",
        "style-src 'sha256-ypeBEsobvcr6wjGzmiPcTaeG7/gUfE5yuYB3ha/uSLs=';",
        "frame-ancestors 'none'",
        "nosniff",
    ] {
        assert!(page.contains(policy), "{policy} in {page}");
    }
    assert!(get("/fleet", "127.0.0.1").await.ends_with("{\"look\":0}"));
    assert!(get("/fleet", "[::1]:80").await.starts_with("HTTP/1.1 200"));
    for stranger in
        ["evil.example", "evil.example:7090", "localhost.evil.example", "127.0.0.1.evil.example", "%%"]
    {
        let refused = get("/fleet", stranger).await;
        assert!(!refused.contains("look") && refused.starts_with("HTTP/1.1 4"), "{stranger}: {refused}");
    }
    assert!(get("/livez", "evil.example").await.starts_with("HTTP/1.1 200"), "that is no secret");
    assert!(ask(at, "HEAD /events").await.starts_with("HTTP/1.1 421"));
}

#[tokio::test]
async fn events_go_on_until_the_end_and_have_only_so_many_viewers() {
    let admin = start_with_page().await;
    let at = admin.address();
    let mut viewers = Vec::new();
    for _ in 0..16 {
        let mut viewer = open(at, "/events", "localhost").await;
        let begun = read_to(&mut viewer, "}\n\n").await;
        assert!(
            begun.contains("content-type: text/event-stream") && begun.contains("data: {\"look\":"),
            "{begun}"
        );
        viewers.push(viewer);
    }
    let full = read_to(&mut open(at, "/events", "localhost").await, "never").await;
    assert!(full.starts_with("HTTP/1.1 503"), "{full}");
    assert!(ask(at, "GET /livez").await.starts_with("HTTP/1.1 200"), "who watches is in nobody's way");
    // One goes: another may come, once that has been noticed.
    drop(viewers.pop());
    loop {
        let mut next = open(at, "/events", "localhost").await;
        if read_to(&mut next, "\r\n").await.starts_with("HTTP/1.1 200") {
            viewers.push(next);
            break;
        }
    }
    admin.stop(Duration::from_secs(30)).await;
    for mut viewer in viewers {
        let mut rest = String::new();
        viewer.read_to_string(&mut rest).await.unwrap();
        assert!(rest.ends_with("0\r\n\r\n"), "a whole answer: {rest:?}");
    }
}

/// A port whose pages ask by this access file.
async fn start_asking(access: &str) -> (Admin, tempfile::TempDir) {
    let Ok(Outcome::Run(settings)) = PROGRAM.load([], []) else { panic!("there are only defaults") };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.yaml");
    std::fs::write(&path, access).unwrap();
    let kept = Arc::new(crate::auth::AccessFile::read(&path).unwrap());
    let viewers = Viewers::of(Some((kept, crate::audit::Audit::into_log())), false, true);
    let live = Live::new("<script>b</script>", Duration::from_secs(1), || "{}".into());
    let pages = Pages::new(Readiness::new("soon"), Metrics::default(), &settings).live(live).viewers(viewers);
    (Admin::start(settings.get(&LISTEN), pages, None).await.unwrap(), directory)
}

/// What is answered to one who shows this.
async fn show(at: SocketAddr, path: &str, shown: &str) -> String {
    let mut stream = TcpStream::connect(at).await.unwrap();
    let shown = if shown.is_empty() { String::new() } else { format!("Authorization: {shown}\r\n") };
    let request = format!("HEAD {path} HTTP/1.1\r\nHost: localhost\r\n{shown}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.to_ascii_lowercase()
}

#[tokio::test]
async fn pages_are_for_those_who_may_observe_everything() {
    use base64::Engine as _;
    let [one, all] = [(); 2].map(|()| crate::auth::new_token().unwrap());
    let access = format!(
        "tokens:\n  - {{name: one, sha256: {}, observe: [shop], manage: ['*']}}\n  - {{name: all, sha256: {}, observe: ['*']}}\n",
        one.1, all.1
    );
    let (admin, _directory) = start_asking(&access).await;
    let at = admin.address();
    let basic = |pair: String| format!("basic {}", base64::engine::general_purpose::STANDARD.encode(pair));
    for path in ["/metrics", "/config", "/", "/fleet", "/events", "/nothing", "/metrics/"] {
        let nobody = show(at, path, "").await;
        assert!(nobody.starts_with("http/1.1 401"), "{path}: {nobody}");
        for way in ["www-authenticate: bearer", "www-authenticate: basic"] {
            assert!(nobody.contains(way), "{way} in {nobody}");
        }
        for wrong in ["Bearer wrong".to_owned(), basic(format!("{}:x", all.0)), "Basic %".to_owned()] {
            assert!(show(at, path, &wrong).await.starts_with("http/1.1 401"), "{path}: {wrong}");
        }
        let other = show(at, path, &format!("Bearer {}", one.0)).await;
        assert!(other.starts_with("http/1.1 403"), "{path}: {other}");
        let expected = if path.contains("nothing") || path == "/metrics/" { "404" } else { "200" };
        for right in [format!("Bearer {}", all.0), basic(format!("anybody:{}", all.0))] {
            let seen = show(at, path, &right).await;
            assert!(seen.starts_with(&format!("http/1.1 {expected}")), "{path}: {seen}");
        }
    }
    assert!(show(at, "/livez", "").await.starts_with("http/1.1 200"));
    assert!(show(at, "/readyz", "").await.starts_with("http/1.1 503"), "and nobody was asked");
    admin.stop(Duration::ZERO).await;
}

#[tokio::test]
async fn pages_are_everybodys_where_the_access_file_says_so() {
    let (admin, directory) = start_asking("anybody: {observe: ['*']}").await;
    assert!(show(admin.address(), "/metrics", "").await.starts_with("http/1.1 200"));
    admin.stop(Duration::ZERO).await;
    drop(directory);
    let (admin, _directory) = start_asking("anybody: {invoke: ['*']}").await;
    assert!(show(admin.address(), "/metrics", "").await.starts_with("http/1.1 401"));
    admin.stop(Duration::ZERO).await;
}

#[tokio::test]
async fn without_an_access_file_a_port_for_others_is_for_those_with_a_certificate() {
    let nothing = http::HeaderMap::new();
    let peer = tls::Peer { names: vec!["spiffe://stoker/client/prometheus".to_owned()] };
    for (others_by_tls, insecure, asks) in [(true, false, true), (true, true, false), (false, false, false)] {
        let viewers = Viewers::of(None, others_by_tls, insecure);
        let seen = viewers.let_in("/metrics", &nothing, None, "").await;
        assert_eq!(seen.is_err(), asks, "{others_by_tls} {insecure}");
        assert!(viewers.let_in("/metrics", &nothing, Some(&peer), "").await.is_ok());
    }
}
