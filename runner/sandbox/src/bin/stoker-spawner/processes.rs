//! What the guest does as a process: it takes memory, makes others, hears signals, and looks around.

use std::fs;
use std::io;
use std::process::{Command, Stdio, exit};

use super::{pause, say};

/// Allocates and touches.
pub fn hold(mib: u64) {
    let mut pieces = Vec::new();
    for _ in 0..mib {
        let mut piece = vec![0_u8; 1 << 20];
        for page in piece.chunks_mut(4096) {
            page[0] = 1;
        }
        pieces.push(std::hint::black_box(piece));
    }
}

pub fn hold_in_child(mib: &str) -> io::Result<()> {
    let status =
        Command::new(std::env::current_exe()?).args(["guest", "hold", mib]).stdout(Stdio::null()).status()?;
    say(format_args!("child {}", if status.success() { "held" } else { "died" }))?;
    exit(i32::from(!status.success()) * 3)
}

/// Makes children that wait, and says how many it could make.
pub fn fork(count: u64) -> io::Result<()> {
    let mut made = 0;
    for _ in 0..count {
        // SAFETY: this program has one thread; the child only waits.
        match unsafe { libc::fork() } {
            0 => pause(),
            -1 => break,
            _ => made += 1,
        }
    }
    say(made)?;
    pause()
}

pub fn spin() -> io::Result<()> {
    say("ready")?;
    loop {
        std::hint::spin_loop();
    }
}

/// Ends with this status when it is asked to end.
pub fn on_term(code: i32) -> io::Result<()> {
    // SAFETY: blocks one signal and waits for it.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        say("ready")?;
        let mut signal = 0;
        libc::sigwait(&raw const set, &raw mut signal);
    }
    say("terminated")?;
    exit(code)
}

pub fn ignore_term() -> io::Result<()> {
    // SAFETY: installs no code of ours.
    unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
    wait()
}

pub fn wait() -> io::Result<()> {
    say("ready")?;
    pause()
}

/// Leaves a process behind that only holds standard output: its reader sees the end when that is gone, too.
pub fn daemon(exits: bool) -> io::Result<()> {
    // SAFETY: this program has one thread; each child only makes system calls.
    unsafe {
        if libc::fork() == 0 {
            libc::setsid();
            if libc::fork() == 0 {
                say("daemon")?;
                pause();
            }
            libc::_exit(0);
        }
    }
    if exits { Ok(()) } else { pause() }
}

pub fn daemon_and_wait() -> io::Result<()> {
    // SAFETY: this program has one thread; the child only makes system calls.
    unsafe {
        if libc::fork() == 0 {
            libc::setsid();
            pause();
        }
    }
    wait()
}

/// Finds what the last start left in a file, leaves a word and a process.
pub fn left_behind(path: &str) -> io::Result<()> {
    match fs::read_to_string(path) {
        Ok(word) => say(format_args!("found {word}"))?,
        Err(_) => say("nothing yet")?,
    }
    fs::write(path, std::env::var("WHICH").unwrap_or_default())?;
    daemon_and_wait()
}

pub fn kill_others() -> io::Result<()> {
    // Where there is no sandbox, that would be everybody.
    if fs::read_to_string("/proc/1/comm")?.trim() != "stoker-init" {
        return Err(io::Error::other("not in a sandbox"));
    }
    // SAFETY: signals to all but ourselves and what may not be killed.
    unsafe { libc::kill(-1, libc::SIGKILL) };
    wait()
}

pub fn ids() -> io::Result<()> {
    // SAFETY: they only ask.
    let (user, group) = unsafe { (libc::getuid(), libc::getgid()) };
    say(format_args!("{user} {group} {}", std::process::id()))
}

pub fn environment() -> io::Result<()> {
    let mut all: Vec<_> = std::env::vars().map(|(name, value)| format!("{name}={value}")).collect();
    all.sort();
    all.iter().try_for_each(say)
}

/// Says who there is.
pub fn list() -> io::Result<()> {
    for entry in fs::read_dir("/proc")?.flatten() {
        if entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok()) {
            let command = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
            say(format_args!("{} {}", entry.file_name().display(), command.replace('\0', " ")))?;
        }
    }
    Ok(())
}

pub fn descriptors() -> io::Result<()> {
    let mut open = Vec::new();
    for number in 0..4096 {
        // SAFETY: asks for the flags of a descriptor, or learns that there is none.
        if unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0 {
            open.push(number.to_string());
        }
    }
    say(open.join(" "))
}
