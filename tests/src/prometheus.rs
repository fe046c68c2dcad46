//! A real Prometheus that scrapes real servers, through a door at which the test sees every scrape: that is how it knows that there is
//! something to ask for, without looking again and again.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::calls::{Clients, Page};
use crate::cluster::port::Port;
use crate::within;

/// Seconds between scrapes.
const INTERVAL: u32 = 1;

/// The door of one server's metrics.
struct Gate {
    address: SocketAddr,
    /// Scrapes that were answered.
    scrapes: watch::Receiver<u64>,
    task: AbortHandle,
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Gate {
    /// Hands every request on to a server's admin port.
    async fn to(clients: Clients, admin: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (counter, scrapes) = watch::channel(0);
        let clients = Clients { http: admin, ..clients };
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (clients, counter) = (clients.clone(), counter.clone());
                tokio::spawn(async move {
                    let answer = service_fn(|request: Request<Incoming>| {
                        let (clients, counter) = (clients.clone(), counter.clone());
                        async move {
                            let accept = request.headers().get("accept").and_then(|a| a.to_str().ok());
                            let headers = [("accept".to_owned(), accept.unwrap_or_default().to_owned())];
                            let Page { status, headers, body } =
                                clients.page("GET", request.uri().path(), &headers, Bytes::new()).await;
                            counter.send_modify(|scrapes| *scrapes += 1);
                            let mut response = Response::new(Full::new(body));
                            *response.status_mut() = http::StatusCode::from_u16(status).unwrap();
                            let kind = headers.get("content-type").cloned().expect("a page says what it is");
                            response.headers_mut().insert("content-type", kind);
                            Ok::<_, std::convert::Infallible>(response)
                        }
                    });
                    // Prometheus keeps its connections until it ends.
                    http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await.ok();
                });
            }
        });
        Self { address, scrapes, task: task.abort_handle() }
    }
}

/// See the module. Ends with it.
pub struct Prometheus {
    clients: Clients,
    /// Each with its job.
    gates: Vec<(String, Gate)>,
    _child: Child,
    _port: Port,
    _directory: tempfile::TempDir,
}

impl Prometheus {
    /// Starts one that scrapes these servers, by job, and knows these rules; `None` where it is not installed. The clients lend their
    /// manner of asking.
    pub async fn start(
        clients: &Clients,
        jobs: &[(&str, Vec<SocketAddr>)],
        rules: Option<&Path>,
    ) -> Option<Self> {
        let (directory, port) = (tempfile::tempdir().unwrap(), Port::claim());
        let (mut gates, mut scrapes) = (Vec::new(), Vec::new());
        for (job, servers) in jobs {
            let mut targets = Vec::new();
            for server in servers {
                let gate = Gate::to(clients.clone(), *server).await;
                targets.push(gate.address.to_string());
                gates.push(((*job).to_owned(), gate));
            }
            scrapes.push(json!({"job_name": job, "static_configs": [{"targets": targets}]}));
        }
        let config = json!({
            "global": {"scrape_interval": format!("{INTERVAL}s"), "evaluation_interval": format!("{INTERVAL}s")},
            "rule_files": rules.iter().map(|rules| rules.display().to_string()).collect::<Vec<_>>(),
            "scrape_configs": scrapes,
        });
        let file = directory.path().join("prometheus.yaml");
        // JSON is YAML.
        std::fs::write(&file, config.to_string()).unwrap();
        let started = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()))
            .arg(format!("--web.listen-address={}", port.address))
            .args(["--enable-feature=exemplar-storage", "--log.level=info"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        let mut child = match started {
            Ok(child) => child,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                println!("left out: prometheus is not here");
                return None;
            }
            Err(error) => panic!("prometheus: {error}"),
        };
        let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
        let ready = async {
            let mut lines = Vec::new();
            while let Some(line) = said.next_line().await.unwrap() {
                if line.contains("Server is ready to receive web requests") {
                    return;
                }
                lines.push(line);
            }
            panic!("prometheus ended: {lines:#?}");
        };
        within("prometheus is ready", ready).await;
        // What it says from here on is read, so that it is never held up.
        tokio::spawn(async move { while let Ok(Some(_)) = said.next_line().await {} });
        let clients = Clients { http: port.address, ..clients.clone() };
        Some(Self { clients, gates, _child: child, _port: port, _directory: directory })
    }

    /// What Prometheus calls the servers of a job.
    #[must_use]
    pub fn instances(&self, job: &str) -> Vec<String> {
        let of_job = self.gates.iter().filter(|(name, _)| name == job);
        of_job.map(|(_, gate)| gate.address.to_string()).collect()
    }

    /// Waits until what every server shows now has been stored: a server is scraped again only after what was scraped before is stored.
    pub async fn catch_up(&self) {
        for (_, gate) in &self.gates {
            let mut scrapes = gate.scrapes.clone();
            // One may be under way that saw what was before, and the one after that must have been stored.
            let enough = *scrapes.borrow_and_update() + 3;
            within("scrapes", scrapes.wait_for(|seen| *seen >= enough)).await.unwrap();
        }
    }

    /// The answer of its API, which must be a success.
    pub async fn ask(&self, path: &str, parameters: &[(&str, &str)]) -> Value {
        let query: Vec<String> =
            parameters.iter().map(|(key, value)| format!("{key}={}", encoded(value))).collect();
        let page =
            self.clients.page("GET", &format!("/api/v1/{path}?{}", query.join("&")), &[], Bytes::new()).await;
        let answer: Value = serde_json::from_slice(&page.body).unwrap();
        assert_eq!(answer["status"], "success", "{parameters:?}: {answer}");
        answer["data"].clone()
    }

    /// What a query gives now: labels and value of each series.
    pub async fn query(&self, query: &str) -> Vec<(Value, f64)> {
        let data = self.ask("query", &[("query", query)]).await;
        let series = |one: &Value| (one["metric"].clone(), number(&one["value"][1]));
        data["result"].as_array().unwrap().iter().map(series).collect()
    }

    /// What it gave over the last seconds: labels of each series, and its points.
    pub async fn range(&self, query: &str, seconds: u32) -> Vec<(Value, Vec<(f64, f64)>)> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        let (start, end) = ((now - f64::from(seconds)).to_string(), now.to_string());
        let parameters = [("query", query), ("start", &start), ("end", &end), ("step", "1")];
        let data = self.ask("query_range", &parameters).await;
        let points = |one: &Value| {
            let points = one["values"].as_array().unwrap().iter();
            points.map(|point| (point[0].as_f64().unwrap(), number(&point[1]))).collect()
        };
        data["result"].as_array().unwrap().iter().map(|one| (one["metric"].clone(), points(one))).collect()
    }
}

/// Numbers come as text, since some are none.
fn number(value: &Value) -> f64 {
    value.as_str().unwrap().parse().unwrap()
}

fn encoded(text: &str) -> String {
    text.bytes()
        .map(
            |byte| {
                if byte.is_ascii_alphanumeric() {
                    char::from(byte).to_string()
                } else {
                    format!("%{byte:02X}")
                }
            },
        )
        .collect()
}
