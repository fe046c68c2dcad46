//! Supervisors: the small processes that a runner keeps beside itself, one for each driver, and what is alike in them.
//!
//! A supervisor is this very program, started anew before anything is asked of it, with one thread and one socket. It is told once what it works
//! with, takes a lock that says so, and answers orders. When its socket closes the runner is gone: it ends what hangs on it, removes what the
//! runner had, and ends itself. There are two roles: the [spawner](crate::spawner) makes native sandboxes, which go with it when it is
//! killed; the [monitor](crate::contained::monitor) runs an engine's commands and watches over containers, which stay. In either case
//! another is started at once.

pub mod client;
mod holder;
pub mod server;

use std::ffi::CStr;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// What one kind of supervisor is called, what it is told and what it says.
pub trait Role: Send + Sync + 'static {
    /// In errors and in the log.
    const NAME: &'static str;
    /// The last argument of a program that is to be one.
    const ARGUMENT: &'static str;
    /// The name of its process.
    const PROCESS: &'static CStr;
    /// What its death means for what it held.
    const LOST: &'static str;

    /// What it works with.
    type Setup: Clone + Send + Sync;
    /// Runner → supervisor. The setup is the first.
    type Order: Serialize + DeserializeOwned + From<Self::Setup> + Send + Sync;
    /// Supervisor → runner.
    type Message: Serialize + DeserializeOwned + Into<Received<Self::Answer>>;
    /// What comes of an order.
    type Answer: Send;

    /// The first word: it is set up, and holds its lock.
    const READY: Self::Message;

    /// The setup, where an order is one.
    fn setup(order: Self::Order) -> Option<Self::Setup>;
    /// Held for as long as it lives.
    fn lock(setup: &Self::Setup) -> &Path;
    /// Directories and files of its runner, removed at the end.
    fn remove(setup: &Self::Setup) -> &[PathBuf];
}

/// What a word of a supervisor's means. A descriptor may come with an answer.
pub enum Received<A> {
    Ready,
    Answer { sequence: u64, answer: A },
}
