//! A container that goes over to the program that takes this process's place.
//!
//! What goes over has no call, and what there is to know of it can be said: the descriptors of its sandbox and of its channel, or of the API that it asks
//! for its calls ([`lambda::handover`](super::lambda::handover)). Lines that the function has written half go on with their other half.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use serde::{Deserialize, Serialize};
use stoker_core::ContainerId;
use stoker_core::function::FunctionSpec;
use stoker_format::{Codec, quiet};
use stoker_sandbox::Driver;
use stoker_sandbox::handover::{FdNumber, HandedSandbox, InheritedFds, PassedFds};

use super::channel::Pipes;
use super::lambda::handover::HandedApi;
use super::launch::{reader, writer};
use super::{Container, LaunchError, Launched};
use crate::images::Images;
use crate::logs::{ContainerLog, Logs, Source};
use crate::observe::Seen;
use crate::secrets::Print;

/// A container as it is handed over.
#[derive(Debug, Serialize, Deserialize)]
pub struct HandedContainer {
    id: String,
    pub spec: FunctionSpec,
    pub frozen: bool,
    /// The root of its image.
    root: Option<PathBuf>,
    sandbox: HandedSandbox,
    /// Without it, as of a release that had none, they are taken to be others now.
    secrets: Option<Print>,
    stdin: Option<FdNumber>,
    stdout: Option<FdNumber>,
    stderr: Option<FdNumber>,
    pipes: Option<HandedPipes>,
    lambda: Option<HandedApi>,
}

#[derive(Debug, Serialize, Deserialize)]
struct HandedPipes {
    stdin: FdNumber,
    stdout: FdNumber,
    awake: bool,
}

impl Container {
    /// What the next program needs to go on with it; nobody may use it any more. Waits for a freeze or thaw that is under way.
    ///
    /// # Errors
    /// Why it cannot be handed over.
    pub async fn hand_over(&self, passed: &mut PassedFds) -> Result<HandedContainer, String> {
        let frozen = *self.gate.lock().await;
        let lambda = match &self.lambda {
            Some(asking) => Some(asking.hand_over(passed).await?),
            None => None,
        };
        let sandbox = self.sandbox.hand_over(passed).map_err(|error| error.to_string())?;
        let mut keep = |descriptor: &OwnedFd| passed.keep(descriptor).map_err(|error| error.to_string());
        let stdin = self.stdin.as_ref().map(&mut keep).transpose()?;
        let (mut stdout, mut stderr) = (None, None);
        for (source, pipe) in self.outputs().iter() {
            match source {
                Source::Stdout => stdout = Some(keep(pipe)?),
                Source::Stderr => stderr = Some(keep(pipe)?),
                Source::Extension | Source::Platform => {}
            }
        }
        let pipes = match self.pipes().as_mut() {
            Some(pipes) => {
                if !quiet(&mut pipes.input) {
                    return Err("it says what nobody asked for".to_owned());
                }
                Some(HandedPipes {
                    stdin: passed.keep(pipes.stdin.as_fd()).map_err(|error| error.to_string())?,
                    stdout: passed.keep(pipes.stdout.as_fd()).map_err(|error| error.to_string())?,
                    awake: pipes.awake,
                })
            }
            None => None,
        };
        Ok(HandedContainer {
            id: self.id.to_string(),
            spec: (*self.spec).clone(),
            frozen,
            root: self.image.as_ref().map(|image| image.root.clone()),
            sandbox,
            secrets: self.secrets,
            stdin,
            stdout,
            stderr,
            pipes,
            lambda,
        })
    }

    /// Goes on with one of the process's former program.
    ///
    /// # Errors
    /// Why that cannot be. Then it ends.
    pub async fn take_up(
        handed: HandedContainer,
        driver: &dyn Driver,
        images: &Images,
        logs: &Logs,
        inherited: &mut InheritedFds,
    ) -> Result<Self, String> {
        let HandedContainer { id, spec, frozen, root, secrets, stdin, stdout, stderr, pipes, .. } = handed;
        let (sandbox, lambda) = (handed.sandbox, handed.lambda);
        let sandbox = driver.take_up(sandbox, inherited).map_err(|error| error.to_string())?;
        let id = ContainerId::parse(&id).ok_or("its id is none")?;
        let image = match root {
            None => None,
            Some(root) => match images.again(&spec, &root).await {
                Some(image) => Some(image),
                None => return Err("its image is not as it was".to_owned()),
            },
        };
        let mut take = |kept: Option<FdNumber>| {
            let taken = kept.map(|kept| inherited.take(kept)).transpose();
            taken.map_err(|error| error.to_string())
        };
        let (stdin, stdout, stderr) = (take(stdin)?, take(stdout)?, take(stderr)?);
        let pipes = match pipes {
            None => None,
            Some(HandedPipes { stdin, stdout, awake }) => match (take(Some(stdin))?, take(Some(stdout))?) {
                (Some(stdin), Some(stdout)) => {
                    let (stdin, stdout) = (writer(stdin).map_err(text)?, reader(stdout).map_err(text)?);
                    Some(Pipes { stdin, stdout, input: BytesMut::new(), awake })
                }
                _ => None,
            },
        };
        let now = Duration::ZERO;
        let mut container = Self {
            log: ContainerLog::new(id.clone(), logs.ring(&spec.name)),
            seen: Seen::new(&id, &spec, driver.describe().name).taken_up(),
            id,
            codec: Codec::new(&spec),
            spec: Arc::new(spec),
            // Its start was before this program's.
            launched: Launched { began: Instant::now(), image: now, create: now, start: now, init: now },
            sandbox: sandbox.into(),
            secrets,
            still: AtomicBool::new(frozen),
            gate: tokio::sync::Mutex::new(frozen),
            used: Mutex::default(),
            lambda: None,
            pipes: Mutex::new(pipes),
            image,
            stdin,
            outputs: Mutex::default(),
        };
        for (source, pipe) in [(Source::Stdout, stdout), (Source::Stderr, stderr)] {
            if let Some(pipe) = pipe {
                container.follow(source, pipe).map_err(text)?;
            }
        }
        if let Some(api) = lambda {
            container.lambda = Some(container.take_up_api(api, inherited).await?);
        }
        container.look().await;
        Ok(container)
    }

    pub(super) fn outputs(&self) -> MutexGuard<'_, Vec<(Source, OwnedFd)>> {
        self.outputs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn text(error: LaunchError) -> String {
    match error {
        LaunchError::Platform(text) | LaunchError::Impossible(text) => text,
        other => format!("{other:?}"),
    }
}
