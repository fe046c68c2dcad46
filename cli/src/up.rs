//! `up`: a fleet on this machine, from the first check to the last drained call.

mod places;
mod programs;
mod sample;
mod stop;
mod trial;
mod watch;

use std::convert::Infallible;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use stoker_core::{FunctionSpec, Resources, RunnerName};
use stoker_registry::{EtcdRegistry, MemoryRegistry, Registry, etcd};
use stoker_runner::machine::Machine;
use stoker_runtime::config::{Outcome, Program, Settings, Table};
use stoker_runtime::logs::{self, Logs};
use stoker_runtime::tls;

use self::places::Places;
use self::sample::Sample;
use self::stop::Stop;
use self::watch::Watch;
use crate::args::{Common, Output, Up};
use crate::failure::Failure;
use crate::fleet::{Fleet, Images, Lambda, Plan};
use crate::{client, functions, output};

/// The gRPC port that `stoker` looks for when it is told nothing.
const DEFAULT_GRPC_PORT: u16 = 7070;

/// The admin port beside it.
const DEFAULT_ADMIN_PORT: u16 = 7090;

/// An etcd that does not answer for so long when a fleet starts is not there.
const ETCD_LIMIT: Duration = Duration::from_secs(10);

/// What `up` takes of the settings that servers have.
static TABLES: [Table; 1] = [logs::KEYS];

/// A start that takes longer than this needs a word.
const SLOW_START: Duration = Duration::from_secs(3);

/// Lines of the log that still wait at the end are written for at most so long.
const LAST_LINES: Duration = Duration::from_secs(1);

pub fn run(args: Up, common: &Common) -> Result<(), Failure> {
    let (log, settings) = log(args.verbose)?;
    let result = prepare(args, common, settings);
    log.stop(LAST_LINES);
    result
}

fn prepare(args: Up, common: &Common, settings: Settings) -> Result<(), Failure> {
    // What can be wrong is found before anything is started.
    let specs = functions::read(&args.functions)?;
    let addresses = [
        (args.grpc, "--grpc", "run programs on this machine"),
        (args.http, "--http", "call every function"),
        (admin(&args), "--admin", "see which functions there are and how they are called"),
    ];
    for (address, flag, what) in addresses {
        free(address, flag)?;
        if tls::open_to_others(address) {
            if !common.insecure {
                return Err(closed(address, flag, what));
            }
            output::say(&exposed(address, flag, what));
        }
    }
    let name = name(&args);
    // Until all that is in them has ended.
    let places = Places::take(args.state.as_deref(), (args.grpc.port() == 0).then_some(name.as_str()))?;
    let name = places.name().unwrap_or(&name).to_owned();
    let plan = plan(&args, &name, &places, settings)?;
    let registry = registry(&args, &places)?;
    places.clear_queue(&name)?;
    // What changes there is no change of a function.
    let own = places.all().into_iter().chain(plan.images.directory.clone()).collect();
    let result = client::runtime()?.block_on(serve(args, common, plan, registry, specs, own));
    result.and(places.clear_queue(&name))
}

async fn serve(
    args: Up,
    common: &Common,
    plan: Plan,
    registry: Arc<dyn Registry>,
    specs: Vec<FunctionSpec>,
    own: Vec<PathBuf>,
) -> Result<(), Failure> {
    let mut stop = Stop::listen()?;
    let resources = plan.resources;
    let mut patience = pin!(patience());
    tokio::select! {
        known = known(&args, &*registry) => known?,
        () = stop.asked() => return Ok(()),
        never = &mut patience => match never {},
    }
    let mut starting = pin!(Fleet::start(plan, Arc::clone(&registry)));
    let (mut fleet, asked) = tokio::select! {
        started = &mut starting => (started?, false),
        // Not left halfway: only a fleet that stands can take down what it has made.
        () = stop.asked() => (starting.await?, true),
        never = &mut patience => match never {},
    };
    // As anybody else would: it is the balancer that finds out what an image's name leads to.
    let server = format!("http://{}", reachable(fleet.grpc));
    let applied = match asked {
        true => None,
        false => tokio::select! {
            applied = apply(&server, &specs) => Some(applied),
            () = stop.asked() => None,
            never = &mut patience => match never {},
        },
    };
    let opened = match applied {
        Some(Ok(())) => tokio::select! {
            () = fleet.open() => true,
            () = stop.asked() => false,
        },
        _ => false,
    };
    if !opened {
        fleet.stop().await;
        return applied.unwrap_or(Ok(()));
    }
    let all: Vec<_> = registry.functions().borrow().by_name.values().map(Arc::clone).collect();
    match common.output {
        Output::Json => tell(output::print_json(&json!({
            "grpc": server, "http": format!("http://{}", reachable(fleet.http)),
            "admin": format!("http://{}", reachable(fleet.admin)),
            "runners": args.runners, "sandbox": fleet.sandbox, "memory": resources.memory,
            "cpu_millis": resources.cpu_millis,
            "functions": all.iter().map(|spec| spec.name.as_str()).collect::<Vec<_>>(),
        }))),
        Output::Table => introduce(&fleet, &args, resources, &all, &specs),
    }
    let renewer = fleet.renewer();
    let try_and_wait = async {
        if !args.no_try && common.output == Output::Table && !specs.is_empty() {
            trial::run(&server, &specs).await?;
        }
        if common.output == Output::Table {
            let watched =
                if args.watch { " What changes in the functions' directories is taken up." } else { "" };
            tell(output::print(&format!("\nServing.{watched} Ctrl-C drains and stops.\n")));
        }
        if args.watch {
            Watch::new(&args.functions, specs, own, server, renewer).run().await?;
        }
        Ok::<_, Failure>(())
    };
    let result = tokio::select! {
        result = async { try_and_wait.await?; std::future::pending().await } => result,
        failure = fleet.lost() => Err(failure),
        () = stop.asked() => Ok(()),
    };
    output::say(&format!(
        "\nStopping: calls have {} to finish. Ctrl-C again leaves at once.\n",
        stoker_core::units::format_duration(args.grace)
    ));
    // A second signal ends the process; the spawner sees it go and ends every function.
    fleet.stop().await;
    result
}

async fn apply(server: &str, specs: &[FunctionSpec]) -> Result<(), Failure> {
    match specs {
        [] => Ok(()),
        _ => functions::send(&mut client::functions(server).await?, specs, false).await.map(drop),
    }
}

/// Says that it goes on, to one who waits for a start; ends with it.
async fn patience() -> Infallible {
    tokio::time::sleep(SLOW_START).await;
    output::say("Still starting; -v shows what is waited for.\n");
    std::future::pending().await
}

/// What is told to a person who may have left: a fleet serves on when nobody reads its STDOUT.
fn tell(result: Result<(), Failure>) {
    result.ok();
}

/// Returns once the functions that are there already are known.
async fn known(args: &Up, registry: &dyn Registry) -> Result<(), Failure> {
    let mut functions = registry.functions();
    // The sender lives in the registry.
    match tokio::time::timeout(ETCD_LIMIT, functions.wait_for(|functions| functions.known)).await {
        Ok(_) => Ok(()),
        Err(_) => Err(Failure::away(
            format!("no etcd answered at {} for {} s", args.etcd.join(", "), ETCD_LIMIT.as_secs()),
            "start it, or name others with --etcd; the log above says what was in the way. Nothing was started",
        )),
    }
}

fn closed(address: SocketAddr, flag: &str, what: &str) -> Failure {
    Failure::usage(
        format!(
            "{address} can be reached from other machines, without TLS, and nobody is asked who they are: whoever reaches it could {what}"
        ),
        format!(
            "leave {flag} at loopback; write --insecure if your network lets in nobody else; or run stoker-lb and stoker-runner, which know \
             TLS (`stoker certs`) and tokens (`stoker token`)"
        ),
    )
}

fn exposed(address: SocketAddr, flag: &str, what: &str) -> String {
    let style = output::Style::stderr();
    format!(
        "{} {address} can be reached from other machines, and nobody is asked who they are: whoever reaches it can {what}.\n  \
         Leave {flag} at loopback and put a proxy that asks in front of it, or see that your network lets in nobody else.\n",
        style.red("warning:")
    )
}

/// Where the page is.
fn admin(args: &Up) -> SocketAddr {
    let port = if args.grpc.port() == DEFAULT_GRPC_PORT { DEFAULT_ADMIN_PORT } else { 0 };
    args.admin.unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
}

/// What to call to get there: an address that means "all of this machine's" leads nowhere by itself.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
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
    let (grpc, http) = (reachable(fleet.grpc), reachable(fleet.http));
    text += &line("gRPC", format!("http://{grpc}"));
    text += &line("HTTP", format!("http://{http}"));
    text += &line("page", format!("http://{}/", reachable(fleet.admin)));
    text += &line(
        "fleet",
        format!(
            "{runners} of {} memory and {} cores",
            output::human_size(resources.memory),
            stoker_core::units::format_cpu(resources.cpu_millis)
        ),
    );
    text += &line("sandbox", fleet.sandbox.clone());
    let state = match &args.state {
        _ if !args.etcd.is_empty() => format!("functions are kept in etcd, {}", args.etcd.join(", ")),
        Some(state) => format!("functions and calls for later are kept in {}", state.display()),
        None => "functions and calls for later are forgotten at the end; --state DIR keeps them".to_owned(),
    };
    text += &line("state", state);
    if all.is_empty() {
        text += "\nThere are no functions yet. Apply some with `stoker apply -f FILE`.\n";
        tell(output::print(&text));
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
        || specs.iter().chain(all.iter().map(Arc::as_ref)).filter(|spec| programs::missing(spec).is_none());
    if let Some(spec) = runnable().next() {
        text += &format!("\n{}\n\n", style.bold("Call one"));
        let (name, sample) = (&spec.name, Sample::of(spec));
        let data = functions::quoted(sample.body);
        let default = SocketAddr::from((Ipv4Addr::LOCALHOST, DEFAULT_GRPC_PORT));
        let server = if grpc == default { String::new() } else { format!(" --server http://{grpc}") };
        text += &format!("  stoker call {name} --data {data}{server}\n");
        text += &format!("  curl -d {data} http://{http}/invoke/{name}\n");
        // One that anything can call.
        let callable = |trigger: &&stoker_core::function::Trigger| {
            trigger.is_plain() && !trigger.http.contains(['{', '*'])
        };
        let with_trigger = runnable().find(|spec| spec.triggers.iter().any(|trigger| callable(&trigger)));
        if let Some((spec, trigger)) = with_trigger.and_then(|s| Some((s, s.triggers.iter().find(callable)?)))
        {
            let data = functions::quoted(Sample::of(spec).body);
            text += &format!("  curl -d {data} http://{http}/t/{}{}\n", spec.name.app(), trigger.http);
        }
        if programs::program("grpcurl", Path::new("/"), None).is_some() {
            text += &format!(
                "  grpcurl -plaintext -d '{{\"function\": \"{name}\", \"body\": \"{}\"}}' {grpc} stoker.v1.CallService/Invoke\n",
                sample.base64
            );
        }
    }
    tell(output::print(&text));
}

fn registry(args: &Up, places: &Places) -> Result<Arc<dyn Registry>, Failure> {
    if !args.etcd.is_empty() {
        let mut config = etcd::Config::new(args.etcd.clone());
        let identity = args.etcd_certificate.clone().zip(args.etcd_key.clone());
        config.tls = args.etcd_ca.clone().map(|ca| etcd::Tls { ca, identity });
        let user = args.etcd_user.clone().zip(args.etcd_password.clone());
        config.user = user.map(|(name, password)| etcd::User { name, password });
        let registry = EtcdRegistry::connect(config).map_err(|error| {
            Failure::usage(
                error.to_string(),
                "write --etcd like http://127.0.0.1:2379; for https give --etcd-ca too",
            )
        })?;
        return Ok(Arc::new(registry));
    }
    let Some(file) = places.functions() else { return Ok(Arc::new(MemoryRegistry::default())) };
    let registry = MemoryRegistry::open(&file).map_err(|error| {
        let advice = match &error {
            stoker_registry::Error::Store { cause, .. } if cause.kind() == std::io::ErrorKind::InvalidData => {
                format!(
                    "correct {0}, or move it away: without it `up` starts with no functions, and `stoker apply` brings them back",
                    file.display()
                )
            }
            _ => "check that --state names a directory that can be read and written".to_owned(),
        };
        Failure::usage(error.to_string(), advice)
    })?;
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

/// What the names of the runners begin with. A runner cleans up what an earlier one of its name left behind, so fleets side by side
/// need names of their own; in etcd there are also those of other machines.
fn name(args: &Up) -> String {
    let name = match args.grpc.port() {
        DEFAULT_GRPC_PORT => "runner".to_owned(),
        0 => format!("runner-p{}", std::process::id()),
        port => format!("runner-{port}"),
    };
    if args.etcd.is_empty() {
        return name;
    }
    let system = rustix::system::uname();
    let host = system.nodename().to_string_lossy();
    let short = host.split('.').next().unwrap_or_default();
    let host: String =
        short.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' }).take(40).collect();
    format!("{host}-{name}")
}

fn plan(args: &Up, name: &str, places: &Places, settings: Settings) -> Result<Plan, Failure> {
    let machine = Machine::look();
    let count = u64::from(args.runners);
    let memory = args.memory.unwrap_or(machine.spare_memory() / count);
    if !stoker_core::function::limits::MEMORY.contains(&memory) {
        let size = stoker_core::units::format_size(memory);
        let sizes = stoker_core::function::limits::MEMORY;
        let [least, most] = [sizes.start(), sizes.end()].map(|size| stoker_core::units::format_size(*size));
        return Err(Failure::usage(
            format!("a runner has {least} to {most} of memory, and not {size}"),
            "write --memory like 1GiB",
        ));
    }
    let cpu_millis = args.cpu.unwrap_or(machine.cpu_millis);
    if cpu_millis == 0 {
        return Err(Failure::usage("a runner without CPU can run nothing", "write --cpu like 2 or 500m"));
    }
    // A container below 8 MiB is rare; more than a thousand on one machine is for those who ask the runner itself.
    let slots = u32::try_from((memory >> 23).clamp(1, 1000)).unwrap_or(1000);
    let runners = (1..=args.runners)
        .map(|n| RunnerName::new(&format!("{name}-{n}")).expect("letters, digits and dashes"))
        .collect();
    Ok(Plan {
        grpc: args.grpc,
        http: args.http,
        admin: admin(args),
        settings: Arc::new(settings),
        runners,
        resources: Resources { memory, cpu_millis, slots },
        sandbox: args.sandbox,
        oci_runtime: args.oci_runtime.clone(),
        docker_socket: args.docker_socket.clone(),
        state: places.runners().to_owned(),
        queue: places.queue(name),
        code: places.code(name),
        lambda: Lambda {
            emulate: args.lambda_emulate.clone(),
            trusted_proxies: args.lambda_trusted_proxies.clone(),
        },
        images: Images {
            directory: args
                .images
                .as_ref()
                .map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone())),
            budget: args.images_budget,
            credentials: args.registry_credentials.clone(),
            without_tls: args.registry_without_tls.clone(),
            ca: args.registry_ca.clone(),
        },
        secrets: args.secrets.clone(),
        grace: args.grace,
    })
}

/// The log, for people: warnings, and more with -v; and the settings that say so. The variables of the servers' logs mean the same here.
fn log(verbose: u8) -> Result<(Logs, Settings), Failure> {
    let program = Program {
        name: "stoker",
        version: env!("CARGO_PKG_VERSION"),
        about: "",
        examples: "",
        tables: &TABLES,
    };
    let variables: Vec<_> = std::env::vars_os()
        .filter(|(name, _)| name == "STOKER_LOG_LEVEL" || name == "STOKER_LOG_FORMAT")
        .collect();
    let said = |variable: &str| variables.iter().any(|(name, _)| name == variable);
    let mut flags = Vec::new();
    if verbose > 0 || !said("STOKER_LOG_LEVEL") {
        // The name begins those of all our crates.
        let level = ["warn", "info", "info,stoker=debug"].get(usize::from(verbose)).unwrap_or(&"debug");
        flags.push(OsString::from(format!("--log-level={level}")));
    }
    if !said("STOKER_LOG_FORMAT") {
        flags.push("--log-format=pretty".into());
    }
    let settings = match program.load(flags, variables) {
        Ok(Outcome::Run(settings)) => settings,
        Ok(Outcome::Say(_)) => unreachable!("nothing asks for it"),
        Err(mistakes) => return Err(Failure::usage(mistakes.to_string().trim_end(), "correct the variable")),
    };
    let logs = Logs::start(&settings);
    let logs = logs.map_err(|error| Failure::platform(format!("cannot start the log: {error}"), ""))?;
    Ok((logs, settings))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    fn up(words: &[&str]) -> Up {
        let cli = crate::args::Cli::parse_from(["stoker", "up"].iter().chain(words));
        let crate::args::Command::Up(up) = cli.command else { panic!("it is `up`") };
        up
    }

    #[test]
    fn fleets_side_by_side_have_other_names() {
        assert_eq!(name(&up(&[])), "runner");
        assert_eq!(name(&up(&["--grpc", "127.0.0.1:7970"])), "runner-7970");
        let any = name(&up(&["--grpc", "127.0.0.1:0"]));
        assert_eq!(any, format!("runner-p{}", std::process::id()));
        let in_etcd = name(&up(&["--etcd", "http://127.0.0.1:2379"]));
        assert!(in_etcd.ends_with("-runner") && RunnerName::new(&in_etcd).is_some(), "{in_etcd}");
    }

    #[test]
    fn an_address_to_call_is_one_that_leads_somewhere() {
        for (bound, called) in
            [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:2", "[::1]:2"), ("127.0.0.5:3", "127.0.0.5:3")]
        {
            assert_eq!(reachable(bound.parse().unwrap()).to_string(), called);
        }
    }

    #[test]
    fn a_spoiled_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().to_string_lossy().into_owned();
        std::fs::write(directory.path().join("functions.json"), "{").unwrap();
        let args = up(&["--state", &state]);
        // Until all that is in them has ended.
        let places = Places::take(args.state.as_deref(), None).unwrap();
        let failure = registry(&args, &places).err().unwrap();
        let said = format!("{failure:?}");
        assert!(said.contains("functions.json, or move it away"), "{said}");
    }

    #[test]
    fn etcd_is_named_as_it_must_be_written() {
        let directory = tempfile::tempdir().unwrap();
        let places = Places::take(Some(directory.path()), None).unwrap();
        for wrong in ["127.0.0.1:2379", "https://127.0.0.1:2379"] {
            let args = up(&["--etcd", wrong]);
            assert!(registry(&args, &places).is_err(), "{wrong}");
        }
    }
}
