//! `up --watch`: what an author changes is what the next call runs.
//!
//! A function file that was written is applied again. Of a function that runs from the host's files, a file that was written in its `workdir`, below it, or
//! beside its program, ends the containers that were started before: a warm one has read the former code. Images have digests instead.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use stoker_core::FunctionSpec;
use stoker_core::function::Root;
use stoker_runtime::reload::{Changed, Directories};

use crate::args::Output;
use crate::failure::Failure;
use crate::fleet::Renewer;
use crate::{functions, output};

/// Directories that are watched at most: the kernel's are for all programs of a user.
const WATCHED: usize = 4096;

/// Directories that programs fill by themselves.
const FILLED: [&str; 3] = ["node_modules", "__pycache__", "target"];

pub struct Watch {
    files: Vec<PathBuf>,
    specs: Vec<FunctionSpec>,
    /// What the fleet itself writes.
    own: Vec<PathBuf>,
    server: String,
    renewer: Renewer,
}

impl Watch {
    pub fn new(
        files: &[PathBuf],
        specs: Vec<FunctionSpec>,
        own: Vec<PathBuf>,
        server: String,
        renewer: Renewer,
    ) -> Self {
        // What came on STDIN does not come again.
        let files = files.iter().filter(|file| file.as_os_str() != "-").cloned().collect();
        Self { files, specs, own, server, renewer }
    }

    /// Follows changes for as long as it is polled.
    ///
    /// # Errors
    /// The kernel watches nothing for this user.
    pub async fn run(mut self) -> Result<(), Failure> {
        let blind = |error: std::io::Error| {
            let what = format!("files cannot be watched: {error}");
            Failure::platform(what, "raise fs.inotify.max_user_instances, or leave out --watch")
        };
        let mut directories = Directories::new().map_err(blind)?;
        let mut complete = true;
        loop {
            // Anew each time: directories come and go.
            let wanted = self.places();
            let count = wanted.len();
            let unwatched = directories.watch(wanted.into_iter().take(WATCHED));
            if complete && (count > WATCHED || !unwatched.is_empty()) {
                complete = false;
                let why = match unwatched.first() {
                    Some((directory, error)) => format!("{}: {error}", directory.display()),
                    None => format!("there are {count}, and {WATCHED} at most are watched"),
                };
                output::say(&format!("Not all directories of functions are watched: {why}\n"));
            }
            let mut changed = directories.changed(matters).await.map_err(blind)?;
            changed.extend(directories.quiet(matters).await.map_err(blind)?);
            self.follow(&changed).await;
        }
    }

    /// Where changes are looked for.
    fn places(&self) -> BTreeSet<PathBuf> {
        let mut places: BTreeSet<_> = self.files.iter().map(|file| directory(file)).collect();
        for spec in &self.specs {
            places.extend(self.code(spec));
        }
        places
    }

    /// The directories of a function's own files.
    fn code(&self, spec: &FunctionSpec) -> BTreeSet<PathBuf> {
        let mut found = BTreeSet::new();
        // Without a directory of its own a function has no files of its own.
        if spec.root != Root::Host || spec.workdir.parent().is_none() {
            return found;
        }
        let mut left = vec![spec.workdir.clone()];
        while let Some(directory) = left.pop() {
            if found.len() > WATCHED || self.own.iter().any(|own| directory.starts_with(own)) {
                continue;
            }
            for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
                // Links are not followed: they may lead round and round.
                if entry.file_type().is_ok_and(|kind| kind.is_dir())
                    && matters(entry.file_name().as_encoded_bytes())
                {
                    left.push(entry.path());
                }
            }
            found.insert(directory);
        }
        if let Some(program) = spec.command.first().filter(|program| program.contains('/')) {
            found.insert(directory(&spec.workdir.join(program)));
        }
        found
    }

    async fn follow(&mut self, changed: &Changed) {
        if self.files.iter().any(|file| changed.is_in(&directory(file))) {
            self.reload().await;
        }
        let of_others = |spec: &&FunctionSpec| self.code(spec).iter().any(|place| changed.is_in(place));
        let names: Vec<_> = self.specs.iter().filter(of_others).map(|spec| spec.name.clone()).collect();
        if names.is_empty() {
            return;
        }
        let told: Vec<_> = names.iter().map(ToString::to_string).collect();
        self.renewer.renew(names).await;
        output::say(&format!("Files changed: the next calls of {} start anew.\n", told.join(", ")));
    }

    /// Applies the files where they say something else than before. A file with a mistake changes nothing.
    async fn reload(&mut self) {
        let applied = async {
            let specs = functions::read(&self.files)?;
            if specs == self.specs {
                return Ok(None);
            }
            super::apply(&self.server, &specs).await?;
            Ok::<_, Failure>(Some(specs))
        };
        match applied.await {
            Ok(None) => {}
            Ok(Some(specs)) => {
                self.specs = specs;
                output::say("The function files changed: they are applied.\n");
            }
            Err(failure) => failure.print(Output::Table),
        }
    }
}

/// Whether a change of this name is one of an author's. Editors keep beside a file what begins with a dot, or ends with a tilde.
fn matters(name: &[u8]) -> bool {
    !name.starts_with(b".") && !name.ends_with(b"~") && !FILLED.iter().any(|filled| filled.as_bytes() == name)
}

/// The directory that a file is in.
fn directory(file: &Path) -> PathBuf {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new(".")).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use stoker_core::FunctionName;

    #[test]
    fn what_authors_write_is_watched_and_what_programs_write_is_not() {
        let root = tempfile::tempdir().expect("a directory");
        let at = |path: &str| root.path().join(path);
        for path in
            ["f/lib/deep", "f/.git/objects", "f/node_modules/a", "f/__pycache__", "f/state/runners", "built"]
        {
            std::fs::create_dir_all(at(path)).expect("a directory");
        }
        std::os::unix::fs::symlink("..", at("f/lib/up")).expect("a link");
        let name = FunctionName::new("a", "f").expect("a name");
        let spec = FunctionSpec::new(name, vec!["../built/f".into()], at("f"));
        let files = [PathBuf::from("-"), at("f/functions.yaml")];
        let watch = Watch::new(&files, vec![spec], vec![at("f/state")], String::new(), Renewer::default());
        let expected = [at("f"), at("f/../built"), at("f/lib"), at("f/lib/deep")];
        assert_eq!(watch.places().into_iter().collect::<Vec<_>>(), expected);
        assert!(["func.py", "a"].iter().all(|name| matters(name.as_bytes())));
        assert!([".func.py.swp", "func.py~", "target"].iter().all(|name| !matters(name.as_bytes())));
    }

    #[test]
    fn what_has_no_files_of_its_own_is_not_watched() {
        let name = || FunctionName::new("a", "f").expect("a name");
        let mut rooted = FunctionSpec::new(name(), vec!["/f".into()], "/srv".into());
        rooted.root = Root::Rootfs("/srv/root".into());
        let specs = vec![FunctionSpec::new(name(), vec!["date".into()], "/".into()), rooted];
        let watch = Watch::new(&[], specs, Vec::new(), String::new(), Renewer::default());
        assert!(watch.places().is_empty());
    }
}
