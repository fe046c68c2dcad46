//! What is done with runners, and what shows all of them: `drain`, `uncordon`, `top`.

use std::time::Duration;

use clap::{Args, ValueEnum};
use stoker_core::units::parse_duration;

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
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
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
