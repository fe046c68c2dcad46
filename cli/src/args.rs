//! What can be typed. Only words and their checks; what they do is elsewhere.

mod access;
mod calls;
mod fleet;
mod functions;
mod load;
mod up;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use self::access::{Certs, Token};
pub use self::calls::{Call, Calls, CallsCommand, Explain, Logs, State};
pub use self::fleet::{Drain, Top, Uncordon};
pub use self::functions::{Alias, Apply, Function, Functions, Rollback, Rollout};
pub use self::load::{Bench, Door, Simulate};
pub use self::up::Up;

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

/// Under which heading helps show what holds for every command: behind what is the command's own.
const GLOBAL: &str = "Global options";

/// For every command.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// The balancer's gRPC address.
    #[arg(
        long,
        global = true,
        env = "STOKER_SERVER",
        default_value = "http://127.0.0.1:7070",
        value_name = "URL",
        help_heading = GLOBAL
    )]
    pub server: String,
    /// How answers are written.
    #[arg(long, short, global = true, value_enum, default_value_t = Output::Table, help_heading = GLOBAL)]
    pub output: Output,
    /// Who we are: a token of the fleet; better given by its variable or in a file, since flags can be seen by all users of a machine.
    #[arg(
        long,
        global = true,
        env = "STOKER_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN",
        help_heading = GLOBAL
    )]
    pub token: Option<String>,
    /// The file that the token is in.
    #[arg(long, global = true, env = "STOKER_TOKEN_FILE", value_name = "FILE", help_heading = GLOBAL)]
    pub token_file: Option<PathBuf>,
    /// The authority that signed the balancer's certificate, for https:// [default: those that the system trusts].
    #[arg(long, global = true, env = "STOKER_CA_FILE", value_name = "FILE", help_heading = GLOBAL)]
    pub ca: Option<PathBuf>,
    /// Our own certificate, where we are known by that; with --cert-key.
    #[arg(long, global = true, env = "STOKER_CERT_FILE", value_name = "FILE", help_heading = GLOBAL)]
    pub cert: Option<PathBuf>,
    /// The key of --cert.
    #[arg(long, global = true, env = "STOKER_KEY_FILE", value_name = "FILE", help_heading = GLOBAL)]
    pub cert_key: Option<PathBuf>,
    /// Send a token without TLS to another machine; for `up`: serve other machines, without TLS and without asking anybody who they are.
    #[arg(long, global = true, help_heading = GLOBAL)]
    pub insecure: bool,
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_words_fit_together() {
        Cli::command().debug_assert();
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
}
