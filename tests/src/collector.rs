//! A collector of traces that is none of ours: rotel receives spans by OTLP and prints them.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use rustix::process::{Pid, Signal, kill_process};

use crate::cluster::port::Port;

/// A program of the Python environment that `scripts/test` makes; `None` where it is left out.
#[must_use]
pub fn python() -> Option<PathBuf> {
    let tools = std::env::var_os("STOKER_TEST_TOOLS").map(PathBuf::from)?;
    Some(tools.join("bin/python3")).filter(|python| python.is_file())
}

/// A running collector.
pub struct Collector {
    child: Child,
    pub endpoint: String,
    lines: Receiver<String>,
    _directory: tempfile::TempDir,
    _ports: [Port; 2],
}

impl Collector {
    /// Starts one; `None` where it is left out.
    #[must_use]
    pub fn start() -> Option<Self> {
        let Some(python) = python() else {
            println!("left out: STOKER_TEST_TOOLS names no Python with rotel");
            return None;
        };
        let place = "import os, rotel; print(os.path.join(os.path.dirname(rotel.__file__), 'rotel-agent'))";
        let out = Command::new(python).args(["-c", place]).output().unwrap();
        let program = String::from_utf8(out.stdout).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let ports = [Port::claim(), Port::claim()];
        let mut child = Command::new(program.trim())
            .args(["start", "--exporter", "blackhole"])
            .args(["--debug-log", "traces", "--debug-log-verbosity", "detailed"])
            .arg("--pid-file")
            .arg(directory.path().join("pid"))
            .arg(format!("--otlp-grpc-endpoint={}", ports[0].address))
            .arg(format!("--otlp-http-endpoint={}", ports[1].address))
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        // Ends with the collector.
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let endpoint = format!("http://{}", ports[0].address);
        Some(Self { child, endpoint, lines, _directory: directory, _ports: ports })
    }

    /// Ends it in its orderly way, and gives what it received.
    #[must_use]
    pub fn received(mut self) -> Vec<Span> {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        self.child.wait().unwrap();
        let mut spans: Vec<Span> = Vec::new();
        let mut service = String::new();
        for line in self.lines.iter() {
            let line = line.trim().trim_start_matches("-> ").to_owned();
            if line.starts_with("Span #") {
                spans.push(Span { service: service.clone(), lines: Vec::new() });
            } else if let Some(name) = line.strip_prefix("service.name: Str(") {
                service = name.trim_end_matches(')').to_owned();
            } else if let Some(span) = spans.last_mut().filter(|_| !line.starts_with("ResourceSpans")) {
                span.lines.push(line);
            }
        }
        spans
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        // One that has ended takes no signal.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// A span as the collector prints it.
#[derive(Debug, Clone)]
pub struct Span {
    pub service: String,
    pub lines: Vec<String>,
}

impl Span {
    /// What follows `key` and a colon, the first time; empty if it is not there.
    #[must_use]
    pub fn field(&self, key: &str) -> &str {
        let value =
            |line: &'_ str| line.split_once(':').filter(|(k, _)| k.trim() == key).map(|(k, _)| k.len());
        self.lines.iter().find_map(|line| value(line).map(|at| line[at + 1..].trim())).unwrap_or_default()
    }

    #[must_use]
    pub fn name(&self) -> &str {
        self.field("Name")
    }

    #[must_use]
    pub fn id(&self) -> &str {
        self.field("ID")
    }

    #[must_use]
    pub fn parent(&self) -> &str {
        self.field("Parent ID")
    }

    #[must_use]
    pub fn trace(&self) -> &str {
        self.field("Trace ID")
    }

    /// Like `SPAN_KIND_SERVER`.
    #[must_use]
    pub fn kind(&self) -> &str {
        self.field("Kind")
    }
}

/// Who calls whom, how often, as Tempo's generator finds it: a client's span and the server's that is its child, in two services; and a client's
/// span without such a child that names its peer, which becomes a node of its own.
#[must_use]
pub fn service_graph(spans: &[Span]) -> BTreeMap<(String, String), usize> {
    let mut graph = BTreeMap::new();
    for client in spans.iter().filter(|span| span.kind() == "SPAN_KIND_CLIENT") {
        let mut servers = spans.iter().filter(|span| span.kind() == "SPAN_KIND_SERVER");
        let server = servers.find(|span| span.trace() == client.trace() && span.parent() == client.id());
        let peer = ["service.peer.name", "peer.service"]
            .map(|name| client.field(name))
            .into_iter()
            .find(|p| !p.is_empty());
        let peer = peer.map(|peer| peer.trim_start_matches("Str(").trim_end_matches(')').to_owned());
        if let Some(to) = server.map(|server| server.service.clone()).or(peer) {
            *graph.entry((client.service.clone(), to)).or_default() += 1;
        }
    }
    graph
}
