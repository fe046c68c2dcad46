//! The registry of one process: tables in memory and, where a file is given, functions that survive a restart.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use stoker_core::capacity::Capacity;
use stoker_core::function::{FunctionName, FunctionSpec};
use stoker_core::ids::{Incarnation, RunnerName};
use tokio::sync::watch;

use crate::{Applied, Error, Fleet, Functions, Registration, Registry, check_triggers};

/// See the module.
#[derive(Debug, Clone)]
pub struct MemoryRegistry {
    fleet: Arc<watch::Sender<Arc<Fleet>>>,
    functions: Arc<watch::Sender<Arc<Functions>>>,
    /// Where functions are kept. The lock orders writers: a snapshot is published only after the file holds it.
    file: Arc<Mutex<Option<PathBuf>>>,
}

impl Default for MemoryRegistry {
    fn default() -> Self {
        Self::with(BTreeMap::new(), None)
    }
}

impl MemoryRegistry {
    /// A registry that keeps its functions in `file` (JSON), and starts with those that are there.
    ///
    /// # Errors
    /// A file that cannot be read, or holds something else.
    pub fn open(file: &Path) -> Result<Self, Error> {
        let store =
            |source| Error::Store { attempt: format!("reading functions from {}", file.display()), source };
        let specs: Vec<FunctionSpec> = match std::fs::read(file) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|e| store(io::Error::new(io::ErrorKind::InvalidData, e)))?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(store(e)),
        };
        let by_name = specs.into_iter().map(|spec| (spec.name.clone(), Arc::new(spec))).collect();
        Ok(Self::with(by_name, Some(file.to_owned())))
    }

    fn with(by_name: BTreeMap<FunctionName, Arc<FunctionSpec>>, file: Option<PathBuf>) -> Self {
        Self {
            fleet: Arc::new(watch::Sender::new(Arc::new(Fleet { known: true, ..Fleet::default() }))),
            functions: Arc::new(watch::Sender::new(Arc::new(Functions { known: true, by_name }))),
            file: Arc::new(Mutex::new(file)),
        }
    }

    /// Changes the functions: the file first, then the snapshot, so that what was seen survives.
    fn change<T>(
        &self,
        change: impl FnOnce(&mut BTreeMap<FunctionName, Arc<FunctionSpec>>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let mut by_name = self.functions.borrow().by_name.clone();
        let done = change(&mut by_name)?;
        if let Some(path) = file.as_deref() {
            write(path, &by_name).map_err(|source| Error::Store {
                attempt: format!("writing functions to {}", path.display()),
                source,
            })?;
        }
        self.functions.send_replace(Arc::new(Functions { known: true, by_name }));
        Ok(done)
    }
}

/// Replaces the file in one step: a kill at any point leaves the old or the new content.
fn write(path: &Path, by_name: &BTreeMap<FunctionName, Arc<FunctionSpec>>) -> io::Result<()> {
    let specs: Vec<&FunctionSpec> = by_name.values().map(Arc::as_ref).collect();
    let mut text = serde_json::to_vec_pretty(&specs)?;
    text.push(b'\n');
    let beside = path.with_extension("new");
    let mut file = std::fs::File::create(&beside)?;
    file.write_all(&text)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)
}

#[async_trait]
impl Registry for MemoryRegistry {
    async fn register(&self, record: Capacity) -> Result<Box<dyn Registration>, Error> {
        let (name, incarnation) = (record.runner.clone(), record.incarnation);
        let mut taken = false;
        self.fleet.send_if_modified(|fleet| {
            taken = fleet.runners.get(&name).is_some_and(|r| r.address != record.address);
            if !taken {
                Arc::make_mut(fleet).runners.insert(name.clone(), Arc::new(record));
            }
            !taken
        });
        if taken {
            return Err(Error::RunnerNameTaken(name));
        }
        Ok(Box::new(MemoryRegistration { fleet: self.fleet.clone(), name, incarnation }))
    }

    fn fleet(&self) -> watch::Receiver<Arc<Fleet>> {
        self.fleet.subscribe()
    }

    fn functions(&self) -> watch::Receiver<Arc<Functions>> {
        self.functions.subscribe()
    }

    async fn apply_functions(&self, specs: Vec<FunctionSpec>) -> Result<Vec<Applied>, Error> {
        self.change(|by_name| {
            let mut applied = Vec::with_capacity(specs.len());
            for spec in specs {
                let spec = Arc::new(spec);
                applied.push(match by_name.insert(spec.name.clone(), spec.clone()) {
                    None => Applied::Created,
                    Some(old) if old == spec => Applied::Unchanged,
                    Some(_) => Applied::Updated,
                });
            }
            check_triggers(by_name)?;
            Ok(applied)
        })
    }

    async fn delete_function(&self, name: &FunctionName) -> Result<bool, Error> {
        self.change(|by_name| Ok(by_name.remove(name).is_some()))
    }
}

/// A runner's place in [`MemoryRegistry`].
struct MemoryRegistration {
    fleet: Arc<watch::Sender<Arc<Fleet>>>,
    name: RunnerName,
    incarnation: Incarnation,
}

impl MemoryRegistration {
    /// Whether the record under this name is still that of this life.
    fn is_in(&self, fleet: &Fleet) -> bool {
        fleet.runners.get(&self.name).is_some_and(|r| r.incarnation == self.incarnation)
    }
}

#[async_trait]
impl Registration for MemoryRegistration {
    async fn publish(&self, record: Capacity) -> Result<(), Error> {
        self.fleet.send_if_modified(|fleet| {
            let ours = self.is_in(fleet);
            if ours {
                Arc::make_mut(fleet).runners.insert(self.name.clone(), Arc::new(record));
            }
            ours
        });
        Ok(())
    }

    fn known(&self) -> watch::Receiver<bool> {
        watch::channel(true).1
    }

    async fn withdraw(self: Box<Self>) {}
}

impl Drop for MemoryRegistration {
    fn drop(&mut self) {
        self.fleet.send_if_modified(|fleet| {
            let ours = self.is_in(fleet);
            if ours {
                Arc::make_mut(fleet).runners.remove(&self.name);
            }
            ours
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance;

    #[tokio::test]
    async fn memory_conforms() {
        conformance::run(&MemoryRegistry::default()).await;
    }

    #[tokio::test]
    async fn functions_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("functions.json");
        conformance::run(&MemoryRegistry::open(&file).unwrap()).await;
        let spec = conformance::function("kept", "hello");
        MemoryRegistry::open(&file).unwrap().apply_functions(vec![spec.clone()]).await.unwrap();
        let again = MemoryRegistry::open(&file).unwrap();
        assert_eq!(again.functions().borrow().find("kept/hello").map(|s| s.as_ref().clone()), Some(spec));
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_written_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("gone").join("functions.json");
        let registry = MemoryRegistry::open(&file).unwrap();
        assert!(registry.apply_functions(vec![conformance::function("a", "b")]).await.is_err());
        assert!(registry.functions().borrow().by_name.is_empty());
    }

    #[test]
    fn a_file_with_something_else_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("functions.json");
        std::fs::write(&file, "{").unwrap();
        assert!(MemoryRegistry::open(&file).unwrap_err().to_string().contains("functions.json"));
    }
}
