//! Signals: the first one asks to stop, the second one leaves at once.

use std::io;

use tokio::signal::unix::{SignalKind, signal};

/// The exit code of a process that was told twice.
pub const IMPATIENT: i32 = 130;

/// Returns at the first SIGINT or SIGTERM, with its name. From then on a second one ends the process with [`IMPATIENT`],
/// however far the drain has come.
///
/// # Errors
/// The handlers cannot be installed.
pub async fn stop_requested() -> io::Result<&'static str> {
    let (mut int, mut term) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let first = tokio::select! {
        _ = int.recv() => "SIGINT",
        _ = term.recv() => "SIGTERM",
    };
    tokio::spawn(async move {
        tokio::select! {
            _ = int.recv() => {}
            _ = term.recv() => {}
        }
        std::process::exit(IMPATIENT);
    });
    Ok(first)
}
