//! What the guest does with files.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};

use super::{outcome, pause, say};

/// Puts an empty directory in the place of one that had something in it, and says how much is in that.
pub fn empty_anew(path: &str) -> io::Result<()> {
    let made = fs::remove_dir_all(path).and_then(|()| fs::create_dir(path));
    match made.and_then(|()| fs::read_dir(path)) {
        Ok(entries) => say(format_args!("{} left", entries.count())),
        Err(error) => say(outcome::<()>(Err(error))),
    }
}

pub fn read(path: &str) -> io::Result<()> {
    match fs::read(path) {
        Ok(bytes) => say(String::from_utf8_lossy(&bytes)),
        Err(error) => say(outcome::<()>(Err(error))),
    }
}

/// A page of it: some have no end.
pub fn read_some(path: &str) -> io::Result<()> {
    let mut page = [0; 4096];
    match fs::File::open(path).and_then(|mut file| file.read(&mut page)) {
        Ok(length) => say(String::from_utf8_lossy(&page[..length])),
        Err(error) => say(outcome::<()>(Err(error))),
    }
}

pub fn read_and_wait(path: &str) -> io::Result<()> {
    io::copy(&mut fs::File::open(path)?, &mut io::sink())?;
    say("ready")?;
    pause()
}

pub fn owner(path: &str) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    say(format_args!("{} {}", metadata.uid(), metadata.gid()))
}

pub fn list(path: &str) -> io::Result<()> {
    match fs::read_dir(path) {
        Ok(entries) => entries.flatten().try_for_each(|entry| say(entry.file_name().display())),
        Err(error) => say(outcome::<()>(Err(error))),
    }
}

/// Writes to a file until nothing more goes in.
pub fn fill(path: &str) -> io::Result<()> {
    let mut file = fs::File::create(path)?;
    let mut written = 0;
    let error = loop {
        match file.write(&[7; 64 << 10]) {
            Ok(length) => written += length,
            Err(error) => break error,
        }
    };
    say(format_args!("{written} {}", outcome::<()>(Err(error))))
}

/// Makes files until there can be no more.
pub fn fill_files(directory: &str) -> io::Result<()> {
    let mut made = 0_u64;
    loop {
        if let Err(error) = fs::File::create(format!("{directory}/{made}")) {
            break say(format_args!("{made} {}", outcome::<()>(Err(error))));
        }
        made += 1;
    }
}

/// Counts in a file for as long as it runs.
pub fn count(path: &str) -> io::Result<()> {
    let file = fs::File::create(path)?;
    let mut count = 0_u64;
    loop {
        count += 1;
        file.write_all_at(&count.to_le_bytes(), 0)?;
        if count == 1 {
            say("ready")?;
        }
    }
}

/// Keeps files and an argument that nobody else may see.
pub fn keep(secret: &str) -> io::Result<()> {
    for place in ["/tmp/secret", "/tmp/shared/secret", "/dev/shm/secret"] {
        fs::write(place, secret)?;
    }
    say("ready")?;
    pause()
}

/// Makes a pair of terminals and opens both ends.
pub fn terminal() -> io::Result<(fs::File, String)> {
    let main = fs::File::options().read(true).write(true).open("/dev/ptmx")?;
    let (mut number, unlock) = (0_u32, 0_u32);
    // SAFETY: both requests read or write one integer that outlives them.
    unsafe {
        if libc::ioctl(main.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) < 0
            || libc::ioctl(main.as_raw_fd(), libc::TIOCGPTN, &raw mut number) < 0
        {
            return Err(io::Error::last_os_error());
        }
    }
    let name = format!("/dev/pts/{number}");
    // Not as our terminal: its end would end us.
    fs::File::options().read(true).write(true).custom_flags(libc::O_NOCTTY).open(&name)?;
    Ok((main, name))
}
