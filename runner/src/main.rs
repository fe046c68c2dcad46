//! `stoker-runner`: see [`stoker_runner::process`].

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // This program is its own spawner: before anything that makes a thread.
    stoker_sandbox::spawner::run_if_asked();
    stoker_runner::process::main()
}
