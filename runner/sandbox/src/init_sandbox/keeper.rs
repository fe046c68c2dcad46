//! The task that stays with a sandbox until it is gone.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use tokio::sync::{mpsc, watch};

use super::inner::Inner;
use crate::wire::{Order, Report};
use crate::{Exit, ExitCause};

/// What the keeper knows of the end so far.
#[derive(Default)]
struct Heard {
    cause: Option<ExitCause>,
    lost: bool,
}

impl Heard {
    fn take(&mut self, report: Report, inner: &Inner, answer: &mpsc::Sender<(Report, Option<OwnedFd>)>) {
        match report {
            Report::Ended(end) => {
                self.cause = inner.over(end);
                // An engine removes the cgroup when the init ends, which waits for us to have looked.
                if inner.backing.lingers() {
                    inner.count();
                    // Its end takes what the function left with it; gone already is as good.
                    pidfd_send_signal(inner.pidfd.get_ref(), Signal::KILL).ok();
                }
            }
            Report::Over { number: 0, end } => {
                let cause = inner.over(end).unwrap_or(ExitCause::Signal(libc::SIGKILL));
                inner.count();
                inner.command.send_replace(Some(inner.exit(cause)));
            }
            Report::Over { number, end } => {
                let cause = inner.over(end);
                inner.companion_over(number, cause);
            }
            Report::Orphaned => self.lost = true,
            // Only what we asked for is answered, one at a time; more is a lie that nobody hears.
            report => _ = answer.try_send((report, inner.control.descriptor())),
        }
    }
}

/// Stays with a sandbox until it is gone, then clears away what it held.
pub async fn keep(
    inner: Arc<Inner>,
    exit: watch::Sender<Option<Exit>>,
    answer: mpsc::Sender<(Report, Option<OwnedFd>)>,
) {
    let mut said = Heard::default();
    let mut heard = true;
    let mut hunted = false;
    loop {
        tokio::select! {
            // First what the init still said, then that it is gone.
            biased;
            message = inner.control.receive::<Report>(), if heard => match message {
                Ok(Some(report)) => said.take(report, &inner, &answer),
                Ok(None) | Err(_) => heard = false,
            },
            gone = inner.pidfd.readable() => {
                if gone.is_ok() {
                    break;
                }
            }
            () = inner.kill.notified() => {
                if inner.control.send(&Order::Kill, &[]).await.is_err() {
                    heard = false;
                }
            }
            () = inner.backing.orphaned(), if !hunted => {
                // Its init dies of its parent's death, but not while it is frozen.
                hunted = true;
                inner.kill_now();
            }
        }
    }
    // What the init said last may have arrived with its end.
    inner.control.drain();
    while let Ok(Some(report)) = inner.control.take() {
        said.take(report, &inner, &answer);
    }
    drop(answer);
    // Before anything that takes time: a holder that goes later had no part in this end. What exited by itself did so, whatever
    // came after.
    let lost = !matches!(said.cause, Some(ExitCause::Code(_))) && (said.lost || inner.backing.lost());
    // Reaps it where its death has made it our child; who cloned it does else.
    waitid(WaitId::PidFd(inner.pidfd.get_ref().as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG).ok();
    inner.count();
    inner.backing.clear().await;
    inner.companions_gone();
    let cause = match (lost, said.cause) {
        (true, _) => ExitCause::Lost,
        (false, cause) => cause.unwrap_or(ExitCause::Signal(libc::SIGKILL)),
    };
    let last = *inner.command.borrow();
    let end = last.filter(|_| !lost).unwrap_or_else(|| inner.exit(cause));
    exit.send_replace(Some(end));
    inner.command.send_replace(Some(end));
    inner.backing.write_off().await;
}
