//! Being told to stop: Ctrl-C, SIGTERM from whoever supervises, or SIGHUP when the terminal goes.

use std::pin::Pin;

use stoker_runtime::lifecycle::{IMPATIENT, Signals, refuse_upgrades};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::Failure;

/// See the module. From the first signal on, a second one (not of a terminal that goes) ends the process at once.
pub struct Stop {
    told: Pin<Box<dyn Future<Output = &'static str> + Send>>,
    /// Absent where it is ignored: `nohup` means that the fleet outlives its terminal.
    hangup: Option<Signal>,
}

impl Stop {
    pub fn listen() -> Result<Self, Failure> {
        let failed = |error| Failure::platform(format!("cannot listen for signals: {error}"), "");
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let hangup = match ignores_hangup(&status) {
            true => None,
            false => Some(signal(SignalKind::hangup()).map_err(failed)?),
        };
        refuse_upgrades("stop this fleet (Ctrl-C) and start it anew").map_err(failed)?;
        Ok(Self { told: Box::pin(Signals::listen().map_err(failed)?.stop_requested()), hangup })
    }

    /// Returns at the first signal. Is to be asked no more after that.
    pub async fn asked(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = &mut self.told => {}
            _ = hangup => {
                let told = std::mem::replace(&mut self.told, Box::pin(std::future::pending()));
                // Lives until the process ends: that is what it waits for.
                tokio::spawn(async move {
                    told.await;
                    std::process::exit(IMPATIENT);
                });
            }
        }
    }
}

/// Whether the kernel was told to ignore SIGHUP, as in a process's `status`.
fn ignores_hangup(status: &str) -> bool {
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    // The first bit is signal 1.
    mask & 1 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nohup_is_heeded() {
        assert!(ignores_hangup("Name:\tx\nSigIgn:\t0000000000001001\nSigCgt:\t0\n"));
        assert!(!ignores_hangup("SigIgn:\t0000000000001000\n"));
        assert!(!ignores_hangup(""));
    }
}
