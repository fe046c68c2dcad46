//! The runner's side of the monitor: has commands run, hears of the ends of containers, has earlier lives cleared away.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use tokio::sync::oneshot;

use super::monitor::{ARGUMENT, FromMonitor, Setup, ToMonitor, Watch};
use crate::Error;
use crate::oci::runtime::Command;
use crate::supervisor::client::Answered;
use crate::supervisor::{self, Received, Role};

/// A handle on the monitor of one driver.
pub type Client = supervisor::client::Client<Monitor>;

/// What a monitor is told and says.
pub struct Monitor;

impl Role for Monitor {
    const NAME: &'static str = "sandbox monitor";
    const ARGUMENT: &'static str = ARGUMENT;
    const PROCESS: &'static CStr = c"stoker-monitor";
    const LOST: &'static str = "its containers go on with another";
    type Setup = Setup;
    type Order = ToMonitor;
    type Message = FromMonitor;
    /// An exit status, or minus a signal; or how many containers could not be cleared away.
    type Answer = i32;
    const READY: FromMonitor = FromMonitor::Ready;

    fn setup(order: ToMonitor) -> Option<Setup> {
        match order {
            ToMonitor::Setup(setup) => Some(setup),
            ToMonitor::Run { .. } | ToMonitor::Clear { .. } => None,
        }
    }

    fn lock(setup: &Setup) -> &Path {
        &setup.lock
    }

    fn remove(setup: &Setup) -> &[PathBuf] {
        &setup.remove
    }
}

impl From<Setup> for ToMonitor {
    fn from(setup: Setup) -> Self {
        Self::Setup(setup)
    }
}

impl From<FromMonitor> for Received<i32> {
    fn from(word: FromMonitor) -> Self {
        match word {
            FromMonitor::Ready => Self::Ready,
            FromMonitor::Done { sequence, status } => Self::Answer { sequence, answer: status },
        }
    }
}

/// How the init of a container will have ended; closed without a word when nobody can tell any more.
pub type InitEnd = oneshot::Receiver<Answered<Monitor>>;

impl Client {
    /// Has a command of the runtime run. Its exit status, or minus the signal that ended it.
    ///
    /// # Errors
    /// [`Error::Platform`] when the monitor is gone.
    pub async fn run(&self, command: Command) -> Result<i32, Error> {
        let order = |sequence| ToMonitor::Run { sequence, command, watch: None };
        Ok(self.live().await?.ask(order, &[]).await?.0)
    }

    /// The same with one that starts a container and writes the number of its init into this file. A mount that is `handed` to it goes where its
    /// [layers](crate::oci::runtime::Layers) say.
    ///
    /// # Errors
    /// The same.
    pub async fn start_container(
        &self,
        command: Command,
        pid_file: PathBuf,
        handed: Option<BorrowedFd<'_>>,
    ) -> Result<(i32, InitEnd), Error> {
        let live = self.live().await?;
        let (end, ended) = live.expect()?;
        let watch = Some(Watch { sequence: end, pid_file });
        let order = |sequence| ToMonitor::Run { sequence, command, watch };
        let status = live.ask(order, handed.as_slice()).await;
        if !matches!(status, Ok((0, _))) {
            live.forget(end);
        }
        Ok((status?.0, ended))
    }

    /// Has the containers of an earlier life killed and removed. How many could not be.
    ///
    /// # Errors
    /// [`Error::Platform`] when the monitor is gone.
    pub async fn clear(&self, life: PathBuf) -> Result<i32, Error> {
        Ok(self.live().await?.ask(|sequence| ToMonitor::Clear { sequence, life }, &[]).await?.0)
    }
}
