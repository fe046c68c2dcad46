//! What drivers of other engines do alike around a container's making: they come up, build on a task of their own, and clear away.

use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::client::Client;
use super::monitor::{self, Setup};
use super::{ENTRY_LIMIT, Program};
use crate::cell::Cell;
use crate::egress::Gate;
use crate::engine::{check, within};
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
    let remove = vec![life, state.sockets().to_path_buf(), state.record()];
    let setup = Setup { lock: state.spawner_lock(), remove, engine };
    Ok((Client::start(spawner.clone(), setup).await?, program))
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
    F: Future<Output = Result<Cell, Error>> + Send + 'static,
{
    check(&spec)?;
    gate.check(spec.network)?;
    let made = tokio::spawn(build(spec));
    let gone = |error| platform("create the sandbox")(io::Error::other(error));
    let made = async { made.await.map_err(gone)? };
    within(ENTRY_LIMIT * 2, made).await.map(|cell| Box::new(cell) as Box<dyn Sandbox>)
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
