//! `stoker`: a whole fleet on one machine (`stoker up`), and the client of every other.
//!
//! This file only finds out what was asked for; each command has a module of its own.

mod args;
mod bench;
mod call;
mod calls;
mod certs;
mod client;
mod drain;
mod explain;
mod failure;
mod file;
mod fleet;
mod functions;
mod logs;
mod output;
mod plan;
mod rollout;
mod runners;
mod simulate;
mod top;
mod up;

use std::process::ExitCode;

use args::{Cli, Command, Output};
use clap::{CommandFactory as _, Parser as _};
use failure::Failure;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Before any thread, parser or runtime: the sandboxes' spawner is this very program, started again.
    stoker_sandbox::spawner::run_if_asked();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refused(&error),
    };
    let output = cli.common.output;
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.print(output);
            failure.exit_code()
        }
    }
}

/// What was typed is no command, or asks for help or the version.
fn refused(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() || args::output(std::env::args_os()) == Output::Table {
        // The parser's own words, with its colours and its page of help.
        return match error.print() {
            Ok(()) if !error.use_stderr() => ExitCode::SUCCESS,
            _ => ExitCode::from(2),
        };
    }
    let failure = Failure::typed(error);
    failure.print(Output::Json);
    failure.exit_code()
}

fn run(cli: Cli) -> Result<(), Failure> {
    let common = cli.common;
    client::show(&common)?;
    match cli.command {
        Command::Up(args) => up::run(args, &common),
        Command::Apply(args) => client::block_on(functions::apply(args, &common)),
        Command::Functions(args) => client::block_on(functions::list(args, &common)),
        Command::Describe(args) => client::block_on(functions::describe(args, &common)),
        Command::Delete(args) => client::block_on(functions::delete(args, &common)),
        Command::Revisions(args) => client::block_on(rollout::revisions(args, &common)),
        Command::Rollout(args) => client::block_on(rollout::rollout(args, &common)),
        Command::Rollback(args) => client::block_on(rollout::rollback(args, &common)),
        Command::Alias(args) => client::block_on(rollout::alias(args, &common)),
        Command::Call(args) if args.later => client::block_on(calls::submit(args, &common)),
        Command::Call(args) => client::block_on(call::run(args, &common)),
        Command::Calls(args) => client::block_on(calls::run(args, &common)),
        Command::Runners => client::block_on(runners::run(&common)),
        Command::Drain(args) => client::block_on(drain::drain(args, &common)),
        Command::Uncordon(args) => client::block_on(drain::uncordon(args, &common)),
        Command::Explain(args) => client::block_on(explain::run(args, &common)),
        Command::Logs(args) => client::block_on(logs::run(args, &common)),
        Command::Top(args) => client::block_on(top::run(args, &common)),
        Command::Bench(args) => client::block_on(bench::run(args, &common)),
        Command::Certs(args) => certs::certs(args, &common),
        Command::Token(args) => certs::token(args, &common),
        Command::Simulate(args) => simulate::simulate(args, &common),
        Command::Completions { shell } => {
            // The generator takes no writer that fails.
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "stoker", &mut text);
            output::write(&text)
        }
    }
}
