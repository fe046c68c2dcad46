//! `up`: a fleet on this machine, from the first check to the last drained call.

mod machine;
mod trial;

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;
use stoker_core::{FunctionSpec, Resources, RunnerName};
use stoker_registry::{MemoryRegistry, Registry};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::args::{Common, Output, Up};
use crate::failure::Failure;
use crate::fleet::{Fleet, Plan};
use crate::{client, functions, output};

/// The gRPC port that `stoker` looks for when it is told nothing.
const DEFAULT_GRPC_PORT: u16 = 7070;

pub fn run(args: Up, common: &Common) -> Result<(), Failure> {
    log(args.verbose);
    // What can be wrong is found before anything is started.
    let specs = functions::read(&args.functions)?;
    free(args.grpc, "--grpc")?;
    free(args.http, "--http")?;
    let plan = plan(&args)?;
    let registry = registry(args.state.as_deref())?;
    client::runtime()?.block_on(serve(args, common, plan, registry, specs))
}

async fn serve(
    args: Up,
    common: &Common,
    plan: Plan,
    registry: Arc<dyn Registry>,
    specs: Vec<FunctionSpec>,
) -> Result<(), Failure> {
    let mut stop = Stop::new()?;
    registry.apply_functions(specs.clone()).await.map_err(|error| {
        Failure::usage(
            format!("the functions cannot be applied: {error}"),
            "correct them; nothing was started",
        )
    })?;
    let resources = plan.resources;
    let mut fleet = tokio::select! {
        started = Fleet::start(plan, Arc::clone(&registry)) => started?,
        () = stop.asked() => return Ok(()),
    };
    let all: Vec<_> = registry.functions().borrow().by_name.values().map(Arc::clone).collect();
    match common.output {
        Output::Json => output::print_json(&json!({
            "grpc": format!("http://{}", fleet.grpc), "http": format!("http://{}", fleet.http),
            "runners": args.runners, "sandbox": fleet.sandbox, "memory": resources.memory,
            "cpu_millis": resources.cpu_millis,
            "functions": all.iter().map(|spec| spec.name.as_str()).collect::<Vec<_>>(),
        })),
        Output::Table => introduce(&fleet, &args, resources, &all, &specs),
    }
    let server = format!("http://{}", fleet.grpc);
    let try_and_wait = async {
        if !args.no_try && common.output == Output::Table && !specs.is_empty() {
            trial::run(&server, &specs).await?;
        }
        if common.output == Output::Table {
            output::print("\nServing. Ctrl-C drains and stops.\n");
        }
        Ok::<_, Failure>(())
    };
    let result = tokio::select! {
        result = async { try_and_wait.await?; std::future::pending().await } => result,
        failure = fleet.lost() => Err(failure),
        () = stop.asked() => Ok(()),
    };
    eprintln!(
        "\nStopping: calls have {} to finish. Ctrl-C again leaves at once.",
        stoker_core::units::format_duration(args.grace)
    );
    tokio::select! {
        () = fleet.stop() => {}
        // The spawner sees this process go and ends every function.
        () = stop.asked() => std::process::exit(130),
    }
    result
}

/// Being told to stop: Ctrl-C, or SIGTERM from whoever supervises.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    fn new() -> Result<Self, Failure> {
        let on = |kind| {
            signal(kind).map_err(|error| Failure::platform(format!("cannot listen for signals: {error}"), ""))
        };
        Ok(Self { interrupt: on(SignalKind::interrupt())?, terminate: on(SignalKind::terminate())? })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

fn introduce(
    fleet: &Fleet,
    args: &Up,
    resources: Resources,
    all: &[Arc<FunctionSpec>],
    specs: &[FunctionSpec],
) {
    let style = output::Style::stdout();
    let runners = if args.runners == 1 { "1 runner".to_owned() } else { format!("{} runners", args.runners) };
    let mut text = format!("{}\n\n", style.bold("Stoker is up."));
    let line = |key: &str, value: String| format!("  {key:<10} {value}\n");
    text += &line("gRPC", format!("http://{}", fleet.grpc));
    text += &line("HTTP", format!("http://{}", fleet.http));
    text += &line(
        "fleet",
        format!(
            "{runners} of {} memory and {} cores",
            output::human_size(resources.memory),
            stoker_core::units::format_cpu(resources.cpu_millis)
        ),
    );
    text += &line("sandbox", fleet.sandbox.clone());
    match &args.state {
        Some(state) => text += &line("state", format!("functions are kept in {}", state.display())),
        None => {
            text += &line("state", "functions are forgotten at the end; --state DIR keeps them".to_owned())
        }
    }
    if all.is_empty() {
        text += "\nThere are no functions yet. Apply some with `stoker apply -f FILE`.\n";
        output::print(&text);
        return;
    }
    text += &format!("\n{}\n\n", style.bold("Functions"));
    for spec in all {
        let triggers: Vec<_> =
            spec.triggers.iter().map(|t| format!(" /t/{}{}", spec.name.app(), t.http)).collect();
        text += &format!("  {:<24} {}{}\n", spec.name.as_str(), spec.format.as_str(), triggers.concat());
    }
    // Those of the files first, in their order: the author put the best one on top.
    let runnable =
        || specs.iter().chain(all.iter().map(Arc::as_ref)).filter(|spec| machine::missing(spec).is_none());
    if let Some(spec) = runnable().next() {
        text += &format!("\n{}\n\n", style.bold("Call one"));
        let name = &spec.name;
        let server = if fleet.grpc.port() == DEFAULT_GRPC_PORT {
            String::new()
        } else {
            format!(" --server http://{}", fleet.grpc)
        };
        text += &format!("  stoker call {name} --data Ada{server}\n");
        text += &format!("  curl -d Ada http://{}/invoke/{name}\n", fleet.http);
        let with_trigger = runnable().find(|spec| !spec.triggers.is_empty());
        if let Some((spec, trigger)) = with_trigger.and_then(|s| Some((s, s.triggers.first()?))) {
            text += &format!("  curl -d Ada http://{}/t/{}{}\n", fleet.http, spec.name.app(), trigger.http);
        }
        if machine::program("grpcurl", Path::new("/"), None).is_some() {
            text += &format!(
                "  grpcurl -plaintext -d '{{\"function\": \"{name}\", \"body\": \"QWRh\"}}' {} stoker.v1.CallService/Invoke\n",
                fleet.grpc
            );
        }
    }
    output::print(&text);
}

fn registry(state: Option<&Path>) -> Result<Arc<dyn Registry>, Failure> {
    let Some(directory) = state else { return Ok(Arc::new(MemoryRegistry::default())) };
    let failed =
        |what: String| Failure::platform(what, "check that --state names a directory that can be written");
    std::fs::create_dir_all(directory)
        .map_err(|error| failed(format!("{} cannot be made: {error}", directory.display())))?;
    let registry =
        MemoryRegistry::open(&directory.join("functions.json")).map_err(|error| failed(error.to_string()))?;
    Ok(Arc::new(registry))
}

/// Says at once, and clearly, that an address is taken; the servers bind it themselves a moment later.
fn free(address: SocketAddr, flag: &str) -> Result<(), Failure> {
    match TcpListener::bind(address) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Err(Failure::usage(
            format!("{address} is in use: perhaps another `stoker up` runs"),
            format!("stop it, or take another address with {flag} (port 0 takes any that is free)"),
        )),
        Err(error) => Err(Failure::usage(
            format!("cannot listen on {address}: {error}"),
            format!("take another address with {flag}"),
        )),
    }
}

fn plan(args: &Up) -> Result<Plan, Failure> {
    let machine = machine::Machine::look();
    let count = u64::from(args.runners);
    let memory = args.memory.unwrap_or(machine.memory / 5 * 4 / count);
    if !stoker_core::function::limits::MEMORY.contains(&memory) {
        let size = stoker_core::units::format_size(memory);
        return Err(Failure::usage(
            format!("a runner of {size} memory can hold nothing"),
            "write --memory like 1GiB",
        ));
    }
    let cpu_millis = args.cpu.unwrap_or(machine.cpu_millis);
    if cpu_millis == 0 {
        return Err(Failure::usage("a runner without CPU can run nothing", "write --cpu like 2 or 500m"));
    }
    // A container below 8 MiB is rare; more than a thousand on one machine is for those who ask the runner itself.
    let slots = u32::try_from((memory >> 23).clamp(1, 1000)).unwrap_or(1000);
    // A runner cleans up what an earlier one of its name left behind, so fleets side by side need names of their own.
    let prefix = match args.grpc.port() {
        DEFAULT_GRPC_PORT => "runner".to_owned(),
        0 => format!("runner-p{}", std::process::id()),
        port => format!("runner-{port}"),
    };
    let runners = (1..=args.runners)
        .map(|n| RunnerName::new(&format!("{prefix}-{n}")).expect("letters, digits and dashes"))
        .collect();
    Ok(Plan {
        grpc: args.grpc,
        http: args.http,
        runners,
        resources: Resources { memory, cpu_millis, slots },
        sandbox: args.sandbox,
        state: state_for_runners(args.state.as_deref()),
        grace: args.grace,
    })
}

fn state_for_runners(state: Option<&Path>) -> PathBuf {
    let directory = match state {
        Some(directory) => directory.join("runners"),
        // The user's id keeps two users of one machine apart.
        None => std::env::temp_dir().join(format!("stoker-{}", machine::user())),
    };
    std::path::absolute(&directory).unwrap_or(directory)
}

fn log(verbose: u8) {
    let level = match verbose {
        0 => tracing_subscriber::filter::LevelFilter::WARN,
        1 => tracing_subscriber::filter::LevelFilter::INFO,
        _ => tracing_subscriber::filter::LevelFilter::DEBUG,
    };
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let builder =
        tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).with_target(false);
    let builder = if plain { builder.with_ansi(false) } else { builder };
    builder.init();
}
