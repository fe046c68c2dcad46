//! Members of a fleet in processes of their own: the program, and the handle that a test has on one.

use std::io::{BufRead as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{ChildStdin, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use stoker_core::{Capacity, Incarnation, Resources, RunnerName, RunnerState};
use stoker_lb::Balancer;
use stoker_registry::{MemoryRegistry, Registry as _};
use stoker_runner::Runner;

use crate::fleet;
use crate::program;

/// A process of its own that is a runner or a balancer.
pub struct Member {
    child: std::process::Child,
    /// Closed to stop it.
    stdin: Option<ChildStdin>,
    /// What it said when it was ready.
    pub ready: Value,
}

impl Member {
    /// Starts a runner.
    #[must_use]
    pub fn runner(mark: &str, name: &str, state: &Path, resources: Resources) -> Self {
        Self::start(
            "runner",
            &json!({
                "mark": mark, "name": name, "state": state, "memory": resources.memory,
                "cpu_millis": resources.cpu_millis, "slots": resources.slots,
            }),
        )
    }

    /// Starts a balancer that knows these runners and functions, for ever.
    #[must_use]
    pub fn balancer(mark: &str, runners: &[Capacity], functions: &[stoker_core::FunctionSpec]) -> Self {
        let runners: Vec<_> = runners
            .iter()
            .map(|record| {
                json!({
                    "name": record.runner.as_str(), "address": record.address, "incarnation": record.incarnation.0,
                    "memory": record.total.memory, "cpu_millis": record.total.cpu_millis, "slots": record.total.slots,
                })
            })
            .collect();
        Self::start("balancer", &json!({"mark": mark, "runners": runners, "functions": functions}))
    }

    fn start(what: &str, settings: &Value) -> Self {
        let mut child = std::process::Command::new(program("member"))
            .args([what, &settings.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready =
            serde_json::from_str(&line).unwrap_or_else(|_| panic!("the {what} did not start: {line:?}"));
        Self { stdin: child.stdin.take(), child, ready }
    }

    /// Its record, as it would stand in the registry.
    #[must_use]
    pub fn record(&self) -> Capacity {
        record(&self.ready)
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// An address that it named.
    #[must_use]
    pub fn address(&self, key: &str) -> SocketAddr {
        self.ready[key].as_str().unwrap().parse().unwrap()
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        let status = self.child.wait().unwrap();
        assert_eq!(status.signal(), Some(libc::SIGKILL));
    }

    /// Asks it to stop, and waits for the end.
    ///
    /// # Panics
    /// When it does not end well.
    pub async fn stop(mut self) {
        drop(self.stdin.take());
        let status = tokio::task::spawn_blocking(move || self.child.wait().unwrap()).await.unwrap();
        assert!(status.success(), "a member ended with {status}");
    }

    /// The most memory that it held so far, in bytes, and what it holds now.
    #[must_use]
    pub fn memory(&self) -> (u64, u64) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
        };
        (field("VmHWM"), field("VmRSS"))
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // One that has ended takes no signal; what matters is that none outlives its test.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// A record of a runner that has all it owns free.
fn record(settings: &Value) -> Capacity {
    let number = |key: &str| settings[key].as_u64().unwrap();
    let total = Resources {
        memory: number("memory"),
        cpu_millis: number("cpu_millis") as u32,
        slots: number("slots") as u32,
    };
    Capacity {
        runner: RunnerName::new(settings["name"].as_str().unwrap()).unwrap(),
        incarnation: Incarnation(number("incarnation")),
        address: settings["address"].as_str().unwrap().to_owned(),
        zone: String::new(),
        labels: std::collections::BTreeMap::new(),
        sequence: 0,
        state: RunnerState::Ready,
        total,
        free: total,
        reclaimable: Resources { memory: 0, cpu_millis: 0, slots: 0 },
        in_flight: 0,
        waiting: 0,
        functions: std::collections::BTreeMap::new(),
    }
}

/// The program: serves until STDIN closes.
pub fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [what, settings] = arguments.as_slice() else { panic!("member runner|balancer SETTINGS") };
    let settings: Value = serde_json::from_str(settings).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        match what.as_str() {
            "runner" => runner(&settings).await,
            "balancer" => balancer(&settings).await,
            other => panic!("{other:?} is neither runner nor balancer"),
        }
    });
}

async fn runner(settings: &Value) {
    let total = record(&with_place(settings)).total;
    let mark = settings["mark"].as_str().unwrap();
    let name = settings["name"].as_str().unwrap();
    let state = settings["state"].as_str().unwrap();
    let registry = MemoryRegistry::default();
    let fleet = registry.fleet();
    let config = fleet::runner_config(mark, name, Path::new(state), total);
    let runner = Runner::start(config, Arc::new(registry)).await.unwrap();
    let record = fleet.borrow().runners.values().next().unwrap().clone();
    say(&json!({
        "name": name, "address": record.address, "incarnation": record.incarnation.0, "memory": total.memory,
        "cpu_millis": total.cpu_millis, "slots": total.slots, "sandbox": runner.describe(),
    }));
    stdin_closes().await;
    runner.stop(Duration::from_secs(10)).await;
}

/// A record needs an address and an incarnation, which a runner that is to be started has not yet.
fn with_place(settings: &Value) -> Value {
    let mut settings = settings.clone();
    settings["address"] = "".into();
    settings["incarnation"] = 0.into();
    settings
}

async fn balancer(settings: &Value) {
    let registry = Arc::new(MemoryRegistry::default());
    let functions =
        serde_json::from_value::<Vec<stoker_core::FunctionSpec>>(settings["functions"].clone()).unwrap();
    registry.apply_functions(functions).await.unwrap();
    let mut registrations = Vec::new();
    for runner in settings["runners"].as_array().unwrap() {
        registrations.push(registry.register(record(runner)).await.unwrap());
    }
    let balancer = Balancer::start(fleet::balancer_config(), registry).await.unwrap();
    balancer.ready().await;
    say(&json!({
        "grpc": balancer.grpc_address().to_string(), "http": balancer.http_address().to_string(),
    }));
    stdin_closes().await;
    balancer.stop(Duration::from_secs(10)).await;
}

fn say(ready: &Value) {
    let mut out = std::io::stdout();
    writeln!(out, "{ready}").and_then(|()| out.flush()).unwrap();
}

async fn stdin_closes() {
    let read = || std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).unwrap();
    tokio::task::spawn_blocking(read).await.unwrap();
}
