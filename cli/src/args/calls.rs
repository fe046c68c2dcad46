//! Calls and what is known of them: `call`, `calls`, `explain`, `logs`.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use stoker_core::units::parse_duration;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stoker call demo/hello --data Ada
  stoker call demo/echo-python --data @picture.png > copy.png
  cat big.bin | stoker call demo/echo-python --data - --show-timing > /dev/null
  stoker call demo/hello --header X-Tone=kind --timeout 2s -o json
  stoker call demo/hello --data Ada --async --key order-17 --delay 10m")]
pub struct Call {
    /// APP/FN, or the function's id.
    #[arg(value_name = "APP/FN")]
    pub function: String,
    /// The body: a text, @FILE, or - for STDIN.
    #[arg(long, short, default_value = "", value_name = "TEXT|@FILE|-", hide_default_value = true)]
    pub data: String,
    /// A header for the function, NAME=VALUE or, as curl has it, `NAME: VALUE`; may stand several times.
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
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    pub limit: u32,
}

#[derive(Debug, Subcommand)]
pub enum CallsCommand {
    /// Show a call, its attempts and its result.
    #[command(after_help = "\
Examples:
  stoker calls get 0196f3c8a0b17c3e9d1f2a3b4c5d6e7f
  stoker calls get 0196f3c8a0b17c3e9d1f2a3b4c5d6e7f -o json | jq .attempts")]
    Get {
        /// Its id: `stoker call --async` and `stoker calls` print it.
        #[arg(value_name = "CALL")]
        id: String,
    },
    /// Wait until a call has ended: body to STDOUT, as `call` does.
    #[command(after_help = "\
Examples:
  stoker calls wait 0196f3c8a0b17c3e9d1f2a3b4c5d6e7f --timeout 30s
  stoker calls wait $(stoker call demo/hello --data Ada --async)")]
    Wait {
        /// Its id: `stoker call --async` and `stoker calls` print it.
        #[arg(value_name = "CALL")]
        id: String,
        /// Give up waiting after this; the call goes on.
        #[arg(long, value_parser = parse_duration, value_name = "TIME")]
        timeout: Option<Duration>,
    },
    /// Cancel a call that has not ended.
    #[command(after_help = "Examples:\n  stoker calls cancel 0196f3c8a0b17c3e9d1f2a3b4c5d6e7f")]
    Cancel {
        /// Its id: `stoker call --async` and `stoker calls` print it.
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
        /// Their ids: `stoker calls --state dead` prints them.
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

A runner keeps the last 1,000 lines of a function, at most 512 KiB. With --follow the command goes on when the balancer goes away, and \
when runners come and go; lines that were lost are counted. Ctrl-C ends it.")]
pub struct Logs {
    /// APP/FN, or the function's id.
    #[arg(value_name = "APP/FN")]
    pub function: String,
    /// Go on with what comes, until Ctrl-C.
    #[arg(long, short)]
    pub follow: bool,
    /// Only of this call.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "ID")]
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

fn header(text: &str) -> Result<(String, String), String> {
    // A name has neither, so the first of them ends it.
    match text.split_once(['=', ':']) {
        Some((name, value)) if !name.trim().is_empty() => {
            let value = if text[name.len()..].starts_with(':') { value.trim_start() } else { value };
            Ok((name.trim().to_owned(), value.to_owned()))
        }
        _ => Err(format!("`{text}` is not a header: write NAME=VALUE or `NAME: VALUE`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_written_as_here_or_as_for_curl() {
        assert_eq!(header("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert_eq!(header("A: b=c: d"), Ok(("A".into(), "b=c: d".into())));
        assert_eq!(header("A=http://x"), Ok(("A".into(), "http://x".into())));
        assert!(["A", "=b", ": b", ""].iter().all(|wrong| header(wrong).is_err()));
    }
}
