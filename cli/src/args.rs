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
    /// Call a function: body to STDOUT, errors and times to STDERR.
    Call(Call),
    /// List runners.
    #[command(after_help = "Examples:\n  stoker runners\n  stoker runners -o json")]
    Runners,
    /// Let a runner finish what it has and give it nothing more, until it is uncordoned or stopped.
    Drain(Drain),
    /// Let a drained runner take calls again.
    Uncordon(Uncordon),
    /// Show what a function wrote.
    Logs(Logs),
    /// Load a function and show percentiles, throughput and cold starts.
    Bench(Bench),
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
  stoker up --functions examples/functions.yaml
  stoker up --functions mine.yaml --runners 3 --memory 1GiB --state ./stoker-state
  stoker up --sandbox process --grpc 127.0.0.1:0 --http 127.0.0.1:0
  stoker up --etcd http://127.0.0.1:2379

Nobody is asked who they are: whoever reaches the gRPC address can run programs on this machine, whoever reaches the HTTP address can
call every function. Both are loopback unless told otherwise.")]
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
    /// The authority that signed etcd's certificate, for https endpoints; in builds with the feature `tls`.
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
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  stoker logs demo/hello\n  stoker logs demo/hello --follow")]
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
