//! `stoker-lb`: see [`stoker_lb::process`].

use std::process::ExitCode;

fn main() -> ExitCode {
    stoker_lb::process::main()
}
