//! The registry of one process: tables in memory and, where a file is given, functions and apps that survive a restart.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use stoker_core::capacity::Capacity;
use stoker_core::function::{FunctionName, FunctionSpec};
use stoker_core::ids::{Incarnation, RunnerName};
use stoker_core::moment::now_ms;
use tokio::sync::watch;

use crate::apps::{App, Apps};
use crate::places::{ByHolder, Claim, Claims};
use crate::revisions::{Change, Outcome, Proposal, Release, Revision};
use crate::stored::{Head, Older};
use crate::{Error, Fleet, Functions, Places, Registration, Registry};

/// See the module.
#[derive(Debug, Clone)]
pub struct MemoryRegistry {
    fleet: Arc<watch::Sender<Arc<Fleet>>>,
    functions: Arc<watch::Sender<Arc<Functions>>>,
    apps: Arc<watch::Sender<Arc<Apps>>>,
    /// Where functions and apps are kept. The lock orders writers: a snapshot is published only after the file holds it.
    file: Arc<Mutex<Option<PathBuf>>>,
    places: Arc<watch::Sender<Arc<Claims>>>,
}

impl Default for MemoryRegistry {
    fn default() -> Self {
        Self::with(Functions::default(), Apps::default(), None)
    }
}

impl MemoryRegistry {
    /// A registry that keeps its functions in `file` (JSON), and starts with those that are there.
    ///
    /// # Errors
    /// A file that cannot be read, or holds something else.
    pub fn open(file: &Path) -> Result<Self, Error> {
        let store =
            |cause| Error::Store { attempt: format!("reading functions from {}", file.display()), cause };
        let records: Vec<Record> = match std::fs::read(file) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|e| store(io::Error::new(io::ErrorKind::InvalidData, e)))?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(store(e)),
        };
        let (mut functions, mut apps) = (Functions::default(), Apps::default());
        for record in records {
            match record {
                Record::App { app, record } => _ = apps.by_name.insert(app, Arc::new(record)),
                Record::Revised { older, head } => {
                    functions.put(head.release());
                    older.into_iter().for_each(|older| functions.put_older(older.revision()));
                }
                Record::Bare(spec) => functions.put(Release::first(spec)),
            }
        }
        Ok(Self::with(functions, apps, Some(file.to_owned())))
    }

    fn with(mut functions: Functions, mut apps: Apps, file: Option<PathBuf>) -> Self {
        (functions.known, apps.known) = (true, true);
        Self {
            fleet: Arc::new(watch::Sender::new(Arc::new(Fleet { known: true, ..Fleet::default() }))),
            functions: Arc::new(watch::Sender::new(Arc::new(functions))),
            apps: Arc::new(watch::Sender::new(Arc::new(apps))),
            file: Arc::new(Mutex::new(file)),
            places: Arc::default(),
        }
    }

    /// Changes the functions: the file first, then the snapshot, so that what was seen survives.
    fn change<T>(&self, change: impl FnOnce(&mut Functions) -> Result<T, Error>) -> Result<T, Error> {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let mut functions = Functions::clone(&self.functions.borrow());
        let done = change(&mut functions)?;
        save(file.as_deref(), &functions, &self.apps.borrow())?;
        self.functions.send_replace(Arc::new(functions));
        Ok(done)
    }

    /// The same for apps.
    fn change_apps<T>(&self, change: impl FnOnce(&mut Apps) -> Result<T, Error>) -> Result<T, Error> {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let mut apps = Apps::clone(&self.apps.borrow());
        let done = change(&mut apps)?;
        save(file.as_deref(), &self.functions.borrow(), &apps)?;
        self.apps.send_replace(Arc::new(apps));
        Ok(done)
    }
}

/// Keeps what is there now, where it is kept.
fn save(file: Option<&Path>, functions: &Functions, apps: &Apps) -> Result<(), Error> {
    let Some(path) = file else { return Ok(()) };
    let attempt = || format!("writing functions to {}", path.display());
    write(path, functions, apps).map_err(|cause| Error::Store { attempt: attempt(), cause })
}

/// A function in the file, or an app.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Record {
    App {
        app: String,
        record: App,
    },
    Revised {
        #[serde(flatten)]
        head: Head,
        /// Revisions before the newest.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        older: Vec<Older>,
    },
    /// As it was written before there were revisions.
    Bare(FunctionSpec),
}

/// Replaces the file in one step: a kill at any point leaves the old or the new content.
fn write(path: &Path, functions: &Functions, apps: &Apps) -> io::Result<()> {
    let kept = apps.by_name.iter();
    let kept = kept.map(|(app, record)| Record::App { app: app.clone(), record: App::clone(record) });
    let records = functions.releases.iter().map(|(name, release)| {
        let older = functions.older.get(name).into_iter().flat_map(|older| older.values());
        let older = older.map(|revision: &Arc<Revision>| Older::new(revision)).collect();
        Record::Revised { head: Head::new(release), older }
    });
    let mut text = serde_json::to_vec_pretty(&kept.chain(records).collect::<Vec<_>>())?;
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
        let mut taken = None;
        self.fleet.send_if_modified(|fleet| {
            let other = fleet.runners.get(&name).filter(|other| other.address != record.address);
            taken = other.map(|other| other.address.clone());
            if taken.is_none() {
                Arc::make_mut(fleet).runners.insert(name.clone(), Arc::new(record));
            }
            taken.is_none()
        });
        if let Some(address) = taken {
            return Err(Error::RunnerNameTaken { name, address });
        }
        Ok(Box::new(MemoryRegistration { fleet: self.fleet.clone(), name, incarnation }))
    }

    fn fleet(&self) -> watch::Receiver<Arc<Fleet>> {
        self.fleet.subscribe()
    }

    fn functions(&self) -> watch::Receiver<Arc<Functions>> {
        self.functions.subscribe()
    }

    async fn apply(&self, proposals: Vec<Proposal>) -> Result<Vec<Outcome>, Error> {
        self.change(|functions| functions.apply(proposals, now_ms()))
    }

    async fn change_function(&self, name: &FunctionName, change: Change) -> Result<(), Error> {
        self.change(|functions| functions.change(name, change))
    }

    async fn delete_function(&self, name: &FunctionName) -> Result<bool, Error> {
        self.change(|functions| Ok(functions.delete(name)))
    }

    fn places(&self, holder: &str) -> Arc<dyn Places> {
        Arc::new(MemoryPlaces { all: self.places.clone(), holder: holder.to_owned() })
    }

    fn apps(&self) -> watch::Receiver<Arc<Apps>> {
        self.apps.subscribe()
    }

    async fn put_app(&self, name: &str, app: App) -> Result<(), Error> {
        self.change_apps(|apps| {
            let app = apps.next(name, app)?;
            apps.by_name.insert(name.to_owned(), Arc::new(app));
            Ok(())
        })
    }

    async fn delete_app(&self, name: &str) -> Result<bool, Error> {
        self.change_apps(|apps| Ok(apps.by_name.remove(name).is_some()))
    }
}

/// Places of one holder in [`MemoryRegistry`].
struct MemoryPlaces {
    all: Arc<watch::Sender<Arc<Claims>>>,
    holder: String,
}

#[async_trait]
impl Places for MemoryPlaces {
    fn holder(&self) -> &str {
        &self.holder
    }

    async fn hold(&self, name: &FunctionName, limit: u32, claim: Claim) -> Result<u32, Error> {
        let mut places = 0;
        self.all.send_if_modified(|all| {
            let holders = all.by_function.get(name);
            let others = holders.into_iter().flat_map(|holders| holders.iter());
            let others = others.filter(|(holder, _)| **holder != self.holder);
            let others = others.fold(0u32, |sum, (_, claim)| sum.saturating_add(claim.places));
            places = claim.places.min(limit.saturating_sub(others));
            let claim = Claim { places, ..claim };
            let before = holders.and_then(|holders| holders.get(&self.holder)).copied();
            let changed = before.unwrap_or_default() != claim;
            if changed {
                Arc::make_mut(all).put(name.clone(), &self.holder, claim);
            }
            changed
        });
        Ok(places)
    }

    fn claims(&self) -> watch::Receiver<Arc<Claims>> {
        self.all.subscribe()
    }

    fn lost(&self) -> watch::Receiver<u64> {
        watch::channel(0).1
    }
}

impl Drop for MemoryPlaces {
    fn drop(&mut self) {
        self.all.send_if_modified(|all| {
            let of = |holders: &Arc<ByHolder>| holders.contains_key(&self.holder);
            let names: Vec<_> = all.by_function.iter().filter(|(_, holders)| of(holders)).collect();
            let names: Vec<_> = names.into_iter().map(|(name, _)| name.clone()).collect();
            for name in &names {
                Arc::make_mut(all).remove(name, &self.holder);
            }
            !names.is_empty()
        });
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
    async fn revisions_survive_a_restart_and_bare_functions_are_first_ones() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("functions.json");
        let spec = conformance::function("kept", "hello");
        std::fs::write(&file, serde_json::to_vec(&[&spec]).unwrap()).unwrap();
        let registry = MemoryRegistry::open(&file).unwrap();
        assert_eq!(registry.functions().borrow().revision(&spec.name, 1).map(|r| &*r.spec), Some(&spec));
        let changed = FunctionSpec { memory: spec.memory * 2, ..spec.clone() };
        let outcomes = registry.apply(vec![changed.into()]).await.unwrap();
        assert_eq!(outcomes[0].revision, 2);
        registry.change_function(&spec.name, Change::Rollout(2500)).await.unwrap();
        let before = registry.functions().borrow().clone();
        let after = MemoryRegistry::open(&file).unwrap().functions().borrow().clone();
        assert_eq!((&before.releases, &before.older), (&after.releases, &after.older));
        assert_eq!(before.older[&spec.name].len(), 1);
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_written_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("gone").join("functions.json");
        let registry = MemoryRegistry::open(&file).unwrap();
        let error = registry.apply_functions(vec![conformance::function("a", "b")]).await.unwrap_err();
        // The cause is a part of the sentence, and would be there twice for who writes the sources behind it.
        assert!(
            error.to_string().contains("No such file") && std::error::Error::source(&error).is_none(),
            "{error:?}"
        );
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
