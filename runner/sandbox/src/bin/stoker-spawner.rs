//! The spawner on its own, and the function that the conformance suite runs inside: one program, so that a test needs
//! nothing from the machine. `stoker-spawner guest VERB …` does one small thing and says what came of it.

#![expect(unsafe_code, reason = "the guest tries system calls that no safe crate would make")]

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
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
        ["append-stdout"] => say(outcome(fs::File::options().write(true).open("/dev/stdout"))),
        ["read", path] => match fs::read(path) {
            Ok(bytes) => say(String::from_utf8_lossy(&bytes)),
            Err(error) => say(outcome::<()>(Err(error))),
        },
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
        ["system-calls"] => system_calls(),
        other => Err(io::Error::other(format!("unknown verb {other:?}"))),
    }
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

/// Tries what a function must not do, and prints the error number of each.
fn system_calls() -> io::Result<()> {
    let null = 0_usize;
    let dot = c"/tmp".as_ptr() as usize;
    let proc = c"proc".as_ptr() as usize;
    let clone_user = libc::CLONE_NEWUSER as usize | libc::SIGCHLD as usize;
    let calls: [(&str, libc::c_long, [usize; 5]); 22] = [
        ("mount", libc::SYS_mount, [proc, dot, proc, null, null]),
        ("umount2", libc::SYS_umount2, [dot, null, null, null, null]),
        ("unshare", libc::SYS_unshare, [libc::CLONE_NEWUSER as usize, null, null, null, null]),
        ("setns", libc::SYS_setns, [0, null, null, null, null]),
        ("clone-newuser", libc::SYS_clone, [clone_user, null, null, null, null]),
        ("clone3", libc::SYS_clone3, [null, null, null, null, null]),
        ("pivot_root", libc::SYS_pivot_root, [dot, dot, null, null, null]),
        ("chroot", libc::SYS_chroot, [dot, null, null, null, null]),
        ("ptrace", libc::SYS_ptrace, [libc::PTRACE_TRACEME as usize, null, null, null, null]),
        ("process_vm_readv", libc::SYS_process_vm_readv, [1, null, null, null, null]),
        ("pidfd_getfd", libc::SYS_pidfd_getfd, [0, 0, 0, null, null]),
        ("keyctl", libc::SYS_keyctl, [0, null, null, null, null]),
        ("add_key", libc::SYS_add_key, [null, null, null, null, null]),
        ("bpf", libc::SYS_bpf, [0, null, null, null, null]),
        ("perf_event_open", libc::SYS_perf_event_open, [null, null, null, null, null]),
        ("userfaultfd", libc::SYS_userfaultfd, [null, null, null, null, null]),
        ("io_uring_setup", libc::SYS_io_uring_setup, [1, null, null, null, null]),
        ("init_module", libc::SYS_init_module, [null, null, null, null, null]),
        ("reboot", libc::SYS_reboot, [null, null, null, null, null]),
        ("open_tree", libc::SYS_open_tree, [0, dot, 0, null, null]),
        ("vsock", libc::SYS_socket, [libc::AF_VSOCK as usize, libc::SOCK_STREAM as usize, 0, null, null]),
        ("alg", libc::SYS_socket, [libc::AF_ALG as usize, libc::SOCK_SEQPACKET as usize, 0, null, null]),
    ];
    for (name, call, arguments) in calls {
        let [a, b, c, d, e] = arguments;
        // SAFETY: every one of these is expected to be refused; were it not, its arguments are null or static strings, and
        // a clone without a stack is a fork, whose child ends at once.
        let result = unsafe { libc::syscall(call, a, b, c, d, e) };
        let error = io::Error::last_os_error();
        if result == 0 && name.starts_with("clone") {
            exit(0);
        }
        let errno = if result < 0 { error.raw_os_error().unwrap_or(0) } else { 0 };
        say(format_args!("{name} {errno}"))?;
    }
    Ok(())
}
