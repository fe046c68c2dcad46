//! The spawner on its own, and the function that the conformance suite runs inside: one program, so that a test needs
//! nothing from the machine. `stoker-spawner guest VERB …` does one small thing and says what came of it.

#![expect(unsafe_code, reason = "the guest tries system calls that no safe crate would make")]

#[path = "stoker-spawner/attack.rs"]
mod attack;
#[path = "stoker-spawner/files.rs"]
mod files;
#[path = "stoker-spawner/processes.rs"]
mod processes;
#[path = "stoker-spawner/world.rs"]
mod world;

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{ExitCode, exit};

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

/// Does what a verb says.
fn guest(words: &[&str]) -> io::Result<()> {
    let number = |text: &str| text.parse::<u64>().map_err(io::Error::other);
    match words {
        // What it is, and what it finds.
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
        ["env"] => processes::environment(),
        ["cwd"] => say(std::env::current_dir()?.display()),
        ["ids"] => processes::ids(),
        ["status"] => say(fs::read_to_string("/proc/self/status")?),
        ["limits"] => say(fs::read_to_string("/proc/self/limits")?),
        ["processes"] => processes::list(),
        ["descriptors"] => processes::descriptors(),
        ["terminal"] => say(match files::terminal() {
            Ok((_, name)) => format!("ok {name}"),
            Err(error) => outcome::<()>(Err(error)),
        }),

        // Files.
        ["write", path] => say(outcome(fs::write(path, "x"))),
        ["empty-anew", path] => files::empty_anew(path),
        ["append-stdout"] => say(outcome(fs::File::options().write(true).open("/dev/stdout"))),
        ["read", path] => files::read(path),
        ["read-some", path] => files::read_some(path),
        ["read-and-wait", path] => files::read_and_wait(path),
        ["owner", path] => files::owner(path),
        ["list", path] => files::list(path),
        ["fill", path] => files::fill(path),
        ["fill-files", directory] => files::fill_files(directory),
        ["count", path] => files::count(path),
        ["keep", secret] => files::keep(secret),

        // Memory, processes and signals.
        ["hold", mib] => {
            processes::hold(number(mib)?);
            say("held")
        }
        ["hold-in-child", mib] => processes::hold_in_child(mib),
        ["fork", count] => processes::fork(number(count)?),
        ["spin"] => processes::spin(),
        ["on-term", code] => processes::on_term(number(code)? as i32),
        ["ignore-term"] => processes::ignore_term(),
        // A word after it makes the process recognisable from outside.
        ["wait", ..] => processes::wait(),
        ["daemon", then] => processes::daemon(*then == "exit"),
        ["daemon-and-wait"] => processes::daemon_and_wait(),
        ["left-behind", path] => processes::left_behind(path),
        ["kill-others"] => processes::kill_others(),

        // Sockets, and the world.
        ["serve", path] => serve(path),
        ["call", path] => call(path),
        ["connect", address] => connect(address),
        ["world", addresses @ ..] => world::serve(addresses),
        ["talk", address, kib, at_once] => world::talk(address, number(kib)? << 10, number(at_once)?),
        ["half", address] => world::half(address),
        ["ask", address] => world::ask(address),
        ["resolve", name] => world::resolve(name),
        ["download", address, kib] => world::download(address, number(kib)? << 10),
        ["interfaces"] => interfaces(),

        // What it must not be able to do.
        ["attack", what] => attack::one(what),
        ["attack-signals", runner] => attack::signals(number(runner)? as i32),
        ["attack-segment", key] => attack::segment(key.parse().map_err(io::Error::other)?),
        ["attack-abstract", name] => {
            let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
            say(outcome(UnixStream::connect_addr(&address)))
        }
        other => Err(io::Error::other(format!("unknown verb {other:?}"))),
    }
}

/// Answers each line that comes by a socket.
fn serve(path: &str) -> io::Result<()> {
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

fn call(path: &str) -> io::Result<()> {
    let mut stream = UnixStream::connect(path)?;
    stream.write_all(b"hello\n")?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    say(answer.trim())
}

fn connect(address: &str) -> io::Result<()> {
    match TcpStream::connect(address) {
        Ok(mut stream) => {
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            say(format_args!("ok {text}"))
        }
        Err(error) => say(outcome::<()>(Err(error))),
    }
}

fn interfaces() -> io::Result<()> {
    for line in fs::read_to_string("/proc/net/dev")?.lines().skip(2) {
        say(line.split(':').next().unwrap_or_default().trim())?;
    }
    Ok(())
}
