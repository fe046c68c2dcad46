//! What can be typed. Only words and their checks; what they do is elsewhere.

use std::net::SocketAddr;
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
  stoker up --sandbox process --grpc 127.0.0.1:0 --http 127.0.0.1:0")]
pub struct Up {
    /// Function files to apply at start.
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
    /// How functions are kept apart: auto, native or process.
    #[arg(long, default_value = "auto", value_name = "DRIVER")]
    pub sandbox: Choice,
    /// Where functions are kept over a restart [default: nowhere].
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Where gRPC is served.
    #[arg(long, default_value = "127.0.0.1:7070", value_name = "ADDRESS")]
    pub grpc: SocketAddr,
    /// Where HTTP is served.
    #[arg(long, default_value = "127.0.0.1:7080", value_name = "ADDRESS")]
    pub http: SocketAddr,
    /// How long calls may take to finish after Ctrl-C.
    #[arg(long, default_value = "10s", value_parser = parse_duration, value_name = "TIME")]
    pub grace: Duration,
    /// Do not call the functions of the files at start.
    #[arg(long)]
    pub no_try: bool,
    /// Log more; twice for everything.
    #[arg(long, short, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  stoker apply -f functions.yaml\n  stoker apply -f a.yaml -f b.yaml -o json"
)]
pub struct Apply {
    /// Function files.
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
  stoker bench demo/echo-python -c 64 -d 10 --size 1024 --door session
  stoker bench demo/echo-python --door http --http http://127.0.0.1:7080 -o json")]
pub struct Bench {
    /// APP/FN.
    #[arg(value_name = "APP/FN")]
    pub function: String,
    /// Calls at once.
    #[arg(long, short, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000), value_name = "N")]
    pub concurrency: u32,
    /// Seconds.
    #[arg(long, short, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600), value_name = "SECS")]
    pub duration: u64,
    /// Bytes of the body.
    #[arg(long, short, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(0..=3_145_728), value_name = "BYTES")]
    pub size: u32,
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
    fn headers_split_at_the_first_equals_sign() {
        assert_eq!(header("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert!(header("A").is_err() && header("=b").is_err());
    }
}
