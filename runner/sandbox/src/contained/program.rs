//! Our own program, in a form that runs in any root: with its loader and libraries beside it.
//!
//! An image may have another C library, or none. So the loader is told where the libraries are, and nothing of the image is used.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{ARGUMENT, PROGRAM};
use crate::spawner::{self, PROBE};

/// Its name in the directory.
const NAME: &str = "stoker";

/// A directory to be shown at [`PROGRAM`], and how the init is called there.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Program {
    pub directory: PathBuf,
    pub arguments: Vec<String>,
}

impl Program {
    /// Fills `directory`, which everybody may read. Blocks for as long as a program takes to be copied.
    ///
    /// # Errors
    /// What the file system says, or that libraries are missing.
    pub fn place(command: &spawner::Command, directory: PathBuf) -> io::Result<Self> {
        fs::create_dir(&directory)?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
        let libraries = libraries(command)?;
        put(&command.program, &directory.join(NAME))?;
        let mut arguments = Vec::new();
        for library in &libraries {
            let Some(name) = library.path.file_name() else { continue };
            put(&library.path, &directory.join(name))?;
            if library.loader {
                let loader = Path::new(PROGRAM).join(name).to_string_lossy().into_owned();
                arguments.extend([loader, "--library-path".to_owned(), PROGRAM.to_owned()]);
            }
        }
        arguments.push(format!("{PROGRAM}/{NAME}"));
        arguments.extend(command.args.iter().cloned());
        arguments.push(ARGUMENT.to_owned());
        Ok(Self { directory, arguments })
    }
}

/// The same file where that can be, so that nothing is written, and nobody who replaces the program replaces it in a container.
fn put(from: &Path, to: &Path) -> io::Result<()> {
    let real = fs::canonicalize(from);
    let readable =
        |path: &PathBuf| path.metadata().is_ok_and(|found| found.permissions().mode() & 0o5 == 0o5);
    if let Some(real) = real.ok().filter(readable)
        && fs::hard_link(real, to).is_ok()
    {
        return Ok(());
    }
    fs::copy(from, to)?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755))
}

struct Library {
    path: PathBuf,
    loader: bool,
}

/// What the loader would load for the program, itself included. Nothing for a static one.
fn libraries(command: &spawner::Command) -> io::Result<Vec<Library>> {
    let output = std::process::Command::new(&command.program)
        .args(&command.args)
        // A static program takes no notice of the variable, and ends at once.
        .arg(PROBE)
        .env("LD_TRACE_LOADED_OBJECTS", "1")
        .stdin(std::process::Stdio::null())
        .output()?;
    parse(&String::from_utf8_lossy(&output.stdout))
}

fn parse(listing: &str) -> io::Result<Vec<Library>> {
    let mut found = Vec::new();
    for line in listing.lines() {
        let mut words = line.split_whitespace();
        let (name, arrow, target) = (words.next(), words.next(), words.next());
        let (path, loader) = match (name, arrow, target) {
            (Some(name), Some("=>"), Some("not")) => {
                return Err(io::Error::new(
                    io::ErrorKind::NotFound,
                    format!("the library {name} is missing"),
                ));
            }
            (_, Some("=>"), Some(target)) if target.starts_with('/') => (target, false),
            (Some(name), _, _) if name.starts_with('/') => (name, true),
            // What the kernel itself provides.
            _ => continue,
        };
        found.push(Library { path: PathBuf::from(path), loader });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_of_the_loader_is_understood() {
        let found = parse(
            "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibgcc_s.so.1 => /lib/x86_64-linux-gnu/libgcc_s.so.1 (0x1)\n\t/lib64/ld-linux-x86-64.so.2 (0x2)\n",
        )
        .unwrap();
        let paths: Vec<_> =
            found.iter().map(|library| (library.path.to_str().unwrap(), library.loader)).collect();
        assert_eq!(
            paths,
            [("/lib/x86_64-linux-gnu/libgcc_s.so.1", false), ("/lib64/ld-linux-x86-64.so.2", true)]
        );
        assert!(parse("").unwrap().is_empty());
        assert!(parse("\tlibx.so.1 => not found\n").is_err());
    }
}
