//! `stoker top` in a real terminal: what it shows of a fleet at work, its keys, and that the terminal is given back whatever happens.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use stoker_tests::{program, within};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use crate::command::Up;
use crate::relay::Relay;

/// What a person sees.
#[derive(Debug, Default, Clone)]
struct Seen {
    text: String,
    /// The screen of a program and not the shell's.
    alternate: bool,
    cursor: bool,
    /// Colours were asked for.
    coloured: bool,
}

impl Seen {
    fn line(&self, begin: &str) -> Option<Vec<&str>> {
        let line = self.text.lines().find(|line| line.starts_with(begin))?;
        Some(line.split_whitespace().collect())
    }
}

/// A terminal with a program in it.
struct Terminal {
    keys: File,
    size: watch::Sender<(u16, u16)>,
    seen: watch::Receiver<Seen>,
    child: Child,
}

impl Terminal {
    /// `stoker` with these words, in a terminal of this many rows and columns.
    fn start(server: &str, words: &[&str], rows: u16, columns: u16, no_color: &str) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        resize(&slave, rows, columns);
        // In a session of its own, whose terminal this is: Ctrl-C and the size reach it as they do in any shell.
        let child = Command::new("setsid")
            .arg("--ctty")
            .arg(program("stoker"))
            .args(words)
            .args(["--server", server])
            .env("NO_COLOR", no_color)
            .env("TERM", "xterm-256color")
            .stdin(slave.try_clone().unwrap())
            .stdout(slave.try_clone().unwrap())
            .stderr(slave)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (size, sizes) = watch::channel((rows, columns));
        let (shows, seen) = watch::channel(Seen::default());
        let mut output = File::from(master.try_clone().unwrap());
        // Ends when the program's side of the terminal is closed.
        std::thread::spawn(move || {
            let mut screen = vt100::Parser::new(rows, columns, 0);
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut buffer) {
                let bytes = &buffer[..length];
                let (rows, columns) = *sizes.borrow();
                screen.screen_mut().set_size(rows, columns);
                screen.process(bytes);
                let now = screen.screen();
                shows.send_modify(|seen| {
                    seen.text = now.contents();
                    seen.alternate = now.alternate_screen();
                    seen.cursor = !now.hide_cursor();
                    seen.coloured |= bytes.windows(5).any(|part| part == b"\x1b[38;");
                });
            }
        });
        Self { keys: File::from(master), size, seen, child }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    fn resize(&self, rows: u16, columns: u16) {
        self.size.send_replace((rows, columns));
        resize(&self.keys, rows, columns);
    }

    /// Waits until it looks like this. What is seen may be half of a picture, whose other half comes next: all that must be there together is asked
    /// for here, and not of what is returned.
    async fn until(&self, what: &str, is: impl Fn(&Seen) -> bool) -> Seen {
        let mut watch = self.seen.clone();
        let shown = tokio::time::timeout(stoker_tests::LIMIT, watch.wait_for(|seen| is(seen))).await;
        match shown {
            Ok(Ok(seen)) => seen.clone(),
            _ => panic!("{what} did not come; this is seen:\n{}", self.seen.borrow().text),
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id().unwrap() as i32).unwrap(), signal).unwrap();
    }

    /// Waits for its end, after which the terminal must be as the shell left it.
    async fn ended(mut self) -> ExitStatus {
        let ended = within("the end of `stoker top`", self.child.wait()).await.unwrap();
        self.until("the shell's screen", |seen| !seen.alternate && seen.cursor).await;
        let modes = tcgetattr(&self.keys).unwrap().local_modes;
        assert!(modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG), "{modes:?}");
        ended
    }
}

fn resize(terminal: &File, rows: u16, columns: u16) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).unwrap();
}

/// Calls a function again and again, until it is dropped.
fn load(up: &Up, function: &str) -> Child {
    let mut command = up.command(&["bench", function, "-c", "2", "-d", "60", "--size", "8"]);
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap()
}

#[tokio::test]
async fn top_shows_a_fleet_at_work_and_does_what_keys_say() {
    let up = Up::start().await;
    let mut load = load(&up, "demo/hello");
    let mut top = Terminal::start(&up.grpc, &["top"], 40, 120, "1");
    let first =
        |seen: &Seen| seen.text.lines().find(|line| line.starts_with("demo/")).unwrap_or("").to_owned();
    let busy = |seen: &Seen| {
        seen.line("demo/hello").is_some_and(|row| {
            let rate: f64 = row.get(1).map_or(0.0, |rate| rate.replace(',', "").parse().unwrap_or(0.0));
            rate > 1.0 && row.get(3).is_some_and(|time| *time != "-")
        })
    };
    let whole = |seen: &Seen| {
        let says = |line, word| seen.line(line).is_some_and(|row| row.get(1) == Some(&word));
        seen.text.contains("1 balancer · 1 runner · 4 functions")
            && says("runner-p", "ready")
            && says("balancer", "live")
            && first(seen).starts_with("demo/hello")
    };
    let seen = top.until("calls of demo/hello, the busiest on top", |seen| busy(seen) && whole(seen)).await;
    assert!(seen.alternate && !seen.cursor && !seen.coloured, "{seen:?}");
    if let Some(directory) = std::env::var_os("STOKER_TEST_PICTURES") {
        std::fs::write(std::path::Path::new(&directory).join("top.txt"), &seen.text).unwrap();
    }
    top.press("/fail");
    top.until("one function", |seen| {
        seen.text.matches("demo/").count() == 1 && first(seen).starts_with("demo/fails")
    })
    .await;
    // A key that begins like many others, and stands for itself: the terminal's parser waits for no more of it.
    top.press("\x1b");
    top.until("all functions", |seen| seen.text.matches("demo/").count() == 4).await;
    top.press("S");
    top.until("another order", |seen| first(seen).starts_with("demo/fails")).await;
    top.press("jj\r");
    let all = |seen: &Seen, parts: &[&str]| parts.iter().all(|part| seen.text.contains(part));
    let close = ["stoker logs demo/", "since the balancers started"];
    top.until("one of them closely", |seen| all(seen, &close)).await;
    top.press("\r\tj\r");
    let close = ["http://127.0.0.1:", "memory", "record"];
    top.until("the runner closely", |seen| all(seen, &close)).await;
    top.press("\r?");
    top.until("help", |seen| seen.text.contains("Ctrl-C")).await;
    top.press("?p");
    top.until("a pause", |seen| seen.text.contains("paused")).await;
    top.press("p");
    top.resize(14, 60);
    let fits = |seen: &Seen| {
        let lines: Vec<_> = seen.text.lines().collect();
        lines.len() <= 14
            && lines.iter().all(|line| line.chars().count() <= 60)
            && !seen.text.contains("paused")
    };
    top.until("the same in a small window", |seen| {
        fits(seen)
            && seen.text.starts_with("stoker top")
            && seen.line("FUNCTION").is_some_and(|row| !row.contains(&"WAITING"))
            && seen.text.contains("demo/")
    })
    .await;
    // What reads the terminal for it leaves a key that comes at the very moment of a new size until the next key comes.
    let mut pictures = top.seen.clone();
    while top.child.try_wait().unwrap().is_none() {
        pictures.mark_unchanged();
        top.keys.write_all(b"q").ok();
        within("another picture, or the last", pictures.changed()).await.ok();
    }
    assert_eq!(top.ended().await.code(), Some(0));
    load.kill().await.unwrap();
    up.stop().await;
}

#[tokio::test]
async fn top_gives_the_terminal_back_however_it_ends() {
    let up = Up::start().await;
    for (end, code) in [("\x03", 0), ("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)] {
        let mut top = Terminal::start(&up.grpc, &["top"], 24, 80, "");
        let fleet = |seen: &Seen| seen.line("runner-p").is_some() && seen.alternate && seen.coloured;
        top.until("the fleet, in colours", fleet).await;
        match end {
            "SIGINT" => top.signal(Signal::INT),
            "SIGTERM" => top.signal(Signal::TERM),
            "SIGHUP" => top.signal(Signal::HUP),
            keys => top.press(keys),
        }
        let ended = top.ended().await;
        assert_eq!((ended.code(), ended.signal()), (Some(code), None), "{end:?}");
    }
    up.stop().await;
}

#[tokio::test]
async fn top_says_that_a_balancer_is_gone_and_comes_back_to_it() {
    let up = Up::start().await;
    let relay = Relay::to(&up.grpc).await;
    let mut top = Terminal::start(&relay.url, &["top"], 30, 110, "1");
    top.until("the fleet", |seen| seen.line("runner-p").is_some()).await;
    relay.cut();
    top.until("that it is lost, and what was seen last", |seen| {
        seen.text.contains("this is old: balancer lost for")
            && seen.text.contains("0 of 1 balancer")
            && seen.line("runner-p").is_some()
    })
    .await;
    relay.lead(&up.grpc);
    top.until("that it is there again", |seen| {
        !seen.text.contains("lost") && seen.text.contains("· 1 runner")
    })
    .await;
    top.press("q");
    assert_eq!(top.ended().await.code(), Some(0));
    up.stop().await;
}

#[tokio::test]
async fn top_writes_for_scripts_what_it_shows() {
    let up = Up::start().await;
    up.good(&["call", "demo/hello", "--data", "Ada"]).await;
    let text = up.good(&["top", "--once", "--interval", "250ms", "--sort", "name"]).await;
    for part in ["stoker top", "1 runner", "BALANCER", "RUNNER", "FUNCTION", "demo/hello", "ready"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(!text.contains('\x1b') && text.lines().all(|line| line == line.trim_end()), "{text:?}");
    let json = up.good(&["top", "--once", "--interval", "250ms", "-o", "json"]).await;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let hello = json["functions"].as_array().unwrap().iter().find(|f| f["function"] == "demo/hello").unwrap();
    assert_eq!((&hello["calls_ever"], &json["runners"][0]["state"]), (&1.into(), &"ready".into()), "{json}");
    assert!(json["balancers"][0]["later"]["queued"].is_number(), "{json}");
    // Of two balancers of which one is away, the other is shown.
    let both = format!("{},http://127.0.0.1:1", up.grpc);
    let text = up.good(&["top", "--once", "--interval", "250ms", "--server", &both]).await;
    assert!(text.contains("1 of 2 balancers") && text.contains("lost"), "{text}");
    let output = up.run(&["top"]).await;
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("needs a terminal"));
    let output = up.run(&["top", "--once", "--server", "http://127.0.0.1:1"]).await;
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    up.stop().await;
}
