//! How an image wants its program to be run, with names of users resolved in its own files.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::document::Settings;
use crate::error::{Error, Result};

/// Bytes of `/etc/passwd` and `/etc/group` that are read.
const USERS: u64 = 4 << 20;

/// Supplementary groups: the kernel's limit for processes of containers is far above what images have.
const GROUPS: usize = 1024;

/// What an image says about how to run it. The function file's words come before these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageConfig {
    /// Program and first arguments.
    pub entrypoint: Vec<String>,
    /// Arguments, or program and arguments where there is no entrypoint.
    pub cmd: Vec<String>,
    pub env: Vec<(String, String)>,
    /// As whom, where the image says it.
    pub user: Option<User>,
    /// Absolute. It is there.
    pub workdir: PathBuf,
    /// The number of the signal that asks the program to end, where it is not SIGTERM.
    pub stop_signal: Option<i32>,
}

/// As whom: the numbers of the names that the image uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
}

impl ImageConfig {
    /// What is run when the function file says nothing.
    #[must_use]
    pub fn command(&self) -> Vec<String> {
        self.entrypoint.iter().chain(&self.cmd).cloned().collect()
    }

    /// Checks an image's settings against its root. Blocking: reads the root's user tables and makes the work directory.
    pub(crate) fn new(settings: &Settings, root: &OwnedFd) -> Result<Self> {
        let texts = settings.entrypoint.iter().chain(&settings.cmd).chain(&settings.env);
        if texts.chain([&settings.user, &settings.working_dir]).any(|text| text.contains('\0')) {
            return Err(Error::image("its configuration has a NUL character"));
        }
        let env =
            settings.env.iter().filter_map(|line| line.split_once('=')).filter(|(key, _)| !key.is_empty());
        Ok(Self {
            entrypoint: settings.entrypoint.clone(),
            cmd: settings.cmd.clone(),
            env: env.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
            user: user(&settings.user, root)?,
            workdir: workdir(&settings.working_dir, root)?,
            stop_signal: signal(&settings.stop_signal)?,
        })
    }
}

/// Made where it is missing, as every engine does.
fn workdir(text: &str, root: &OwnedFd) -> Result<PathBuf> {
    let path = Path::new("/").join(text);
    if path.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(Error::image("its work directory has `..` in it"));
    }
    let mut directory = open(root, Path::new("/"), OFlags::PATH | OFlags::DIRECTORY)
        .map_err(|error| Error::system("the root cannot be opened", error))?;
    let mut so_far = PathBuf::from("/");
    for part in path.components().skip(1) {
        so_far.push(part);
        directory = match open(root, &so_far, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(there) => there,
            Err(rustix::io::Errno::NOENT) => {
                match rustix::fs::mkdirat(&directory, part.as_os_str(), Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                    Err(error) => return Err(Error::system("its work directory cannot be made", error)),
                }
                open(root, &so_far, OFlags::PATH | OFlags::DIRECTORY).map_err(|error| {
                    Error::image(format!("its work directory {} leads nowhere: {error}", path.display()))
                })?
            }
            Err(error) => {
                return Err(Error::image(format!(
                    "its work directory {} cannot be used: {error}",
                    path.display()
                )));
            }
        };
    }
    Ok(path)
}

/// Opens a path as a process with this root would.
fn open(root: &OwnedFd, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), inside)
}

fn table(root: &OwnedFd, path: &str) -> Result<String> {
    // Not blocking: it might be a pipe that nobody writes to.
    let file = match open(root, Path::new(path), OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY) {
        Ok(file) => file,
        Err(_) => return Ok(String::new()),
    };
    let mut bytes = Vec::new();
    match std::fs::File::from(file).take(USERS + 1).read_to_end(&mut bytes) {
        Ok(_) if bytes.len() as u64 > USERS => Err(Error::image(format!("its {path} is larger than 4 MiB"))),
        Ok(_) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) => Err(Error::image(format!("its {path} cannot be read: {error}"))),
    }
}

/// `user`, `user:group`, names or numbers.
fn user(text: &str, root: &OwnedFd) -> Result<Option<User>> {
    if text.is_empty() {
        return Ok(None);
    }
    let (name, group) = match text.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (text, None),
    };
    resolve(name, group, &table(root, "/etc/passwd")?, &table(root, "/etc/group")?).map(Some)
}

fn resolve(name: &str, group: Option<&str>, passwd: &str, groups: &str) -> Result<User> {
    let number = |text: &str| text.parse::<u32>().ok().filter(|n| *n != u32::MAX);
    let name = if name.is_empty() { "0" } else { name };
    let fields = |line: &str| line.split(':').map(str::to_owned).collect::<Vec<_>>();
    let known = passwd.lines().map(fields).find(|f| {
        f.len() >= 4 && (f[0] == name || number(name).is_some_and(|uid| number(&f[2]) == Some(uid)))
    });
    let mut user = User::default();
    match &known {
        Some(f) => {
            let wrong =
                || Error::image(format!("its /etc/passwd gives the user {} no numbers", name.escape_debug()));
            user.uid = number(&f[2]).ok_or_else(wrong)?;
            user.gid = number(&f[3]).ok_or_else(wrong)?;
        }
        None => {
            user.uid = number(name).ok_or_else(|| {
                Error::image(format!(
                    "it wants to run as {}, whom its /etc/passwd does not know",
                    name.escape_debug()
                ))
            })?;
        }
    }
    let rows: Vec<_> = groups.lines().map(fields).filter(|f| f.len() >= 3).collect();
    match group.filter(|group| !group.is_empty()) {
        Some(group) => {
            let row = rows.iter().find(|f| f[0] == group).and_then(|f| number(&f[2]));
            user.gid = row.or_else(|| number(group)).ok_or_else(|| {
                Error::image(format!(
                    "it wants the group {}, which its /etc/group does not know",
                    group.escape_debug()
                ))
            })?;
        }
        // As with every engine: who names a group means that one alone.
        None => {
            if let Some(known) = &known {
                let member = |f: &&Vec<String>| f.get(3).is_some_and(|m| m.split(',').any(|m| m == known[0]));
                user.groups = rows.iter().filter(member).filter_map(|f| number(&f[2])).take(GROUPS).collect();
                user.groups.retain(|gid| *gid != user.gid);
            }
        }
    }
    Ok(user)
}

/// `SIGINT`, `INT` or `2`.
fn signal(text: &str) -> Result<Option<i32>> {
    const NAMES: [(&str, i32); 17] = [
        ("HUP", 1),
        ("INT", 2),
        ("QUIT", 3),
        ("ABRT", 6),
        ("KILL", 9),
        ("USR1", 10),
        ("SEGV", 11),
        ("USR2", 12),
        ("PIPE", 13),
        ("ALRM", 14),
        ("TERM", 15),
        ("CONT", 18),
        ("STOP", 19),
        ("TSTP", 20),
        ("WINCH", 28),
        ("IO", 29),
        ("PWR", 30),
    ];
    if text.is_empty() {
        return Ok(None);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let realtime = || {
        let above = name.strip_prefix("RTMIN")?;
        let n: i32 = if above.is_empty() { 0 } else { above.strip_prefix('+')?.parse().ok()? };
        Some(34 + n)
    };
    let number = NAMES.iter().find(|(n, _)| *n == name).map(|(_, number)| *number);
    number
        .or_else(|| name.parse().ok())
        .or_else(realtime)
        .filter(|number| (1..=64).contains(number))
        .map(Some)
        .ok_or_else(|| Error::image(format!("its stop signal {} is none", text.escape_debug())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:An app:/home/app:/bin/sh\nbad:x:no:1:::\nshort\n";
    const GROUP: &str = "root:x:0:\nappgroup:x:1001:app\nvideo:x:44:other,app\naudio:x:29:other\n";

    #[test]
    fn users_are_found_as_engines_find_them() {
        let user = |text: &str| {
            let (name, group) = text.split_once(':').map_or((text, None), |(n, g)| (n, Some(g)));
            resolve(name, group, PASSWD, GROUP)
        };
        let app = User { uid: 1000, gid: 1001, groups: vec![44] };
        assert_eq!(user("app"), Ok(app.clone()));
        assert_eq!(user("1000"), Ok(app.clone()));
        assert_eq!(user("app:video"), Ok(User { gid: 44, groups: vec![], ..app.clone() }));
        assert_eq!(user("app:7"), Ok(User { gid: 7, groups: vec![], ..app }));
        assert_eq!(user("4711"), Ok(User { uid: 4711, ..User::default() }));
        assert_eq!(user("4711:appgroup"), Ok(User { uid: 4711, gid: 1001, ..User::default() }));
        assert_eq!(user(":video").map(|u| (u.uid, u.gid)), Ok((0, 44)));
        for bad in ["nobody", "app:nogroup", "bad", "-1", "4294967295"] {
            assert_eq!(user(bad).unwrap_err().fault, crate::Fault::Image, "{bad}");
        }
    }

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in
            [("", None), ("SIGTERM", Some(15)), ("int", Some(2)), ("9", Some(9)), ("SIGRTMIN+3", Some(37))]
        {
            assert_eq!(signal(text), Ok(number), "{text}");
        }
        for bad in ["SIGNOTHING", "0", "65", "-1", "SIGRTMIN+99", "RTMIN-1"] {
            assert!(signal(bad).is_err(), "{bad}");
        }
    }
}
