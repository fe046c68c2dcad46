//! Fleets end to end: the real balancer, real runners, real sandboxes, real functions. Each line of what Stoker must withstand is a
//! test here, named after it.

#![expect(clippy::unwrap_used, reason = "tests, though clippy does not see it in their helpers")]

mod clients;
mod command;
mod containers;
mod events;
mod explain;
mod follow;
mod hostile;
mod images;
mod kits;
mod lost_runner;
mod misbehaving;
mod overload;
mod page;
mod relay;
mod revisions;
mod sharing;
mod top;
mod trailers;
mod watch;

use std::sync::OnceLock;

/// What the sandbox can do on this machine: some faults can be provoked only where there are limits.
fn sandbox() -> &'static stoker_sandbox::Description {
    static DESCRIPTION: OnceLock<stoker_sandbox::Description> = OnceLock::new();
    DESCRIPTION.get_or_init(|| {
        let look = async { stoker_tests::fleet::sandbox(Default::default()).await.unwrap() };
        std::thread::spawn(|| {
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(look)
        })
        .join()
        .unwrap()
    })
}
