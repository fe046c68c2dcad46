//! What a call asks for, done.

use std::fs::File;
use std::io::{self, BufRead as _, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::process::{Command, exit};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::call::{Answer, Call};
use crate::channel::Channel;
use crate::format::Format;
use crate::json::{self, Value, number, object, string};

/// What is no part of any answer.
const GARBAGE: &[u8] = b"garbage that belongs to no answer\n";

/// Calls so far in this process, to tell one that was used before from a new one.
static CALLS: AtomicU64 = AtomicU64::new(0);

/// The next call is to be met with garbage.
static GARBAGE_FIRST: AtomicBool = AtomicBool::new(false);

/// Memory and files that are never given back.
static KEPT: Mutex<(Vec<Vec<u8>>, Vec<File>)> = Mutex::new((Vec::new(), Vec::new()));

/// `word:value` of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Order {
    word: String,
    value: String,
}

impl Order {
    fn number(&self) -> u64 {
        self.value.parse().unwrap_or_else(|_| misunderstood(&format!("{:?} wants a number", self.word)))
    }

    fn duration(&self) -> Duration {
        Duration::from_millis(self.number())
    }
}

fn orders(text: &str) -> Vec<Order> {
    let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
    let order = |word: &str| {
        let (word, value) = word.split_once(':').unwrap_or((word, ""));
        Order { word: word.to_owned(), value: value.to_owned() }
    };
    words.map(order).collect()
}

/// What nobody can mean ends the process: a test that is wrong must not pass.
pub fn misunderstood(what: &str) -> ! {
    eprintln!("test function: {what}");
    exit(64)
}

pub fn for_ever() -> ! {
    loop {
        std::thread::park();
    }
}

/// What the process does before its first call. Returns what is left to the format.
pub fn start(channel: Option<&mut Channel>) -> io::Result<String> {
    let mut left = String::new();
    let mut output = channel;
    for order in orders(&std::env::var("TEST_START").unwrap_or_default()) {
        match order.word.as_str() {
            "exit" => {
                eprintln!("test function: exiting with {} at its start", order.value);
                exit(order.number() as i32);
            }
            "never" => {
                eprintln!("test function: never ready");
                for_ever();
            }
            "delay" => std::thread::sleep(order.duration()),
            "abort" => std::process::abort(),
            "banner" => match &mut output {
                Some(channel) => channel.output.write_all(GARBAGE)?,
                None => io::stdout().write_all(GARBAGE)?,
            },
            _ => left = order.word,
        }
    }
    Ok(left)
}

/// What is to happen to the answer on its way out.
enum Way {
    Whole,
    /// In pieces, with a pause before each.
    Slow(Duration),
    /// Half of it, then this.
    Half(Then),
    /// It and more.
    Excess(&'static [u8]),
    /// It, twice.
    Twice,
    /// It, and later more: once a byte came from the pipe of this name.
    Late,
    /// None at all.
    Nothing,
    /// Something else instead.
    Invalid(Vec<u8>),
}

enum Then {
    Exit(i32),
    Hang,
    Close,
}

/// One call, from its head to its answer. False when there is none.
pub fn turn(format: &mut dyn Format, channel: &mut Channel) -> io::Result<bool> {
    let always = std::env::var("TEST_DO").unwrap_or_default();
    if orders(&always).iter().any(|order| order.word == "deaf") {
        eprintln!("test function: it does not listen");
        for_ever();
    }
    if GARBAGE_FIRST.swap(false, Ordering::Relaxed) && next_comes(channel)? {
        channel.output.write_all(GARBAGE)?;
    }
    if let Some(order) = orders(&always).iter().find(|order| order.word == "slow-read") {
        channel.input.pace = Some((7, order.duration()));
    }
    let Some(mut call) = format.head(channel)? else { return Ok(false) };
    CALLS.fetch_add(1, Ordering::Relaxed);
    let told = call.header("Do").map(str::to_owned);
    let before = orders(told.as_deref().unwrap_or_default());
    let has = |word: &str| before.iter().find(|order| order.word == word);
    if has("unread").is_some() || has("early").is_some() {
        let answer = Answer::json(&object([("early", Value::Bool(true))]));
        channel.output.write_all(&format.answer(&call, &answer))?;
        if has("unread").is_some() {
            for_ever();
        }
        format.body(&mut channel.input, &mut call)?;
        eprintln!("test function: read {} bytes after its answer", call.body.len());
        return Ok(true);
    }
    if has("unread-hang").is_some() {
        eprintln!("test function: it reads no further");
        for_ever();
    }
    if let Some(order) = has("slow-read") {
        channel.input.pace = Some((1024, order.duration()));
    }
    format.body(&mut channel.input, &mut call)?;
    channel.input.pace = None;
    let body = json::parse(&call.body);
    let body = body.as_ref().and_then(|body| body.get("do")).and_then(Value::text);
    let asked = [told.as_deref(), body, Some(always.as_str())].into_iter().flatten().find(|o| !o.is_empty());
    answer(format, channel, &call, &orders(asked.unwrap_or_default()))?;
    Ok(true)
}

/// Waits for the first byte of the next call; false when there is none. Space may be left of the last.
fn next_comes(channel: &mut Channel) -> io::Result<bool> {
    loop {
        let held = channel.input.fill_buf()?;
        let space = held.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        if held.len() > space || held.is_empty() {
            return Ok(!held.is_empty());
        }
        channel.input.consume(space);
    }
}

/// Does what was asked for, in its order, and answers.
fn answer(format: &dyn Format, channel: &mut Channel, call: &Call, orders: &[Order]) -> io::Result<()> {
    let mut answer = Answer { body: call.body.clone(), ..Answer::json(&Value::Null) };
    if !call.content_type.is_empty() {
        answer.content_type.clone_from(&call.content_type);
    }
    let mut way = Way::Whole;
    let mut fate = None;
    for order in orders {
        let mut say = |value: Value| {
            answer.body = value.to_text().into_bytes();
            answer.content_type = "application/json".to_owned();
        };
        match order.word.as_str() {
            "echo" | "slow-read" => {}
            "calls" => say(object([("calls", number(CALLS.load(Ordering::Relaxed)))])),
            "report" => say(report(call)),
            "text" => {
                let body = json::parse(&call.body);
                say(body.and_then(|body| body.get("text").cloned()).unwrap_or(Value::Null));
            }
            "large" => say(object([("large", string("x".repeat(order.number() as usize)))])),
            "empty" => (answer.body, answer.content_type) = (Vec::new(), String::new()),
            "plain" => {
                (answer.body, answer.content_type) = (order.value.clone().into(), "text/plain".to_owned())
            }
            "bytes" => {
                answer.body = (0..order.number()).map(|n| n as u8).collect();
                answer.content_type = "application/octet-stream".to_owned();
            }
            "status" => answer.status = order.number() as u16,
            "chunked" => answer.chunked = true,
            "fail" => {
                answer.failed = true;
                if format.is_cold() {
                    fate = Some(3);
                }
            }
            "sleep" => {
                eprintln!("test function: sleeping");
                std::thread::sleep(order.duration());
            }
            "spin" => {
                let end = Instant::now() + order.duration();
                while Instant::now() < end {
                    std::hint::spin_loop();
                }
            }
            "exit" => {
                eprintln!("test function: exiting with {}", order.value);
                exit(order.number() as i32);
            }
            "exit-after" => fate = Some(order.number() as i32),
            "abort" => std::process::abort(),
            "segv" => invalid_access(),
            "hang" => {
                eprintln!("test function: hanging");
                for_ever();
            }
            "memory" => drop(touch(order.number())),
            "leak" => {
                let memory = touch(order.number());
                kept_things(|kept| kept.0.push(memory));
            }
            "leak-fds" => {
                let mut opened = 0;
                while opened < order.number() {
                    let Ok(file) = File::open("/dev/null") else { break };
                    kept_things(|kept| kept.1.push(file));
                    opened += 1;
                }
                say(object([("opened", number(opened))]));
            }
            "threads" => {
                for _ in 0..order.number() {
                    std::thread::spawn(|| for_ever());
                }
            }
            "log" => eprintln!("{}", order.value),
            "log-lines" => {
                let line = "one of many lines of the log ".repeat(3);
                for n in 0..order.number() {
                    eprintln!("{n} {line}");
                }
            }
            "log-line" => eprintln!("{}", "y".repeat(order.number() as usize * 1024)),
            "log-open" => eprint!("{}", order.value),
            "log-bytes" => io::stderr().write_all(b"\xff\xfe\0\x1b[31mred\n")?,
            "print" => {
                channel_of_prints(channel).write_all(format!("{}\n", order.value).as_bytes())?;
            }
            "noise" => channel.output.write_all(GARBAGE)?,
            "space" => channel.output.write_all(b" \r\n\t\n")?,
            "fork" => {
                // It holds what it inherits, and outlives whoever does not end it.
                Command::new("/proc/self/exe").arg("--hold").spawn()?;
            }
            "close-input" => channel.close_input()?,
            "close-output" => channel.close_output()?,
            "tmp-write" => std::fs::write(temporary(), &order.value)?,
            "write-root" => {
                let written = std::fs::write("/stoker-test-file", "x").is_ok();
                say(object([("written", Value::Bool(written))]));
            }
            "fill-tmp" => {
                let mut file = File::create(std::env::temp_dir().join("large"))?;
                let piece = vec![b'z'; 1 << 20];
                let mut mebibytes = 0;
                while mebibytes < order.number() && file.write_all(&piece).is_ok() {
                    mebibytes += 1;
                }
                say(object([("mebibytes", number(mebibytes))]));
            }
            "header" => {
                let (name, value) = order.value.split_once('=').unwrap_or((&order.value, ""));
                answer.headers.push((name.to_owned(), value.to_owned()));
            }
            "headers" => {
                let wide = (0..order.number()).map(|n| (format!("X-Wide-{n}"), "h".repeat(1000)));
                answer.headers.extend(wide);
            }
            "slow-write" => way = Way::Slow(order.duration()),
            "half-exit" => way = Way::Half(Then::Exit(order.number() as i32)),
            "half-hang" => way = Way::Half(Then::Hang),
            "half-close" => way = Way::Half(Then::Close),
            "excess" => way = Way::Excess(GARBAGE),
            "space-after" => way = Way::Excess(b"\r\n \t\n"),
            "twice" => way = Way::Twice,
            "late" => way = Way::Late,
            "late-next" => GARBAGE_FIRST.store(true, Ordering::Relaxed),
            "nothing" => way = Way::Nothing,
            "invalid" => match format.invalid(call, &order.value) {
                Some(bytes) => way = Way::Invalid(bytes),
                None => misunderstood(&format!("this format is not invalid in the way {:?}", order.value)),
            },
            _ => misunderstood(&format!("{order:?} is not in the table")),
        }
    }
    write(format, channel, call, &answer, way)?;
    match fate {
        Some(status) => {
            format.acknowledged(&mut channel.input)?;
            exit(status)
        }
        None => Ok(()),
    }
}

fn write(
    format: &dyn Format,
    channel: &mut Channel,
    call: &Call,
    answer: &Answer,
    way: Way,
) -> io::Result<()> {
    let bytes = format.answer(call, answer);
    let out = &mut channel.output;
    match way {
        Way::Whole => out.write_all(&bytes),
        Way::Slow(pause) => {
            for piece in bytes.chunks(bytes.len().div_ceil(16).max(1)) {
                std::thread::sleep(pause);
                out.write_all(piece)?;
            }
            Ok(())
        }
        Way::Half(then) => {
            out.write_all(&bytes[..bytes.len() / 2])?;
            match then {
                Then::Exit(status) => exit(status),
                Then::Hang => for_ever(),
                Then::Close => {
                    channel.close_output()?;
                    for_ever()
                }
            }
        }
        Way::Excess(more) => out.write_all(&[&bytes, more].concat()),
        Way::Twice => out.write_all(&[&bytes[..], &bytes].concat()),
        Way::Late => {
            let mut late = out.try_clone()?;
            out.write_all(&bytes)?;
            // The caller opens the gate once it has the answer; so what comes now is late, by no clock.
            std::thread::spawn(move || {
                let gate = std::env::var("TEST_GATE").unwrap_or_default();
                let passed = File::open(&gate).and_then(|mut gate| gate.read_exact(&mut [0]));
                let written = passed.and_then(|()| late.write_all(GARBAGE));
                eprintln!("test function: late output: {written:?}");
            });
            Ok(())
        }
        Way::Nothing => Ok(()),
        Way::Invalid(bytes) => {
            out.write_all(&bytes)?;
            for_ever()
        }
    }
}

/// Where a function may print: STDERR in formats whose STDOUT is the channel.
fn channel_of_prints(channel: &Channel) -> Box<dyn io::Write> {
    match channel.output {
        crate::channel::Pipe::File(_) => Box::new(io::stderr()),
        crate::channel::Pipe::Socket(_) | crate::channel::Pipe::Tcp(_) => Box::new(io::stdout()),
    }
}

fn temporary() -> std::path::PathBuf {
    std::env::temp_dir().join("stoker-test-function")
}

fn kept_things(keep: impl FnOnce(&mut (Vec<Vec<u8>>, Vec<File>))) {
    keep(&mut KEPT.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
}

/// Takes memory, and uses it.
fn touch(mebibytes: u64) -> Vec<u8> {
    let mut memory = Vec::new();
    for _ in 0..mebibytes {
        let end = memory.len() + (1 << 20);
        memory.resize(end, 1);
    }
    memory
}

#[expect(unsafe_code, reason = "nothing that is safe touches memory that is not there")]
fn invalid_access() -> ! {
    let nowhere = std::ptr::without_provenance_mut::<u8>(8);
    // SAFETY: none: it is meant to end the process, and no other thing happens at this address.
    unsafe { nowhere.write_volatile(1) };
    std::process::abort()
}

/// All that this process knows.
fn report(call: &Call) -> Value {
    let headers = call.headers.iter().map(|(n, v)| Value::Array(vec![string(n), string(v)])).collect();
    let kept = std::fs::read_to_string(temporary());
    let user = std::fs::metadata("/proc/self").map_or(0, |own| own.uid());
    object([
        ("calls", number(CALLS.load(Ordering::Relaxed))),
        ("call_id", string(&call.id)),
        ("deadline", string(&call.deadline)),
        ("method", string(&call.method)),
        ("url", string(&call.url)),
        ("headers", Value::Array(headers)),
        ("content_type", string(&call.content_type)),
        ("body_length", number(call.body.len())),
        ("told", call.told.clone()),
        ("env", object(std::env::vars().map(|(key, value)| (key, string(value))))),
        ("pid", number(std::process::id())),
        ("user", number(user)),
        ("cwd", string(std::env::current_dir().unwrap_or_default().to_string_lossy())),
        ("tmp", kept.map_or(Value::Null, string)),
    ])
}
