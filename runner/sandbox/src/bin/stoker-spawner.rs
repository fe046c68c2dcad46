//! The spawner on its own, and the function that the conformance suite runs inside: one program, so that a test needs
//! nothing from the machine. `stoker-spawner guest VERB …` does one small thing and says what came of it.

#![expect(unsafe_code, reason = "the guest tries system calls that no safe crate would make")]

#[path = "stoker-spawner/attack.rs"]
mod attack;
#[path = "stoker-spawner/world.rs"]
mod world;

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, ExitCode, Stdio, exit};

fn main() -> ExitCode {
    stoker_sandbox::spawner::run_if_asked();
    let arguments: Vec<String> = std::env::args().skip(1).map(expand).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["guest", words @ ..] => guest(words),
        _ => Err(io::Error::other("this program is started by the runner, not by hand")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("stoker-spawner: {error}");
            ExitCode::FAILURE
        }
    }
}

/// `$NAME/rest` with what the environment has for it.
fn expand(word: String) -> String {
    let Some(text) = word.strip_prefix('$') else { return word };
    let (name, rest) = text.split_at(text.find('/').unwrap_or(text.len()));
    std::env::var(name).unwrap_or_default() + rest
}

fn say(text: impl std::fmt::Display) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

fn outcome<T>(result: io::Result<T>) -> String {
    match result {
        Ok(_) => "ok".to_owned(),
        Err(error) => error.raw_os_error().map_or_else(|| error.to_string(), |errno| errno.to_string()),
    }
}

fn pause() -> ! {
    loop {
        // SAFETY: waits for a signal.
        unsafe { libc::pause() };
    }
}

fn guest(words: &[&str]) -> io::Result<()> {
    let number = |text: &str| text.parse::<u64>().map_err(io::Error::other);
    match words {
        ["exit", code] => exit(number(code)? as i32),
        ["signal", signal] => {
            // SAFETY: a signal to ourselves.
            unsafe { libc::raise(number(signal)? as i32) };
            Ok(())
        }
        ["echo"] => {
            eprintln!("said to stderr");
            io::copy(&mut io::stdin().lock(), &mut io::stdout().lock()).map(drop)
        }
        ["say", text] => say(text),
        ["env"] => {
            let mut all: Vec<_> = std::env::vars().map(|(name, value)| format!("{name}={value}")).collect();
            all.sort();
            all.iter().try_for_each(say)
        }
        ["cwd"] => say(std::env::current_dir()?.display()),
        ["ids"] => {
            // SAFETY: they only ask.
            let (user, group) = unsafe { (libc::getuid(), libc::getgid()) };
            say(format_args!("{user} {group} {}", std::process::id()))
        }
        ["status"] => say(fs::read_to_string("/proc/self/status")?),
        ["limits"] => say(fs::read_to_string("/proc/self/limits")?),
        ["write", path] => say(outcome(fs::write(path, "x"))),
        // An empty one in the place of one that had something in it, and how much is in that.
        ["empty-anew", path] => {
            let made = fs::remove_dir_all(path).and_then(|()| fs::create_dir(path));
            match made.and_then(|()| fs::read_dir(path)) {
                Ok(entries) => say(format_args!("{} left", entries.count())),
                Err(error) => say(outcome::<()>(Err(error))),
            }
        }
        ["append-stdout"] => say(outcome(fs::File::options().write(true).open("/dev/stdout"))),
        ["read", path] => match fs::read(path) {
            Ok(bytes) => say(String::from_utf8_lossy(&bytes)),
            Err(error) => say(outcome::<()>(Err(error))),
        },
        // A page of it: some have no end.
        ["read-some", path] => match fs::File::open(path) {
            Ok(mut file) => {
                let mut page = [0; 4096];
                match file.read(&mut page) {
                    Ok(length) => say(String::from_utf8_lossy(&page[..length])),
                    Err(error) => say(outcome::<()>(Err(error))),
                }
            }
            Err(error) => say(outcome::<()>(Err(error))),
        },
        ["read-and-wait", path] => {
            io::copy(&mut fs::File::open(path)?, &mut io::sink())?;
            say("ready")?;
            pause()
        }
        ["owner", path] => {
            let metadata = fs::symlink_metadata(path)?;
            say(format_args!("{} {}", metadata.uid(), metadata.gid()))
        }
        ["terminal"] => say(match terminal() {
            Ok((_, name)) => format!("ok {name}"),
            Err(error) => outcome::<()>(Err(error)),
        }),
        ["list", path] => match fs::read_dir(path) {
            Ok(entries) => entries.flatten().try_for_each(|entry| say(entry.file_name().display())),
            Err(error) => say(outcome::<()>(Err(error))),
        },
        ["fill", path] => {
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
        ["serve", path] => {
            let listener = UnixListener::bind(path)?;
            say("ready")?;
            for stream in listener.incoming() {
                let mut stream = stream?;
                let mut line = String::new();
                BufReader::new(stream.try_clone()?).read_line(&mut line)?;
                stream.write_all(format!("guest heard {line}").as_bytes())?;
            }
            Ok(())
        }
        ["call", path] => {
            let mut stream = UnixStream::connect(path)?;
            stream.write_all(b"hello\n")?;
            let mut answer = String::new();
            BufReader::new(stream).read_line(&mut answer)?;
            say(answer.trim())
        }
        ["hold", mib] => {
            hold(number(mib)?);
            say("held")
        }
        ["hold-in-child", mib] => {
            let status = Command::new(std::env::current_exe()?)
                .args(["guest", "hold", mib])
                .stdout(Stdio::null())
                .status()?;
            say(format_args!("child {}", if status.success() { "held" } else { "died" }))?;
            exit(i32::from(!status.success()) * 3)
        }
        ["fork", count] => {
            let mut made = 0;
            for _ in 0..number(count)? {
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
        ["count", path] => {
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
        ["spin"] => {
            say("ready")?;
            loop {
                std::hint::spin_loop();
            }
        }
        ["on-term", code] => {
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
            exit(number(code)? as i32)
        }
        ["ignore-term"] => {
            // SAFETY: installs no code of ours.
            unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
            say("ready")?;
            pause()
        }
        // A word after it makes the process recognisable from outside.
        ["wait", ..] => {
            say("ready")?;
            pause()
        }
        // Leaves a process behind that only holds standard output: its reader sees the end when that is gone, too.
        ["daemon", then] => {
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
            if *then == "exit" { Ok(()) } else { pause() }
        }
        // Finds what the last start left in a file, leaves a word and a process.
        ["left-behind", path] => {
            match fs::read_to_string(path) {
                Ok(word) => say(format_args!("found {word}"))?,
                Err(_) => say("nothing yet")?,
            }
            fs::write(path, std::env::var("WHICH").unwrap_or_default())?;
            guest(&["daemon-and-wait"])
        }
        ["daemon-and-wait"] => {
            // SAFETY: this program has one thread; the child only makes system calls.
            unsafe {
                if libc::fork() == 0 {
                    libc::setsid();
                    pause();
                }
            }
            say("ready")?;
            pause()
        }
        ["kill-others"] => {
            // Where there is no sandbox, that would be everybody.
            if fs::read_to_string("/proc/1/comm")?.trim() != "stoker-init" {
                return Err(io::Error::other("not in a sandbox"));
            }
            // SAFETY: signals to all but ourselves and what may not be killed.
            unsafe { libc::kill(-1, libc::SIGKILL) };
            say("ready")?;
            pause()
        }
        ["connect", address] => {
            let stream = TcpStream::connect(address);
            match stream {
                Ok(mut stream) => {
                    let mut text = String::new();
                    stream.read_to_string(&mut text)?;
                    say(format_args!("ok {text}"))
                }
                Err(error) => say(outcome::<()>(Err(error))),
            }
        }
        ["world", addresses @ ..] => world::serve(addresses),
        ["talk", address, kib, at_once] => world::talk(address, number(kib)? << 10, number(at_once)?),
        ["half", address] => world::half(address),
        ["ask", address] => world::ask(address),
        ["resolve", name] => world::resolve(name),
        ["download", address, kib] => world::download(address, number(kib)? << 10),
        ["interfaces"] => {
            for line in fs::read_to_string("/proc/net/dev")?.lines().skip(2) {
                say(line.split(':').next().unwrap_or_default().trim())?;
            }
            Ok(())
        }
        ["processes"] => {
            for entry in fs::read_dir("/proc")?.flatten() {
                if entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok()) {
                    let command = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
                    say(format_args!("{} {}", entry.file_name().display(), command.replace('\0', " ")))?;
                }
            }
            Ok(())
        }
        ["descriptors"] => {
            let mut open = Vec::new();
            for number in 0..4096 {
                // SAFETY: asks for the flags of a descriptor, or learns that there is none.
                if unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0 {
                    open.push(number.to_string());
                }
            }
            say(open.join(" "))
        }
        ["attack", what] => attack::one(what),
        ["attack-signals", runner] => attack::signals(number(runner)? as i32),
        ["attack-segment", key] => attack::segment(key.parse().map_err(io::Error::other)?),
        ["attack-abstract", name] => {
            let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
            say(outcome(UnixStream::connect_addr(&address)))
        }
        // A file and an argument that nobody else may see.
        ["keep", secret] => {
            for place in ["/tmp/secret", "/tmp/shared/secret", "/dev/shm/secret"] {
                fs::write(place, secret)?;
            }
            say("ready")?;
            pause()
        }
        ["fill-files", directory] => {
            let mut made = 0_u64;
            loop {
                if let Err(error) = fs::File::create(format!("{directory}/{made}")) {
                    break say(format_args!("{made} {}", outcome::<()>(Err(error))));
                }
                made += 1;
            }
        }
        other => Err(io::Error::other(format!("unknown verb {other:?}"))),
    }
}

/// Makes a pair of terminals and opens both ends.
fn terminal() -> io::Result<(fs::File, String)> {
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

/// Allocates and touches.
fn hold(mib: u64) {
    let mut pieces = Vec::new();
    for _ in 0..mib {
        let mut piece = vec![0_u8; 1 << 20];
        for page in piece.chunks_mut(4096) {
            page[0] = 1;
        }
        pieces.push(std::hint::black_box(piece));
    }
}
