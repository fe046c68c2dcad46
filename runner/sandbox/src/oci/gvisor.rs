//! gVisor's `runsc`, whose containers have a kernel of their own: a program that answers the function's system calls.
//!
//! Descriptors go into such a container, and none comes out. So what the init hands out elsewhere is made outside: the shared directory is a file
//! system that the runner makes, in which the function's sockets are the host's; and what listens for a function is bound in its network. That
//! is a network namespace as everywhere, with the host's stack in it, so the same way leads out of it (`docs/adr/0057`).

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::contained::driver::platform;
use crate::init::mounts::{NO_DEVICES, NO_SUID, SHARED_SIZE, inodes, tmpfs};
use crate::{Error, Shared, Spec, User};

/// Whether a runtime is gVisor's, by what it says itself. Asks it.
///
/// # Errors
/// [`Error::Unsupported`] for one in whose containers no socket can be the host's; [`Error::Platform`] when it does not start.
pub async fn is(runtime: &Path) -> Result<bool, Error> {
    let asked = runtime.to_owned();
    let step = format!("ask {} what it is", runtime.display());
    let answered = tokio::task::spawn_blocking(move || {
        let say = |word| -> io::Result<String> {
            let output = Command::new(&asked).arg(word).output()?;
            Ok(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
        };
        let version = say("--version")?;
        let ours = version.starts_with("runsc version ");
        // An older one has a flag whose name ends so.
        let known = |flags: &str| flags.lines().any(|line| line.trim_start().starts_with(HOST_SOCKETS));
        Ok((ours, ours && !known(&say("flags")?), version))
    });
    let (ours, lacks, version) =
        answered.await.map_err(io::Error::other).flatten().map_err(platform(step))?;
    if lacks {
        let version = version.lines().next().unwrap_or_default();
        return Err(Error::Unsupported(format!(
            "{}, which calls itself {version}, is too old: it has no flag {HOST_SOCKETS}, by which sockets in a container are the host's",
            runtime.display()
        )));
    }
    Ok(ours)
}

/// The flag that says which sockets of the host's are sockets inside.
const HOST_SOCKETS: &str = "-host-uds";

/// What is said to it before its command.
pub fn flags(spec: &Spec) -> Vec<String> {
    // To connect to the runner; and to make its own, where there is a directory for them.
    let sockets = if spec.shared.is_some() { "all" } else { "open" };
    // The stack of the network namespace that the bundle asks for. And no layer of its own: ours is sized.
    vec![format!("{HOST_SOCKETS}={sockets}"), "-network=host".to_owned(), "-overlay2=none".to_owned()]
}

/// How many threads of the host such a container may have for so many of its own: limits on those are its own kernel's business, which needs
/// some for itself and several for each, and does not survive it when there is none.
pub fn threads(own: u32) -> u64 {
    1024 + u64::from(own) * 16
}

/// Makes the directory that the runner shares with a function, which this user owns.
///
/// # Errors
/// [`Error::Platform`] when it cannot be made.
pub fn share(inside: PathBuf, user: User) -> Result<Shared, Error> {
    let (size, files) = (SHARED_SIZE.to_string(), inodes(SHARED_SIZE));
    let (owner, group) = (user.uid.to_string(), user.gid.to_string());
    let options: [(&str, &str); 5] =
        [("mode", "0700"), ("size", &size), ("nr_inodes", &files), ("uid", &owner), ("gid", &group)];
    Ok(Shared { directory: tmpfs(&options, NO_SUID | NO_DEVICES)?, inside })
}
