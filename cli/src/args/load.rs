//! Load, real and on paper: `bench`, `simulate`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use stoker_core::units::{parse_duration, parse_size};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stoker simulate                                                 a fleet of 20, 60 % busy, with made-up calls
  stoker simulate --what-if runners=+3 --what-if memory=/2        and two changes of it
  stoker simulate --placer stoker,fn-hash,least-connections       beside other ways to place calls
  stoker simulate --trace azure-2019/ --from 9h --span 30m --part 0.1 --runners 50
  stoker simulate --kill 60s --back 10s --plots ./plots -o json

No server is asked: balancers and runners are simulated, with the code that the real ones decide with. A change is KEY=CHANGE: runners, \
memory, cpu, balancers, load, idle-timeout, min-containers; =VALUE sets, =+VALUE and =-VALUE add, =*N and =/N scale. \
A run takes time with its calls, and with runners times functions times balancers: each balancer ranks all runners for each function once.")]
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
    #[arg(long, default_value_t = 150_000, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=stoker_simulate::trace::MOST_CALLS as u64), value_name = "N")]
    pub calls: usize,
    /// Part of all cores that the calls keep busy; made up.
    #[arg(long, default_value_t = 0.6, value_name = "0..1")]
    pub load: f64,
    /// Runners.
    #[arg(long, default_value_t = 20, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=stoker_simulate::MOST_RUNNERS as u64), value_name = "N")]
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
    #[arg(long, default_value_t = 4, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=stoker_simulate::MOST_BALANCERS as u64), value_name = "N")]
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
  stoker bench demo/lambda-python --door lambda        as AWS's SDKs call it
  stoker bench unix:/tmp/iofs/lsnr.sock                a function by itself, to compare with

Each of the callers sends its next call when it has the whole answer to the last one, so a slow fleet is asked less: the times are \
those of a client that waits, not those of arrivals that do not. If this command used a whole core, it was the limit. It fails if a call failed.")]
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
    /// The balancer's HTTP address, for the doors http and lambda.
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
    /// An Invoke of AWS Lambda's API each, on kept connections; a call whose function failed has failed. The body is a text in JSON.
    Lambda,
    /// A call for later each: measured is how long it takes until it is kept.
    Submit,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_of_a_bench() {
        assert_eq!(seconds("2"), Ok(Duration::from_secs(2)));
        assert_eq!(seconds("250ms"), Ok(Duration::from_millis(250)));
        assert!(seconds("soon").is_err());
        assert_eq!(body_size("1KiB"), Ok(1024));
        assert!(body_size("1GiB").is_err());
    }
}
