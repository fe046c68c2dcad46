//! The spawner: a small single-threaded process that makes every sandbox and ends them all when the runner goes.
//!
//! Forking the runner itself would copy its page tables (38 ms for a gigabyte) and is not safe beside its threads; and a
//! process whose parent thread ends may lose its parent's death signal. So the runner starts this process once, by
//! running its own program again, and asks it over a socket. It only ever clones and reaps: whatever may take time (mounts,
//! a cgroup attach) happens in the cloned process, so no sandbox waits for another. When the socket closes, it kills
//! everything it made, removes the runner's cgroups and files, and ends.

pub(crate) mod client;
pub(crate) mod server;

use std::path::PathBuf;

use crate::{contained, init, supervisor};

/// The first argument that turns a program into the spawner.
const ARGUMENT: &str = "__stoker-spawner";
/// The first argument that makes a program end at once with status 0: what the probe of a driver runs inside.
pub(crate) const PROBE: &str = "__stoker-probe";

/// How a spawner is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// A program whose `main` calls [`run_if_asked`] first.
    pub program: PathBuf,
    /// Arguments before those that this crate adds; the program must not interpret them.
    pub args: Vec<String>,
}

impl Default for Command {
    /// This very program.
    fn default() -> Self {
        Self { program: PathBuf::from("/proc/self/exe"), args: Vec::new() }
    }
}

/// Becomes the spawner, and never returns, if this process was started as one. The first thing a `main` does that uses
/// this crate: before any thread, runtime or argument parser.
pub fn run_if_asked() {
    let mut arguments = std::env::args_os().skip(1);
    while let Some(argument) = arguments.next() {
        // Ours come last: a function's or user's argument of that name in another place means nothing.
        if arguments.len() > 0 {
            continue;
        }
        if argument == PROBE {
            std::process::exit(0);
        }
        if argument == ARGUMENT {
            supervisor::server::run::<server::Spawner>();
        }
        if argument == contained::ARGUMENT {
            init::contained::run(contained::DOOR);
        }
        if argument == contained::monitor::ARGUMENT {
            supervisor::server::run::<contained::monitor::Monitor>();
        }
    }
}
