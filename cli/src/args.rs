//! What can be typed. Only words and their checks; what they do is elsewhere.

use std::ffi::OsString;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use stoker_core::units::{parse_duration, parse_size};
use stoker_sandbox::select::Choice;

/// Keeps functions hot: a serverless fleet on this machine, and the client of every other.
#[derive(Debug, Parser)]
#[command(
    name = "stoker",
    version,
    max_term_width = 100,
    after_help = "\
Examples:
  stoker up --functions examples/functions.yaml    a whole fleet on this machine
  stoker call demo/hello --data Ada                one call
  stoker bench demo/echo-python -c 8 -d 5          load a function

Exit codes: 0 success · 1 the function failed · 2 the request was wrong · 3 the platform failed"
)]
pub struct Cli {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub command: Command,
}

/// For every command.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// The balancer's gRPC address.
    #[arg(
        long,
        global = true,
        env = "STOKER_SERVER",
        default_value = "http://127.0.0.1:7070",
        value_name = "URL"
    )]
    pub server: String,
    /// Who we are: a token of the fleet; better given by its variable or in a file, since flags can be seen by all users of a machine.
    #[arg(
        long,
        global = true,
        env = "STOKER_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN",
        help_heading = "Identity"
    )]
    pub token: Option<String>,
    /// The file that the token is in.
    #[arg(long, global = true, env = "STOKER_TOKEN_FILE", value_name = "FILE", help_heading = "Identity")]
    pub token_file: Option<PathBuf>,
    /// The authority that signed the balancer's certificate, for https:// [default: those that the system trusts].
    #[arg(long, global = true, env = "STOKER_CA_FILE", value_name = "FILE", help_heading = "Identity")]
    pub ca: Option<PathBuf>,
    /// Our own certificate, where we are known by that; with --cert-key.
    #[arg(long, global = true, env = "STOKER_CERT_FILE", value_name = "FILE", help_heading = "Identity")]
    pub cert: Option<PathBuf>,
    /// The key of --cert.
    #[arg(long, global = true, env = "STOKER_KEY_FILE", value_name = "FILE", help_heading = "Identity")]
    pub cert_key: Option<PathBuf>,
    /// Send a token without TLS to another machine; for `up`: serve other machines, without TLS and without asking anybody who they are.
    #[arg(long, global = true, help_heading = "Identity")]
    pub insecure: bool,
    /// How answers are written.
    #[arg(long, short, global = true, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// How answers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// How answers are wanted by a command line that the parser did not understand.
pub fn output(line: impl IntoIterator<Item = OsString>) -> Output {
    let mut found = Output::Table;
    let mut line = line.into_iter().skip(1).map(|word| word.to_string_lossy().into_owned());
    while let Some(word) = line.next() {
        let value = match word.as_str() {
            // What follows is no option.
            "--" => break,
            "-o" | "--output" => line.next(),
            _ => word.strip_prefix("--output=").or_else(|| word.strip_prefix("-o")).map(str::to_owned),
        };
        if let Some(value) = value {
            // `-o=json` is `-ojson` to the parser.
            found = Output::from_str(value.strip_prefix('=').unwrap_or(&value), false).unwrap_or(found);
        }
    }
    found
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a whole fleet in this process, until Ctrl-C.
    Up(Up),
    /// Create or replace the functions of a file: all of them, or none if one is not valid.
    Apply(Apply),
    /// List functions.
    Functions(Functions),
    /// Show everything about a function.
    Describe(Function),
    /// Remove a function. Calls that run finish.
    Delete(Function),
    /// List a function's revisions, its aliases, and where its calls go.
    #[command(
        after_help = "Examples:\n  stoker revisions demo/hello\n  stoker call demo/hello:3        one of them"
    )]
    Revisions(Function),
    /// Send a part of a function's calls to its newest revision, or all of them.
    Rollout(Rollout),
    /// Send all of a function's calls to an earlier revision, at once.
    Rollback(Rollback),
    /// Give a revision of a function, or two of them, another name.
    Alias(Alias),
    /// Call a function: body to STDOUT, errors and times to STDERR.
    Call(Call),
    /// List calls that are made later, and see, wait for or cancel one.
    Calls(Calls),
    /// List runners.
    #[command(after_help = "Examples:\n  stoker runners\n  stoker runners -o json")]
    Runners,
    /// Let a runner finish what it has and give it nothing more, until it is uncordoned or stopped.
    Drain(Drain),
    /// Let a drained runner take calls again.
    Uncordon(Uncordon),
    /// Show what a function wrote.
    Logs(Logs),
    /// Watch the fleet: runners, functions, rates, latencies, cold starts, queues.
    Top(Top),
    /// Tell why a call went where it went: who was asked, who refused, what it waited for, why it was cold.
    Explain(Explain),
    /// Load a function and show percentiles, throughput and cold starts.
    Bench(Bench),
    /// Make an authority and certificates for a fleet, for its operator and for clients.
    Certs(Certs),
    /// Make a token, and what the balancers' access file has of it.
    Token(Token),
    /// Try a fleet on paper: what would another runner, half the memory, or twice the load do?
    Simulate(Simulate),
    /// Write the completions of a shell to STDOUT.
    #[command(
        after_help = "Examples:\n  stoker completions bash > ~/.local/share/bash-completion/completions/stoker"
    )]
    Completions {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stoker certs --directory certs --host lb.example --host 10.0.0.5
  stoker certs --directory certs --runner node-7 --client ci     more of the same authority

Without names it makes one certificate for all balancers, one for all runners, and one of a client `admin`. What is there is never
written over. Where the directory has an authority that was made here before, that one signs.")]
pub struct Certs {
    /// Where they are put: ca.pem, ca.key, balancer.pem, balancer.key, …
    #[arg(long, default_value = "certs", value_name = "DIR")]
    pub directory: PathBuf,
    /// A name or address by which clients reach balancers, besides localhost; may stand several times.
    #[arg(long = "host", value_name = "HOST")]
    pub hosts: Vec<String>,
    /// A balancer of this name; may stand several times.
    #[arg(long = "balancer", value_name = "NAME")]
    pub balancers: Vec<String>,
    /// A runner of this name; may stand several times.
    #[arg(long = "runner", value_name = "NAME")]
    pub runners: Vec<String>,
    /// A client of this name; may stand several times.
    #[arg(long = "client", value_name = "NAME")]
    pub clients: Vec<String>,
    /// How long they are good for.
    #[arg(long, default_value_t = 365, value_name = "DAYS", value_parser = clap::value_parser!(u64).range(1..=3650))]
    pub days: u64,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stoker token ci --invoke shop --manage shop > ci.token
  stoker token oncall --observe '*'")]
pub struct Token {
    /// What whoever has it is called, in limits and in the audit.
    pub name: String,
    /// Apps whose functions it may call: names, beginnings like web-*, or *.
    #[arg(long, value_name = "APP")]
    pub invoke: Vec<String>,
    /// Apps whose functions it may change; with * also the fleet.
    #[arg(long, value_name = "APP")]
    pub manage: Vec<String>,
    /// Apps whose functions and logs it may see; with * also the fleet.
    #[arg(long, value_name = "APP")]
    pub observe: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stoker up --functions examples/functions.yaml
  stoker up --functions mine.yaml --runners 3 --memory 1GiB --state ./stoker-state
  stoker up --sandbox process --grpc 127.0.0.1:0 --http 127.0.0.1:0
  stoker up --etcd http://127.0.0.1:2379

Nobody is asked who they are: whoever reaches the gRPC address can run programs on this machine, whoever reaches the HTTP address can
call every function. Both are loopback; other addresses take --insecure. A fleet that others are to use is made of the servers, which know
TLS and tokens.")]
pub struct Up {
    /// Function files to apply at start; - is STDIN.
    #[arg(long, short, num_args = 1.., value_name = "FILE")]
    pub functions: Vec<PathBuf>,
    /// Runners.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub runners: u16,
    /// Memory that each runner offers [default: four fifths of what this machine or its cgroup has, shared out].
    #[arg(long, value_parser = parse_size, value_name = "SIZE")]
    pub memory: Option<u64>,
    /// Cores that each runner offers, like 2 or 500m [default: what this machine or its cgroup has].
    #[arg(long, value_parser = stoker_core::units::parse_cpu, value_name = "N")]
    pub cpu: Option<u32>,
    /// How functions are kept apart: auto, native, oci, docker or process.
    #[arg(long, default_value = "auto", value_name = "DRIVER")]
    pub sandbox: Choice,
    /// Where functions are and runners are found, in place of this process's memory; its members.
    #[arg(long, num_args = 1.., value_delimiter = ',', value_name = "URL", conflicts_with = "state")]
    pub etcd: Vec<String>,
    /// The authority that signed etcd's certificate, for https endpoints.
    #[arg(long, requires = "etcd", value_name = "FILE")]
    pub etcd_ca: Option<PathBuf>,
    /// Our own certificate, where etcd asks for one.
    #[arg(long, requires_all = ["etcd_ca", "etcd_key"], value_name = "FILE")]
    pub etcd_certificate: Option<PathBuf>,
    /// Its key.
    #[arg(long, requires = "etcd_certificate", value_name = "FILE")]
    pub etcd_key: Option<PathBuf>,
    /// Who we are, where etcd asks for a password.
    #[arg(long, requires_all = ["etcd", "etcd_password"], value_name = "NAME")]
    pub etcd_user: Option<String>,
    /// The password; better given by its variable, since flags can be seen by all users of a machine.
    #[arg(long, env = "STOKER_ETCD_PASSWORD", hide_env_values = true, value_name = "TEXT")]
    pub etcd_password: Option<String>,
    /// Where functions are kept over a restart [default: nowhere].
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Where gRPC is served.
    #[arg(long, default_value = "127.0.0.1:7070", value_parser = address, value_name = "ADDRESS")]
    pub grpc: SocketAddr,
    /// Where HTTP is served.
    #[arg(long, default_value = "127.0.0.1:7080", value_parser = address, value_name = "ADDRESS")]
    pub http: SocketAddr,
    /// Where the page of the fleet is, and /metrics of its balancer [default: 127.0.0.1:7090, beside another gRPC address any free port].
    #[arg(long, value_parser = address, value_name = "ADDRESS")]
    pub admin: Option<SocketAddr>,
    /// Where images of functions are kept over a restart, a directory in it for each runner [default: nowhere].
    #[arg(long, value_name = "DIR")]
    pub images: Option<PathBuf>,
    /// What each runner's images may take on disk.
    #[arg(long, default_value = "20GiB", value_parser = parse_size, value_name = "SIZE")]
    pub images_budget: u64,
    /// Files like Docker's config.json, which functions name in `credentials`.
    #[arg(long, value_name = "DIR")]
    pub registry_credentials: Option<PathBuf>,
    /// Registries that are asked without TLS, beside those on loopback: host or host:port.
    #[arg(long, num_args = 1.., value_delimiter = ',', value_name = "HOST")]
    pub registry_without_tls: Vec<String>,
    /// Certificates of further authorities that registries may have theirs from (PEM).
    #[arg(long, value_name = "FILE")]
    pub registry_ca: Option<PathBuf>,
    /// How long calls may take to finish after Ctrl-C.
    #[arg(long, default_value = "10s", value_parser = parse_duration, value_name = "TIME")]
    pub grace: Duration,
    /// Do not call the functions of the files at start.
    #[arg(long)]
    pub no_try: bool,
    /// Log more than warnings; twice for every step, three times also for those of libraries.
    #[arg(long, short, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  stoker apply -f functions.yaml\n  stoker apply -f a.yaml -f b.yaml -o json\n  generate | stoker apply -f -"
)]
pub struct Apply {
    /// Function files; - is STDIN.
    #[arg(long = "file", short = 'f', required = true, num_args = 1.., value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// New revisions get no calls until they are rolled out.
    #[arg(long)]
    pub hold: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  stoker functions\n  stoker functions --app demo -o json")]
pub struct Functions {
    /// Only of this app.
    #[arg(long, default_value = "")]
    pub app: String,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  stoker describe demo/hello\n  stoker delete demo/hello")]
pub struct Function {
    /// APP/FN, or the function's id.
    #[arg(value_name = "APP/FN")]
    pub function: String,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stoker apply -f functions.yaml --hold      a new revision, without calls
  stoker rollout demo/hello --to 20%         a fifth of them
  stoker rollout demo/hello --promote        all, also to what is applied later

What the newest revision does not take goes where most calls went before.")]
pub struct Rollout {
    /// APP/FN, or the function's id.
    #[arg(value_name = "APP/FN")]
    pub function: String,
    /// How many calls go to the newest revision.
    #[arg(long, value_parser = percent, value_name = "PERCENT", required_unless_present = "promote")]
    pub to: Option<u32>,
    /// All of them, which is --to 100%.
    #[arg(long, conflicts_with = "to")]
    pub promote: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stoker rollback demo/hello            in a rollout where most calls went before it, else the revision before
  stoker rollback demo/hello --to 3

What is applied later gets no calls until it is rolled out.")]
pub struct Rollback {
    /// APP/FN, or the function's id.
    #[arg(value_name = "APP/FN")]
    pub function: String,
    /// The revision.
    #[arg(long, value_name = "REVISION", value_parser = clap::value_parser!(u64).range(1..))]
    pub to: Option<u64>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stoker alias demo/hello live --to 3
  stoker alias demo/hello live --to 3 --with 4=10%
  stoker alias demo/hello live --delete
  stoker call demo/hello:live")]
pub struct Alias {
    /// APP/FN, or the function's id.
    #[arg(value_name = "APP/FN")]
    pub function: String,
    /// The name: letters, digits, - and _, not only digits.
    #[arg(value_name = "ALIAS")]
    pub name: String,
    /// The revision that it leads to.
    #[arg(long, value_name = "REVISION", required_unless_present = "delete", value_parser = clap::value_parser!(u64).range(1..))]
    pub to: Option<u64>,
    /// A second revision, and how many calls go there.
    #[arg(long, value_name = "REVISION=PERCENT", value_parser = weighted, requires = "to")]
    pub with: Option<(u64, u32)>,
    /// What it is for.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    pub description: String,
    /// Remove the alias.
    #[arg(long, conflicts_with = "to")]
    pub delete: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stoker drain node-3 && ssh node-3 systemctl restart stoker-runner
  stoker drain node-3 --no-wait
  stoker drain node-3 --timeout 5m

Exit code 0 means that nothing is in flight there. Calls that go on longer are not cut off: they only keep this command waiting.")]
pub struct Drain {
    /// Its name, as `stoker runners` shows it.
    pub runner: String,
    /// Return once the runner was told, and not when it has finished its calls.
    #[arg(long)]
    pub no_wait: bool,
    /// Give up waiting after this; the runner stays drained.
    #[arg(long, value_parser = parse_duration, value_name = "TIME", conflicts_with = "no_wait")]
    pub timeout: Option<Duration>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  stoker uncordon node-3")]
pub struct Uncordon {
    /// Its name, as `stoker runners` shows it.
    pub runner: String,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stoker call demo/hello --data Ada
  stoker call demo/echo-python --data @picture.png > copy.png
  cat big.bin | stoker call demo/echo-python --data - --show-timing > /dev/null
  stoker call demo/hello --header X-Tone=kind --timeout 2s -o json")]
pub struct Call {
    /// APP/FN, or the function's id.
    #[arg(value_name = "APP/FN")]
    pub function: String,
    /// The body: a text, @FILE, or - for STDIN.
    #[arg(long, short, default_value = "", value_name = "TEXT|@FILE|-", hide_default_value = true)]
    pub data: String,
    /// A header for the function; may stand several times.
    #[arg(long = "header", short = 'H', value_parser = header, value_name = "K=V")]
    pub headers: Vec<(String, String)>,
    /// How long the call may take.
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub timeout: Option<Duration>,
    /// Show where the time went.
    #[arg(long)]
    pub show_timing: bool,
    /// Do not wait for the answer: the call is kept on disk and made when there is room. Its id goes to STDOUT.
    #[arg(long = "async", conflicts_with = "show_timing")]
    pub later: bool,
    /// A second call of the same function with the same key is the same call.
    #[arg(long, requires = "later", default_value = "", hide_default_value = true, value_name = "KEY")]
    pub key: String,
    /// Not before this time has passed.
    #[arg(long, requires = "later", value_parser = parse_duration, value_name = "TIME")]
    pub delay: Option<Duration>,
}

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  stoker call demo/hello --data Ada --async       says the call's id
  stoker calls --function demo/hello --state dead
  stoker calls wait 0196f3c8a0b17c3e9d1f2a3b4c5d6e7f --timeout 30s
  stoker calls get 0196f3c8a0b17c3e9d1f2a3b4c5d6e7f -o json
  stoker calls cancel 0196f3c8a0b17c3e9d1f2a3b4c5d6e7f"
)]
pub struct Calls {
    #[command(subcommand)]
    pub command: Option<CallsCommand>,
    /// Only of this function: APP/FN, or its id.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "APP/FN")]
    pub function: String,
    /// Only in this state.
    #[arg(long, value_enum)]
    pub state: Option<State>,
    /// At most so many, the newest first.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000), value_name = "N")]
    pub limit: u32,
}

#[derive(Debug, Subcommand)]
pub enum CallsCommand {
    /// Show a call, its attempts and its result.
    Get {
        #[arg(value_name = "CALL")]
        id: String,
    },
    /// Wait until a call has ended: body to STDOUT, as `call` does.
    Wait {
        #[arg(value_name = "CALL")]
        id: String,
        /// Give up waiting after this; the call goes on.
        #[arg(long, value_parser = parse_duration, value_name = "TIME")]
        timeout: Option<Duration>,
    },
    /// Cancel a call that has not ended.
    Cancel {
        #[arg(value_name = "CALL")]
        id: String,
    },
    /// Make calls again that were given up, with all their attempts and their whole age before them.
    #[command(after_help = "\
Examples:
  stoker calls redrive 0196f3c8a0b17c3e9d1f2a3b4c5d6e7f
  stoker calls redrive --function demo/hello                all of its calls that were given up

What went to a `dead_letter` goes there again if it is given up again.")]
    Redrive {
        #[arg(value_name = "CALL", required_unless_present = "function")]
        ids: Vec<String>,
        /// All of this function that were given up, and are still known.
        #[arg(
            long,
            default_value = "",
            hide_default_value = true,
            value_name = "APP/FN",
            conflicts_with = "ids"
        )]
        function: String,
    },
}

/// How a call for later stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum State {
    Queued,
    Running,
    Done,
    /// Given up.
    Dead,
    Cancelled,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stoker explain 01977c3e5d8a7b02a9a2c36f1d0e4b57
  stoker explain 01977c3e5d8a7b02a9a2c36f1d0e4b57 --server http://lb1:7070,http://lb2:7070

A balancer knows only the calls that it took itself, and of those the last ones: name all balancers of a fleet, and ask soon.")]
pub struct Explain {
    /// The call's id: `stoker call --show-timing` prints it, answers carry it as `Fn-Call-Id`, errors as `call_id`.
    #[arg(value_name = "CALL")]
    pub call: String,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stoker logs demo/hello
  stoker logs demo/hello --follow --tail 10 --source stderr
  stoker logs demo/hello --since 10m -o json | jq -r .text

A runner keeps the last 1,000 lines of a function, at most 512 KiB. With --follow the command goes on when the balancer goes away, and
when runners come and go; lines that were lost are counted. Ctrl-C ends it.")]
pub struct Logs {
    /// APP/FN, or the function's id.
    #[arg(value_name = "APP/FN")]
    pub function: String,
    /// Go on with what comes, until Ctrl-C.
    #[arg(long, short)]
    pub follow: bool,
    /// Only of this call.
    #[arg(long, default_value = "", value_name = "ID")]
    pub call: String,
    /// Only what was written since: how long ago, like 10m, or a moment, like 2026-11-21T09:30:00Z.
    #[arg(long, value_parser = crate::logs::since, value_name = "TIME")]
    pub since: Option<crate::logs::Since>,
    /// Begin with the last lines of those that are kept [default: all].
    #[arg(long, short = 'n', value_name = "LINES")]
    pub tail: Option<usize>,
    /// Only what came from there; may stand several times.
    #[arg(long = "source", value_enum, value_name = "SOURCE")]
    pub sources: Vec<LogSource>,
}

/// Where a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogSource {
    Stdout,
    Stderr,
    /// Stoker itself, about the function's containers.
    Stoker,
    /// A process beside the function's own.
    Extension,
}

impl From<LogSource> for stoker_proto::v1::LogSource {
    fn from(source: LogSource) -> Self {
        match source {
            LogSource::Stdout => Self::Stdout,
            LogSource::Stderr => Self::Stderr,
            LogSource::Stoker => Self::Platform,
            LogSource::Extension => Self::Extension,
        }
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stoker top
  stoker top --server http://lb1:7070,http://lb2:7070        all calls of a fleet with two balancers
  stoker top --once --sort errors
  stoker top -o json --interval 5s | jq .calls.per_second

A balancer knows the calls that came in through it: name all of them. Keys are listed under ? on the screen.")]
pub struct Top {
    /// How often it is looked, from 250ms to 1m.
    #[arg(long, short, default_value = "1s", value_parser = beat, value_name = "TIME")]
    pub interval: Duration,
    /// Write one picture to STDOUT and end.
    #[arg(long)]
    pub once: bool,
    /// Only functions with this in their name.
    #[arg(long, default_value = "", value_name = "TEXT")]
    pub filter: String,
    /// By what functions are sorted.
    #[arg(long, value_enum, default_value_t = TopSort::Calls)]
    pub sort: TopSort,
}

/// The columns of functions, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TopSort {
    Name,
    Calls,
    P50,
    P99,
    Cold,
    Errors,
    Running,
    Waiting,
    Idle,
    Runners,
}

fn beat(text: &str) -> Result<Duration, String> {
    let beat = parse_duration(text)?;
    let fits = (Duration::from_millis(250)..=Duration::from_secs(60)).contains(&beat);
    fits.then_some(beat).ok_or_else(|| "write 250ms to 1m".to_owned())
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stoker simulate                                                 a fleet of 20, 60 % busy, with made-up calls
  stoker simulate --what-if runners=+3 --what-if memory=/2        and two changes of it
  stoker simulate --placer stoker,fn-hash,least-connections       beside other ways to place calls
  stoker simulate --trace azure-2019/ --from 9h --span 30m --part 0.1 --runners 50
  stoker simulate --kill 60s --back 10s --plots ./plots -o json

No server is asked: balancers and runners are simulated, with the code that the real ones decide with. A change is KEY=CHANGE: runners,
memory, cpu, balancers, load, idle-timeout; =VALUE sets, =+VALUE and =-VALUE add, =*N and =/N scale.")]
pub struct Simulate {
    /// What is called: steady or cloud (made up), the folder of Azure's traces of 2019, or their file of 2021.
    #[arg(long, default_value = "steady", value_name = "TRACE")]
    pub trace: String,
    /// Where a file's trace begins.
    #[arg(long, default_value = "0s", value_parser = parse_duration, value_name = "TIME")]
    pub from: Duration,
    /// How long it is; for files and for cloud.
    #[arg(long, default_value = "1h", value_parser = parse_duration, value_name = "TIME")]
    pub span: Duration,
    /// Part of a file's functions, chosen by their names.
    #[arg(long, default_value_t = 1.0, value_name = "0..1")]
    pub part: f64,
    /// What a launch takes, half of the functions less; for files.
    #[arg(long, default_value = "500ms", value_parser = parse_duration, value_name = "TIME")]
    pub cold: Duration,
    /// Functions; made up.
    #[arg(long, default_value_t = 1000, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1_000_000), value_name = "N")]
    pub functions: usize,
    /// Calls; of steady.
    #[arg(long, default_value_t = 150_000, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=20_000_000), value_name = "N")]
    pub calls: usize,
    /// Part of all cores that the calls keep busy; made up.
    #[arg(long, default_value_t = 0.6, value_name = "0..1")]
    pub load: f64,
    /// Runners.
    #[arg(long, default_value_t = 20, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=100_000), value_name = "N")]
    pub runners: usize,
    /// Memory of each.
    #[arg(long, default_value = "16GiB", value_parser = parse_size, value_name = "SIZE")]
    pub memory: u64,
    /// Cores of each.
    #[arg(long, default_value = "16", value_parser = stoker_core::units::parse_cpu, value_name = "N")]
    pub cpu: u32,
    /// Cores that a function works with.
    #[arg(long, default_value = "1", value_parser = stoker_core::units::parse_cpu, value_name = "N")]
    pub function_cpu: u32,
    /// Balancers.
    #[arg(long, default_value_t = 4, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1000), value_name = "N")]
    pub balancers: usize,
    /// How long idle containers are kept.
    #[arg(long, default_value = "10m", value_parser = parse_duration, value_name = "TIME")]
    pub idle_timeout: Duration,
    /// Ways to place calls, one run each.
    #[arg(long = "placer", default_value = "stoker", value_delimiter = ',', value_parser = placer, value_name = "NAME,...")]
    pub placers: Vec<stoker_simulate::Placer>,
    /// One more run with this change; may stand several times.
    #[arg(long, value_parser = stoker_simulate::WhatIf::parse, value_name = "KEY=CHANGE")]
    pub what_if: Vec<stoker_simulate::WhatIf>,
    /// Kill a runner at this time.
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub kill: Option<Duration>,
    /// It comes back, empty, after this long.
    #[arg(long, value_parser = parse_duration, value_name = "TIME", requires = "kill")]
    pub back: Option<Duration>,
    /// Repeats a run, byte for byte.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    /// Draw charts into this folder.
    #[arg(long, value_name = "DIR")]
    pub plots: Option<PathBuf>,
}

fn placer(text: &str) -> Result<stoker_simulate::Placer, String> {
    use stoker_simulate::Placer;
    Placer::ALL.into_iter().find(|placer| placer.as_str() == text).ok_or_else(|| {
        let all: Vec<_> = Placer::ALL.iter().map(|placer| placer.as_str()).collect();
        format!("there are {}", all.join(", "))
    })
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stoker bench demo/echo-python
  stoker bench demo/echo-python -c 64 -d 10 --size 1KiB --door invoke
  stoker bench demo/echo-python --pause 300ms          what sparse traffic meets: thawing
  stoker bench unix:/tmp/iofs/lsnr.sock                a function by itself, to compare with

Each of the callers sends its next call when it has the whole answer to the last one, so a slow fleet is asked less: the times are
those of a client that waits, not those of arrivals that do not. If this command used a whole core, it was the limit.")]
pub struct Bench {
    /// APP/FN; or unix:PATH, the socket of an http-stream function, which is called without a fleet.
    #[arg(value_name = "APP/FN")]
    pub function: String,
    /// Calls at once.
    #[arg(long, short, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000), value_name = "N")]
    pub concurrency: u32,
    /// Seconds, or a time with its unit.
    #[arg(long, short, default_value = "5", value_parser = seconds, value_name = "SECS")]
    pub duration: Duration,
    /// Calls before that, at least one of each caller, which are not counted: they start containers.
    #[arg(long, default_value = "1", value_parser = seconds, value_name = "SECS")]
    pub warm_up: Duration,
    /// Rest of each caller between an answer and its next call.
    #[arg(long, default_value = "0", value_parser = seconds, value_name = "SECS")]
    pub pause: Duration,
    /// Bytes of the body.
    #[arg(long, short, default_value = "1KiB", value_parser = body_size, value_name = "SIZE")]
    pub size: usize,
    /// Through which door the calls come.
    #[arg(long, value_enum, default_value_t = Door::Session)]
    pub door: Door,
    /// The balancer's HTTP address, for the door http.
    #[arg(long, env = "STOKER_HTTP", default_value = "http://127.0.0.1:7080", value_name = "URL")]
    pub http: String,
}

/// A way into the balancer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Door {
    /// Many calls on one gRPC stream.
    Session,
    /// A unary gRPC call each.
    Invoke,
    /// An HTTP request each, on kept connections.
    Http,
    /// A call for later each: measured is how long it takes until it is kept.
    Submit,
}

/// A part of the calls, in ten-thousandths.
fn percent(text: &str) -> Result<u32, String> {
    let wrong = || format!("`{text}` is no part of the calls: write it like 20% or 0.5%, up to 100%");
    let number: f64 = text.strip_suffix('%').ok_or_else(wrong)?.trim_end().parse().map_err(|_| wrong())?;
    let parts = (number * 100.0).round();
    if !(0.0..=10_000.0).contains(&parts) || (parts - number * 100.0).abs() > 1e-6 {
        return Err(wrong());
    }
    Ok(parts as u32)
}

fn weighted(text: &str) -> Result<(u64, u32), String> {
    let wrong = || format!("`{text}` is no second revision: write it like 4=10%");
    let (revision, part) = text.split_once('=').ok_or_else(wrong)?;
    let revision = revision.parse().ok().filter(|revision| *revision > 0).ok_or_else(wrong)?;
    Ok((revision, percent(part)?))
}

/// A whole number of seconds, or a time with its unit.
fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => parse_duration(text),
    }
}

fn body_size(text: &str) -> Result<usize, String> {
    const MOST: u64 = 256 << 20;
    match parse_size(text)? {
        size @ 0..=MOST => Ok(size as usize),
        _ => Err(format!("`{text}` is more than 256MiB")),
    }
}

/// An address to listen on: an IP address or a name of this machine, and a port.
fn address(text: &str) -> Result<SocketAddr, String> {
    let wrong = |why: String| format!("{why}: write it like 127.0.0.1:7070 or localhost:7070");
    if !text.contains(':') {
        return Err(wrong("there is no port".to_owned()));
    }
    let all: Vec<_> = text.to_socket_addrs().map_err(|error| wrong(error.to_string()))?.collect();
    // A name may have both kinds; what we print and look for by default is of the older one.
    let best = all.iter().find(|address| address.is_ipv4()).or(all.first());
    best.copied().ok_or_else(|| wrong(format!("`{text}` is no address")))
}

fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is not a header: write NAME=VALUE")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_words_fit_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn parts_of_the_calls() {
        for (text, parts) in [("20%", 2000), ("0%", 0), ("100%", 10_000), ("0.05%", 5), ("12.5 %", 1250)] {
            assert_eq!(percent(text), Ok(parts), "{text}");
        }
        for wrong in ["20", "101%", "-1%", "%", "a%", "0.001%", "NaN%", "inf%"] {
            assert!(percent(wrong).is_err(), "{wrong}");
        }
        assert_eq!(weighted("4=10%"), Ok((4, 1000)));
        assert!(weighted("0=10%").is_err() && weighted("4").is_err() && weighted("x=1%").is_err());
        let words = |words: &[&str]| Cli::try_parse_from(["stoker"].iter().chain(words)).map(|_| ());
        for good in [
            &["rollout", "a/f", "--to", "20%"][..],
            &["rollout", "a/f", "--promote"],
            &["alias", "a/f", "x", "--delete"],
            &["alias", "a/f", "x", "--to", "3", "--with", "4=10%"],
            &["rollback", "a/f"],
        ] {
            words(good).unwrap();
        }
        for wrong in [
            &["rollout", "a/f"][..],
            &["rollout", "a/f", "--to", "20%", "--promote"],
            &["alias", "a/f", "x"],
            &["alias", "a/f", "x", "--delete", "--to", "3"],
            &["rollback", "a/f", "--to", "0"],
        ] {
            assert!(words(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn times_and_sizes_of_a_bench() {
        assert_eq!(seconds("2"), Ok(Duration::from_secs(2)));
        assert_eq!(seconds("250ms"), Ok(Duration::from_millis(250)));
        assert!(seconds("soon").is_err());
        assert_eq!(body_size("1KiB"), Ok(1024));
        assert!(body_size("1GiB").is_err());
    }

    #[test]
    fn addresses_have_a_port_and_may_have_a_name() {
        let of = |text: &str| address(text).map(|address| address.to_string());
        assert_eq!(of("localhost:7070"), Ok("127.0.0.1:7070".to_owned()));
        assert_eq!(of("[::1]:0"), Ok("[::1]:0".to_owned()));
        assert_eq!(of("0.0.0.0:80"), Ok("0.0.0.0:80".to_owned()));
        for wrong in ["", "localhost", "127.0.0.1", "127.0.0.1:", "127.0.0.1:99999", "::1", "http://a:1"] {
            assert!(of(wrong).is_err_and(|why| why.contains("localhost:7070")), "{wrong}");
        }
    }

    #[test]
    fn what_holds_for_every_command_is_nothing_else_anywhere() {
        let identity = ["--token", "t", "--ca", "a", "--cert", "c", "--cert-key", "k", "--insecure"];
        for command in [
            &["up"][..],
            &["apply", "-f", "x"],
            &["call", "a/f", "--data", "x"],
            &["logs", "a/f"],
            &["bench", "a/f"],
            &["drain", "r"],
            &["token", "ci"],
            &["certs"],
        ] {
            let line = [&["stoker"], command, &identity].concat();
            let common =
                Cli::try_parse_from(&line).unwrap_or_else(|error| panic!("{line:?}: {error}")).common;
            assert_eq!((common.token.as_deref(), common.insecure), (Some("t"), true));
            assert_eq!(common.cert_key, Some(PathBuf::from("k")));
        }
    }

    #[test]
    fn functions_are_in_one_place() {
        let up = |words: &[&str]| Cli::try_parse_from(["stoker", "up"].iter().chain(words)).map(|_| ());
        up(&["--etcd", "http://a:1", "http://b:1", "--functions", "f.yaml"]).unwrap();
        assert!(up(&["--etcd", "http://a:1", "--state", "d"]).unwrap_err().to_string().contains("--state"));
    }

    #[test]
    fn what_is_no_command_still_says_how_it_is_answered() {
        for (line, json) in [
            (&["stoker", "cal", "-o", "json"][..], true),
            (&["stoker", "-ojson", "cal"], true),
            (&["stoker", "-o=json", "cal"], true),
            (&["stoker", "--output=json"], true),
            (&["stoker", "--output", "json", "cal"], true),
            (&["stoker", "cal", "-o", "table"], false),
            (&["stoker", "cal", "-o", "xml"], false),
            (&["stoker", "cal", "-o"], false),
            (&["stoker", "cal", "--", "-ojson"], false),
            (&["stoker", "json"], false),
            (&[], false),
        ] {
            assert_eq!(output(line.iter().map(OsString::from)) == Output::Json, json, "{line:?}");
        }
    }

    #[test]
    fn headers_split_at_the_first_equals_sign() {
        assert_eq!(header("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert!(header("A").is_err() && header("=b").is_err());
    }
}
