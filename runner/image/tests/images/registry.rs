//! A real registry on loopback, and a gate in front of it that can do to a client what registries and networks do.

use std::convert::Infallible;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, RANGE};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use stoker_core::ImageRef;
use stoker_image::{Error, Image, Source, Store};

use crate::kit::{Made, digest};

/// The user and the password that [`Registry::with_password`] asks for.
pub const USER: &str = "somebody";
pub const PASSWORD: &str = "correct-horse";

/// `docker-registry`, with what it keeps in a directory of its own. `None` where the program is missing.
pub struct Registry {
    process: Child,
    pub address: SocketAddr,
    password: bool,
    _directory: tempfile::TempDir,
}

impl Registry {
    pub fn start() -> Option<Self> {
        Self::run(false)
    }

    /// Everything needs [`USER`] and [`PASSWORD`].
    pub fn with_password() -> Option<Self> {
        Self::run(true)
    }

    fn run(password: bool) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        let mut config = json!({
            "version": 0.1,
            "log": {"level": "info", "formatter": "json"},
            "storage": {"filesystem": {"rootdirectory": at.join("data")}},
            "http": {"addr": "127.0.0.1:0"},
        });
        if password {
            let made = Command::new("htpasswd").args(["-Bbn", USER, PASSWORD]).output();
            let Ok(made) = made else {
                eprintln!("left out: htpasswd (package apache2-utils) is missing");
                return None;
            };
            std::fs::write(at.join("htpasswd"), made.stdout).unwrap();
            config["auth"] = json!({"htpasswd": {"realm": "here", "path": at.join("htpasswd")}});
        }
        // What is JSON is YAML.
        std::fs::write(at.join("config.yml"), config.to_string()).unwrap();
        let started = Command::new("docker-registry")
            .arg("serve")
            .arg(at.join("config.yml"))
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn();
        let Ok(mut process) = started else {
            eprintln!("left out: docker-registry is missing");
            return None;
        };
        let mut log = BufReader::new(process.stderr.take().unwrap());
        let mut line = String::new();
        let address = loop {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "the registry ended before it listened");
            if let Some((_, rest)) = line.split_once("listening on ") {
                break rest.split(['"', ',', ' ', '\n']).next().unwrap().parse().unwrap();
            }
        };
        // Or it stops when the pipe is full. Ends with the process.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Some(Self { process, address, password, _directory: directory })
    }

    /// Sends a request, as simply as that can be done.
    fn send(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> (u16, String) {
        use base64::Engine as _;
        let mut stream = TcpStream::connect(self.address).unwrap();
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n",
            self.address,
            body.len()
        );
        if self.password {
            let both = base64::prelude::BASE64_STANDARD.encode(format!("{USER}:{PASSWORD}"));
            head.push_str(&format!("Authorization: Basic {both}\r\n"));
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
    }

    fn push_blob(&self, repository: &str, blob: &[u8]) {
        let (status, answer) =
            self.send("POST", &format!("/v2/{repository}/blobs/uploads/"), "text/plain", b"");
        assert_eq!(status, 202, "{answer}");
        let location = answer.lines().find_map(|line| line.strip_prefix("Location: ")).unwrap().trim();
        let path = &location[location.find("/v2/").unwrap()..];
        let to = format!("{path}&digest={}", digest(blob));
        let (status, answer) = self.send("PUT", &to, "application/octet-stream", blob);
        assert_eq!(status, 201, "{answer}");
    }

    pub fn push_manifest(&self, repository: &str, reference: &str, manifest: &Value) -> String {
        let bytes = manifest.to_string().into_bytes();
        let kind = manifest["mediaType"].as_str().unwrap();
        let (status, answer) =
            self.send("PUT", &format!("/v2/{repository}/manifests/{reference}"), kind, &bytes);
        assert_eq!(status, 201, "{answer}");
        digest(&bytes)
    }

    /// Pushes an image, its layers stored like this. Its digest.
    pub fn push_as(
        &self,
        repository: &str,
        tag: &str,
        image: &Made,
        store: &dyn Fn(&[u8]) -> Vec<u8>,
    ) -> String {
        for layer in &image.layers {
            self.push_blob(repository, &store(layer));
        }
        self.push_blob(repository, &image.config_bytes());
        self.push_manifest(repository, tag, &image.manifest(store))
    }

    pub fn push(&self, repository: &str, tag: &str, image: &Made) -> String {
        self.push_as(repository, tag, image, &crate::kit::gzip)
    }

    pub fn image(&self, name: &str) -> ImageRef {
        ImageRef::parse(&format!("{}/{name}", self.address)).unwrap()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// Resolves and prepares.
pub async fn pull(store: &Store, image: &ImageRef, credentials: Option<&str>) -> Result<Image, Error> {
    let image = store.resolve(image, credentials).await?;
    store.prepare(&Source::Registry { image, credentials: credentials.map(str::to_owned) }).await
}

/// A docker configuration with one entry.
pub fn credentials(directory: &Path, name: &str, registry: &str, auth: Value) {
    std::fs::create_dir_all(directory).unwrap();
    std::fs::write(directory.join(name), json!({"auths": {registry: auth}}).to_string()).unwrap();
}

/// What a client asked for.
#[derive(Debug, Clone)]
pub struct Asked {
    pub method: String,
    pub path: String,
    pub authorization: Option<String>,
    pub range: Option<String>,
}

/// What a gate does with a request.
pub enum Act {
    /// What the registry says.
    Pass,
    Answer(Response<Full<Bytes>>),
    /// The registry's answer, but the connection ends after so many bytes of its body.
    Cut(usize),
    /// The registry's answer to the request without its range.
    Whole,
    /// Nothing, until the client has gone.
    Hang,
}

type Rule = dyn Fn(&Asked) -> Act + Send + Sync;

/// A server in front of a registry.
pub struct Gate {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Asked>>>,
    hung: tokio::sync::watch::Sender<(usize, usize)>,
    task: tokio::task::JoinHandle<()>,
}

impl Gate {
    pub async fn open(registry: SocketAddr, rule: impl Fn(&Asked) -> Act + Send + Sync + 'static) -> Self {
        Self::open_at("127.0.0.1:0", registry, rule, None).await
    }

    pub async fn open_at(
        at: &str,
        registry: SocketAddr,
        rule: impl Fn(&Asked) -> Act + Send + Sync + 'static,
        tls: Option<tokio_rustls::TlsAcceptor>,
    ) -> Self {
        let listener = tokio::net::TcpListener::bind(at).await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let rule: Arc<Rule> = Arc::new(rule);
        let (hung, _) = tokio::sync::watch::channel((0, 0));
        let (log, waiting) = (Arc::clone(&seen), hung.clone());
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                let (log, rule, waiting, tls) =
                    (Arc::clone(&log), Arc::clone(&rule), waiting.clone(), tls.clone());
                connections.spawn(async move {
                    let answer = move |request: Request<Incoming>| {
                        let (log, rule, waiting) = (Arc::clone(&log), Arc::clone(&rule), waiting.clone());
                        async move { serve(request, registry, &log, &*rule, &waiting).await }
                    };
                    let http = hyper::server::conn::http1::Builder::new();
                    // Clients go when they want to.
                    match tls {
                        None => drop(http.serve_connection(TokioIo::new(stream), service_fn(answer)).await),
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                drop(http.serve_connection(TokioIo::new(stream), service_fn(answer)).await);
                            }
                        }
                    }
                });
            }
        });
        Self { address, seen, hung, task }
    }

    pub fn image(&self, name: &str) -> ImageRef {
        ImageRef::parse(&format!("{}/{name}", self.address)).unwrap()
    }

    pub fn seen(&self) -> Vec<Asked> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How often this was asked for.
    pub fn count(&self, part: &str) -> usize {
        self.seen().iter().filter(|asked| asked.path.contains(part)).count()
    }

    /// How many requests hang, and how many have hung and were given up.
    pub fn hung(&self) -> (usize, usize) {
        *self.hung.borrow()
    }

    /// Waits until so many requests hang, or have hung and were given up.
    pub async fn hanging(&self, now: usize, given_up: usize) {
        self.hung.subscribe().wait_for(|seen| *seen == (now, given_up)).await.unwrap();
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Counts requests that hang.
struct Hanging(tokio::sync::watch::Sender<(usize, usize)>);

impl Drop for Hanging {
    fn drop(&mut self) {
        self.0.send_modify(|(now, gone)| (*now, *gone) = (*now - 1, *gone + 1));
    }
}

type Body = http_body_util::combinators::BoxBody<Bytes, std::io::Error>;

async fn serve(
    request: Request<Incoming>,
    registry: SocketAddr,
    log: &Mutex<Vec<Asked>>,
    rule: &Rule,
    hung: &tokio::sync::watch::Sender<(usize, usize)>,
) -> Result<Response<Body>, Infallible> {
    let text = |headers: &HeaderMap, name| {
        headers.get(name).map(|value: &http::HeaderValue| value.to_str().unwrap().to_owned())
    };
    let (parts, body) = request.into_parts();
    let mut asked = Asked {
        method: parts.method.to_string(),
        path: parts.uri.path_and_query().unwrap().to_string(),
        authorization: text(&parts.headers, AUTHORIZATION),
        range: text(&parts.headers, RANGE),
    };
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    if parts.method == http::Method::POST && !body.is_empty() {
        // For tokens: what is in the form decides.
        asked.path = format!("{}?{}", asked.path, String::from_utf8_lossy(&body));
    }
    log.lock().unwrap_or_else(PoisonError::into_inner).push(asked.clone());
    let whole =
        |response: Response<Full<Bytes>>| response.map(|body| body.map_err(|never| match never {}).boxed());
    let act = rule(&asked);
    if let Act::Answer(answer) = act {
        return Ok(whole(answer));
    }
    if matches!(act, Act::Hang) {
        hung.send_modify(|(now, _)| *now += 1);
        let _hanging = Hanging(hung.clone());
        return std::future::pending().await;
    }
    let range = asked.range.as_deref().filter(|_| !matches!(act, Act::Whole));
    let sent = Full::new(body);
    let (status, headers, body) =
        forward(registry, &parts.method, &asked.path, &parts.headers, range, sent).await;
    let mut answer = Response::new(Bytes::new());
    *answer.status_mut() = status;
    *answer.headers_mut() = headers;
    Ok(match act {
        Act::Cut(at) if body.len() > at => {
            use futures_util::StreamExt as _;
            let first = Ok(hyper::body::Frame::data(body.slice(..at)));
            let cut = async {
                // What was said is sent before the end is known.
                tokio::task::yield_now().await;
                Err(std::io::Error::other("cut"))
            };
            let pieces = futures_util::stream::iter([first]).chain(futures_util::stream::once(cut));
            answer.map(|_| http_body_util::BodyExt::boxed(http_body_util::StreamBody::new(pieces)))
        }
        _ => whole(answer.map(|_| Full::new(body))),
    })
}

async fn forward(
    registry: SocketAddr,
    method: &http::Method,
    path: &str,
    headers: &HeaderMap,
    range: Option<&str>,
    body: Full<Bytes>,
) -> (StatusCode, HeaderMap, Bytes) {
    let stream = tokio::net::TcpStream::connect(registry).await.unwrap();
    let (mut send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path);
    // Where a registry leads to an upload it names the host that it was asked as.
    for name in
        [http::header::HOST, AUTHORIZATION, http::header::ACCEPT, CONTENT_TYPE, http::header::CONTENT_RANGE]
    {
        // What this gate gave is none of the registry's business.
        if let Some(value) = headers.get(&name).filter(|value| !value.as_bytes().starts_with(b"Bearer")) {
            request = request.header(name, value);
        }
    }
    if let Some(range) = range {
        request = request.header(RANGE, range);
    }
    let answer = send.send_request(request.body(body).unwrap()).await.unwrap();
    let (mut parts, body) = answer.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    connection.abort();
    if method != http::Method::HEAD {
        parts.headers.remove(http::header::TRANSFER_ENCODING);
    }
    (parts.status, parts.headers, body)
}

pub fn answer(status: u16) -> http::response::Builder {
    Response::builder().status(status).header(CONTENT_TYPE, "application/json")
}

pub fn empty(builder: http::response::Builder) -> Act {
    Act::Answer(builder.body(Full::default()).unwrap())
}
