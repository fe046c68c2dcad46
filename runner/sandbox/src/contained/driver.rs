//! What drivers of other engines do alike around a container's making: they come up, build on a task of their own, and clear away.

use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::client::Client;
use super::monitor::{self, Setup};
use super::{ENTRY_LIMIT, Program};
use crate::cgroup::Base;
use crate::egress::Gate;
use crate::engine::{check, within};
use crate::handover::{HandedDriver, HandedHolder, InheritedFds, PassedFds};
use crate::init_sandbox::InitSandbox;
use crate::state::State;
use crate::{Error, Sandbox, Spec, spawner};

/// An error of the host's at a step.
pub fn platform(step: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let step = step.into();
    move |source| Error::Platform { step, source }
}

/// Makes the directory of a life, which `write` may put something into, our own program in it, and starts the monitor. After a failure
/// there is nothing of it, nor of the state.
///
/// # Errors
/// [`Error::Platform`] when a step fails.
pub async fn begin(
    state: &State,
    spawner: &spawner::Command,
    write: impl FnOnce(&Path) -> io::Result<()>,
    engine: monitor::Engine,
) -> Result<(Client, Program), Error> {
    let begun = come_up(state, spawner, write, engine).await;
    if begun.is_err() {
        // Nobody else is there to do it.
        std::fs::remove_dir_all(state.life()).ok();
        std::fs::remove_dir_all(state.sockets()).ok();
        std::fs::remove_file(state.record()).ok();
        state.remove();
    }
    begun
}

async fn come_up(
    state: &State,
    spawner: &spawner::Command,
    write: impl FnOnce(&Path) -> io::Result<()>,
    engine: monitor::Engine,
) -> Result<(Client, Program), Error> {
    let life = state.life();
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(&life)
        .and_then(|()| write(&life))
        .map_err(platform(format!("make {}, for the files of containers", life.display())))?;
    state.make_sockets()?;
    let (own, directory) = (spawner.clone(), life.join("program"));
    let placed = tokio::task::spawn_blocking(move || Program::place(&own, directory)).await;
    let placed = placed.map_err(io::Error::other).flatten();
    let program = placed.map_err(platform("put our own program where containers find it"))?;
    Ok((Client::start(spawner.clone(), setup(state, engine)).await?, program))
}

fn setup(state: &State, engine: monitor::Engine) -> Setup {
    let remove = vec![state.life(), state.sockets().to_path_buf(), state.record()];
    Setup { lock: state.spawner_lock(), remove, engine }
}

/// What a driver leaves to the next program of this process.
///
/// # Errors
/// [`Error::Platform`] when there is no monitor at the moment.
pub fn hand_over(
    driver: &str,
    state: &State,
    (client, program, containers): (&Client, &Program, u64),
    base: Base,
    passed: &mut PassedFds,
) -> Result<HandedDriver, Error> {
    let keep = || {
        let (driver, program) = (driver.to_owned(), program.clone());
        let state = state.hand_over(passed)?;
        let monitor = client.hand_over(passed)?;
        Ok(HandedDriver {
            driver,
            state,
            base,
            holder: HandedHolder::Monitor { monitor, program, containers },
        })
    };
    keep().map_err(platform("hand the sandbox monitor over"))
}

/// What a driver of the process's former program has left.
pub struct Left {
    pub state: State,
    pub client: Client,
    pub program: Program,
    pub base: Base,
    /// How many containers it had made.
    pub containers: u64,
}

impl Left {
    /// Takes it up; `engine` says who holds the containers of a life.
    ///
    /// # Errors
    /// [`Error::Platform`] when it is another's, or not whole. Then all of it ends.
    pub fn take_up(
        (driver, name, state_dir): (&str, &str, &Path),
        spawner: &spawner::Command,
        engine: impl FnOnce(&State) -> monitor::Engine,
        handed: HandedDriver,
        inherited: &mut InheritedFds,
    ) -> Result<Self, Error> {
        let HandedDriver { state, base, holder, .. } = handed;
        let take = || {
            let HandedHolder::Monitor { monitor, program, containers } = holder else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            let state = State::take_up(state, state_dir, driver, name, inherited)?;
            let setup = setup(&state, engine(&state));
            let client = Client::take_up(spawner.clone(), setup, monitor, inherited)?;
            Ok(Self { state, client, program, base, containers })
        };
        take().map_err(platform("take the sandbox monitor up"))
    }
}

/// Builds a sandbox, on a task of its own: a caller that gives up halfway must not leave half a container.
///
/// # Errors
/// As [`crate::Driver::create`] says.
pub async fn create<F>(
    gate: &Gate,
    spec: Spec,
    build: impl FnOnce(Spec) -> F,
) -> Result<Box<dyn Sandbox>, Error>
where
    F: Future<Output = Result<InitSandbox, Error>> + Send + 'static,
{
    check(&spec)?;
    gate.check(spec.network)?;
    let made = tokio::spawn(build(spec));
    let gone = |error| platform("create the sandbox")(io::Error::other(error));
    let made = async { made.await.map_err(gone)?.map_err(blame) };
    within(ENTRY_LIMIT * 2, made).await.map(|sandbox| Box::new(sandbox) as Box<dyn Sandbox>)
}

/// Engines say in words of their own that nothing can be started in so little memory; all of them name the limit.
fn blame(error: Error) -> Error {
    match error {
        Error::Platform { source, .. } if source.to_string().contains("memory limit") => Error::Function(
            format!("its memory limit is too small for a container to be started in it: {source}"),
        ),
        error => error,
    }
}

/// Removes the files of a container, and the door that its init came through. Says in the log what could not be removed.
pub async fn remove_files(directory: &Path, door: &Path) {
    let (files, door): (PathBuf, PathBuf) = (directory.to_owned(), door.to_owned());
    let removed = tokio::task::spawn_blocking(move || {
        std::fs::remove_file(door).ok();
        match std::fs::remove_dir_all(&files) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    });
    if let Err(error) = removed.await.map_err(io::Error::other).flatten() {
        tracing::warn!(directory = %directory.display(), %error, "a container's files could not be removed");
    }
}
