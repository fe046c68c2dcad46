//! `stoker-lb`: see [`stoker_lb::process`].

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    stoker_lb::process::main()
}
