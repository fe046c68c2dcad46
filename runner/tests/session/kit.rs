//! A runner to test, a session with it, and functions that misbehave on request.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use stoker_core::function::{Digest, Format, FunctionName, FunctionSpec};
use stoker_core::{CallId, Resources, RunnerName};
use stoker_proto::runner::v1::runner_service_client::RunnerServiceClient;
use stoker_proto::runner::v1::{self as wire, engage_request as req, engage_response as res};
use stoker_proto::{convert, v1};
use stoker_registry::MemoryRegistry;
use stoker_runner::{Config, Runner};
use stoker_sandbox::{select::Choice, spawner};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

pub use crate::killed::until;

pub fn we_are_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Longer than anything here takes on a slow and busy machine.
pub const LIMIT: Duration = Duration::from_secs(60);
/// The remaining time of calls that do not mean to run out of it.
pub const AMPLE: u64 = 120_000;

/// Runs a case on the strongest driver of this machine, and on plain processes.
macro_rules! on_both_drivers {
    ($($case:ident),* $(,)?) => {$(
        mod $case {
            #[tokio::test(flavor = "multi_thread")]
            async fn auto() {
                super::$case(stoker_sandbox::select::Choice::Auto).await;
            }
            #[tokio::test(flavor = "multi_thread")]
            async fn process() {
                super::$case(stoker_sandbox::select::Choice::Process).await;
            }
        }
    )*};
}
pub(crate) use on_both_drivers;

/// Speaks http-stream by hand, so that it can misbehave. What it does with a call stands in the header `X-Do`.
const FUNC: &str = r#"
import os, socket, sys, threading, time
path = os.environ["FN_LISTENER"][5:]
if os.environ.get("MODE") == "never": time.sleep(1000)
if os.environ.get("MODE") == "datagrams": s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.bind(path); os.chmod(path, 0o666); time.sleep(1000)
if os.environ.get("MODE") == "exit": print("goodbye", file=sys.stderr); sys.exit(3)
s = socket.socket(socket.AF_UNIX); s.bind(path + ".tmp"); os.chmod(path + ".tmp", 0o666); s.listen(16)
os.symlink("lsnr.sock.tmp", path)
four = threading.Barrier(4); kept = []
def serve(c):
    f = c.makefile("rwb")
    while True:
        if not f.readline(): return
        h = {}
        while True:
            l = f.readline().strip().decode()
            if not l: break
            k, v = l.split(":", 1); h[k.lower()] = v.strip()
        do = h.get("x-do", "echo")
        if do == "early":
            f.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nearly"); f.flush(); return
        if do == "stream":
            f.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"); f.flush()
        body = b""
        if "content-length" in h: body = f.read(int(h["content-length"]))
        else:
            while True:
                n = int(f.readline(), 16); d = f.read(n); f.readline()
                if do == "stream" and n:
                    f.write(b"%x\r\n" % n + d + b"\r\n"); f.flush()
                elif do != "stream": body += d
                if not n: break
        if do == "stream": f.write(b"0\r\n\r\n"); f.flush(); continue
        if do == "sleep": time.sleep(float(body))
        if do == "meet": four.wait()
        if do == "crash": print("last words", file=sys.stderr, flush=True); os._exit(7)
        if do == "garbage": f.write(b"what?\r\n\r\n"); f.flush(); continue
        if do == "fail": f.write(b"HTTP/1.1 502 no\r\nContent-Length: 4\r\n\r\nboom"); f.flush(); continue
        if do == "odd": f.write(b"HTTP/1.1 201 no\r\nContent-Length: 0\r\n\r\n"); f.flush(); continue
        if do == "excess": f.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiXXX"); f.flush(); continue
        if do == "bye": f.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\nbye"); f.flush(); c.close(); return
        if do == "eat": body = b"x" * (1 << 30)
        if do == "give": body = b"x" * int(body)
        if do == "work":
            until = time.process_time() + 0.05
            while time.process_time() < until: pass
        if do == "load":
            with open(body.decode(), "rb") as big: body = str(sum(map(len, iter(lambda: big.read(1 << 20), b"")))).encode()
        if do == "length": body = h.get("content-length", "none").encode()
        if do == "trace": body = h.get("traceparent", "").encode()
        if do == "env": body = os.environ[body.decode()].encode()
        if do == "pid": body = str(os.getpid()).encode()
        if do == "dial":
            host, port = body.decode().split()
            if host == "resolver": host = next(l.split()[1] for l in open("/etc/resolv.conf") if l.startswith("nameserver"))
            try: kept.append(socket.create_connection((host, int(port)), 30)); body = b"open"
            except OSError as e: body = type(e).__name__.encode()
        if do == "hang up": c2 = kept.pop(); c2.shutdown(socket.SHUT_WR); body = c2.recv(1); c2.close()
        f.write(b"HTTP/1.1 200 OK\r\nX-Kit: py\r\nContent-Length: %d\r\n\r\n" % len(body) + body); f.flush()
while True:
    c, _ = s.accept()
    threading.Thread(target=serve, args=(c,), daemon=True).start()
"#;

/// The spawner's program, beside the tests.
pub fn spawner() -> spawner::Command {
    let program = std::env::var_os("STOKER_TEST_SPAWNER").map(PathBuf::from).unwrap_or_else(|| {
        let tests = std::env::current_exe().unwrap();
        tests.parent().and_then(Path::parent).unwrap().join("stoker-spawner")
    });
    assert!(
        program.exists(),
        "{} is missing: build it with `cargo build -p stoker-sandbox --bins`, as scripts/test does",
        program.display()
    );
    spawner::Command { program, args: Vec::new() }
}

/// What a runner of a test is told: `slots` slots, `memory_mib` MiB, four cores, a name of its own.
pub fn config(choice: Choice, memory_mib: u64, slots: u32, state: &Path) -> Config {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("t{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let resources = Resources { memory: memory_mib << 20, cpu_millis: 4000, slots };
    let mut config = Config::new(RunnerName::new(&name).unwrap(), resources, state);
    config.listen = "127.0.0.1:0".parse().unwrap();
    config.sandbox = choice;
    config.spawner = spawner();
    config
}

pub struct Fleet {
    pub runner: Runner,
    _state: Option<tempfile::TempDir>,
}

pub async fn fleet(choice: Choice, memory_mib: u64, slots: u32) -> Fleet {
    frozen_after(choice, memory_mib, slots, Duration::from_millis(100)).await
}

/// One whose idle containers freeze after another time.
pub async fn frozen_after(choice: Choice, memory_mib: u64, slots: u32, after: Duration) -> Fleet {
    let state = tempfile::tempdir().unwrap();
    let mut config = config(choice, memory_mib, slots, state.path());
    config.freeze_after = after;
    Fleet { _state: Some(state), ..start(config).await }
}

pub async fn start(config: Config) -> Fleet {
    let runner = Runner::start(config, Arc::new(MemoryRegistry::default())).await.unwrap();
    Fleet { runner, _state: None }
}

impl Fleet {
    /// Ends it; it must not take long.
    pub async fn end(self) {
        tokio::time::timeout(LIMIT, self.runner.stop(Duration::from_millis(500))).await.unwrap();
    }

    pub async fn client(&self) -> RunnerServiceClient<Channel> {
        let address = format!("http://{}", self.runner.address());
        RunnerServiceClient::new(Endpoint::from_shared(address).unwrap().connect().await.unwrap())
    }

    /// How things are, in a record that no earlier one on any session replaces.
    pub async fn status(&self) -> v1::Capacity {
        let request = wire::GetStatusRequest {};
        self.client().await.get_status(request).await.unwrap().into_inner().capacity.unwrap()
    }

    pub async fn session(&self) -> Session {
        Session::open(self.client().await).await
    }
}

/// How warm a function is by a record.
pub fn warmth(capacity: &v1::Capacity, spec: &FunctionSpec) -> v1::Warmth {
    let digest = spec.digest();
    capacity.functions.iter().find(|w| w.digest == digest.0[..]).cloned().unwrap_or_default()
}

pub struct Session {
    send: mpsc::Sender<wire::EngageRequest>,
    pub receive: Streaming<wire::EngageResponse>,
    next: u64,
    defined: HashSet<Digest>,
    /// The last record that came.
    pub capacity: v1::Capacity,
    pub drains: bool,
    /// The number of the last word of that.
    draining: u64,
    /// The `traceparent` of offers.
    pub trace: String,
}

/// What came of a call.
#[derive(Debug, Default)]
pub struct Answer {
    pub finished: wire::Finished,
    pub body: Vec<u8>,
    pub waited: bool,
    pub refused: Option<wire::Refused>,
    pub frames: usize,
}

impl Answer {
    pub fn code(&self) -> &'static str {
        code(&self.finished)
    }
    pub fn tail(&self) -> &str {
        self.finished.error.as_ref().map_or("", |e| e.log_tail.as_str())
    }
    pub fn refusal(&self) -> Option<wire::RefusalReason> {
        self.refused.as_ref().map(wire::Refused::reason)
    }
    pub fn container(&self) -> &str {
        &self.finished.container
    }
}

pub fn code(finished: &wire::Finished) -> &'static str {
    finished.error.as_ref().map_or("OK", |e| v1::ErrorCode::try_from(e.code).unwrap().as_str_name())
}

impl Session {
    /// As a balancer of the release before, which says nothing to a runner that drains.
    pub async fn open(client: RunnerServiceClient<Channel>) -> Self {
        Self::open_as(client, 1).await
    }

    /// As a balancer that speaks this version of the protocol.
    pub async fn open_as(mut client: RunnerServiceClient<Channel>, version: u32) -> Self {
        let (send, frames) = mpsc::channel(64);
        let hello = wire::Hello { version, oldest_version: 1, balancer: "test".into(), instance: 0 };
        send.send(wire::EngageRequest { frame: Some(req::Frame::Hello(hello)) }).await.unwrap();
        let mut receive = client.engage(ReceiverStream::new(frames)).await.unwrap().into_inner();
        let first = receive.message().await.unwrap().unwrap();
        let Some(res::Frame::Welcome(welcome)) = first.frame else { panic!("no welcome: {first:?}") };
        let capacity = welcome.capacity.unwrap();
        Session {
            send,
            receive,
            next: 1,
            defined: HashSet::new(),
            capacity,
            drains: false,
            draining: 0,
            trace: String::new(),
        }
    }

    pub async fn say(&self, frame: req::Frame) {
        self.send.send(wire::EngageRequest { frame: Some(frame) }).await.unwrap();
    }

    /// How the session ends for what was said.
    pub async fn violation(&mut self) -> Status {
        let status = loop {
            match self.receive.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("ended without a status"),
                Err(status) => break status,
            }
        };
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        status
    }

    /// Nothing is open on this session, and nothing follows.
    pub async fn settle(&self) {
        self.say(req::Frame::Settled(wire::Settled { draining: self.draining })).await;
    }

    pub async fn start(&self, call: u64) {
        self.say(req::Frame::Start(wire::Start { call })).await;
    }

    pub async fn body(&self, call: u64, data: &[u8], last: bool) {
        self.say(req::Frame::Body(wire::Body {
            call,
            data: data.to_vec().into(),
            last,
            ..Default::default()
        }))
        .await;
    }

    pub async fn credit(&self, call: u64, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap();
        self.say(req::Frame::Credit(wire::Credit { call, bytes })).await;
    }

    pub async fn cancel(&self, call: u64, reason: wire::CancelReason) {
        self.say(req::Frame::Cancel(wire::Cancel { call, reason: reason.into() })).await;
    }

    /// Defines it, whether or not that was done before.
    pub async fn define(&mut self, spec: &FunctionSpec) {
        let digest = spec.digest();
        self.defined.insert(digest);
        let function = Some(convert::to_function(spec));
        let define = wire::Define { digest: digest.0.to_vec().into(), function, revision: 7 };
        self.say(req::Frame::Define(Box::new(define))).await;
    }

    /// Says all that is to be kept ready from now on, for half a minute.
    pub async fn keep(&mut self, wanted: &[(&FunctionSpec, u32)]) {
        self.keep_for(wanted, Duration::from_secs(30)).await;
    }

    pub async fn keep_for(&mut self, wanted: &[(&FunctionSpec, u32)], holds: Duration) {
        let mut kept = Vec::new();
        for (spec, containers) in wanted {
            self.define(spec).await;
            kept.push(wire::Kept { digest: spec.digest().0.to_vec().into(), containers: *containers });
        }
        let holds = Some(convert::to_duration(holds));
        self.say(req::Frame::Keep(wire::Keep { kept, holds })).await;
    }

    pub async fn offer(
        &mut self,
        spec: &FunctionSpec,
        todo: &str,
        body: &[u8],
        complete: bool,
        ms: u64,
    ) -> u64 {
        self.offer_of_length(spec, todo, body, complete, ms, None).await
    }

    /// The same, with the length of a body of which more is to come.
    pub async fn offer_of_length(
        &mut self,
        spec: &FunctionSpec,
        todo: &str,
        body: &[u8],
        complete: bool,
        ms: u64,
        length: Option<u64>,
    ) -> u64 {
        let digest = spec.digest();
        if !self.defined.contains(&digest) {
            self.define(spec).await;
        }
        let call = self.next;
        self.next += 1;
        let headers = vec![v1::Header { name: "X-Do".into(), value: todo.to_owned().into() }];
        let offer = wire::Offer {
            call,
            call_id: CallId::new().as_bytes().to_vec().into(),
            digest: digest.0.to_vec().into(),
            head: Some(v1::RequestHead { headers, ..Default::default() }),
            remaining_ms: ms,
            body: body.to_vec().into(),
            complete,
            length,
            traceparent: self.trace.clone(),
            ..Default::default()
        };
        self.say(req::Frame::Offer(offer)).await;
        call
    }

    /// Offers a call of whatever was defined as this.
    pub async fn offer_of(&mut self, digest: &[u8]) -> u64 {
        let call = self.next;
        self.next += 1;
        let offer = wire::Offer {
            call,
            call_id: CallId::new().as_bytes().to_vec().into(),
            digest: digest.to_vec().into(),
            remaining_ms: 10_000,
            complete: true,
            ..Default::default()
        };
        self.say(req::Frame::Offer(offer)).await;
        call
    }

    /// The next frame about a call; what the runner says of itself is remembered.
    pub async fn frame(&mut self) -> res::Frame {
        loop {
            if let Some(frame) = self.any().await {
                return frame;
            }
        }
    }

    /// The next frame, if it is about a call.
    async fn any(&mut self) -> Option<res::Frame> {
        let message = tokio::time::timeout(LIMIT, self.receive.message()).await.expect("a frame comes");
        match message.unwrap().expect("the session goes on").frame? {
            res::Frame::Capacity(changed) => {
                self.learn(changed.capacity.unwrap());
                None
            }
            res::Frame::Draining(draining) => {
                (self.drains, self.draining) = (true, draining.number);
                None
            }
            frame => Some(frame),
        }
    }

    /// A record, unless it is older than what is known.
    pub fn learn(&mut self, record: v1::Capacity) {
        if record.sequence >= self.capacity.sequence {
            self.capacity = record;
        }
    }

    /// Reads until it is said that no offers are wanted.
    pub async fn frame_of_draining(&mut self) {
        while !self.drains {
            let frame = self.any().await;
            assert!(frame.is_none(), "waiting for Draining: {frame:?}");
        }
    }

    /// Reads until the runner's record is as `wanted`. No call may say anything meanwhile.
    pub async fn until(&mut self, what: &str, wanted: impl Fn(&v1::Capacity) -> bool) {
        let begun = Instant::now();
        while !wanted(&self.capacity) {
            assert!(begun.elapsed() < LIMIT, "never: {what}; last {:?}", self.capacity);
            let frame = self.any().await;
            assert!(frame.is_none(), "waiting for {what}: {frame:?}");
        }
    }

    /// Reads up to the frame that tells that a call runs.
    pub async fn started(&mut self, call: u64) -> wire::Started {
        loop {
            match self.frame().await {
                res::Frame::Ready(_) => self.start(call).await,
                res::Frame::Started(started) => {
                    assert_eq!(started.call, call);
                    return started;
                }
                res::Frame::Accepted(_) => {}
                other => panic!("before it started: {other:?}"),
            }
        }
    }

    /// The outcome of `call`, which is the only one that runs.
    pub async fn outcome(&mut self, call: u64) -> Answer {
        self.outcomes([call]).await.remove(&call).unwrap()
    }

    /// The outcomes of these calls, which are all that run.
    pub async fn outcomes(&mut self, calls: impl IntoIterator<Item = u64>) -> HashMap<u64, Answer> {
        let mut open: HashMap<u64, Answer> = calls.into_iter().map(|c| (c, Answer::default())).collect();
        let mut done = HashMap::new();
        while !open.is_empty() {
            let frame = self.frame().await;
            let call = match &frame {
                res::Frame::Accepted(f) => f.call,
                res::Frame::Ready(f) => f.call,
                res::Frame::Started(f) => f.call,
                res::Frame::Credit(f) => f.call,
                res::Frame::Head(f) => f.call,
                res::Frame::Body(f) => f.call,
                res::Frame::Finished(f) => f.call,
                res::Frame::Refused(f) => f.call,
                other => panic!("unexpected {other:?}"),
            };
            let answer = open.get_mut(&call).expect("a call that runs, and has no outcome yet");
            answer.frames += 1;
            match frame {
                res::Frame::Accepted(_) => answer.waited = true,
                res::Frame::Ready(_) => self.start(call).await,
                res::Frame::Body(body) => {
                    answer.body.extend_from_slice(&body.data);
                    self.credit(call, body.data.len()).await;
                }
                res::Frame::Finished(finished) => {
                    let mut answer = open.remove(&call).unwrap();
                    answer.body.extend_from_slice(&finished.body);
                    answer.finished = *finished;
                    done.insert(call, answer);
                }
                res::Frame::Refused(refused) => {
                    let mut answer = open.remove(&call).unwrap();
                    answer.refused = Some(*refused);
                    done.insert(call, answer);
                }
                _ => {}
            }
        }
        done
    }

    pub async fn call(&mut self, spec: &FunctionSpec, todo: &str, body: &[u8]) -> Answer {
        let call = self.offer(spec, todo, body, true, AMPLE).await;
        self.outcome(call).await
    }
}

/// A `default` function.
pub fn shell(script: &str) -> FunctionSpec {
    let name = FunctionName::new("test", "shell").unwrap();
    let mut spec = FunctionSpec::new(name, vec!["/bin/sh".into(), "-c".into(), script.into()], "/".into());
    spec.memory = 32 << 20;
    spec
}

/// An http-stream function.
pub fn python(mode: &str) -> FunctionSpec {
    let program = ["/usr/bin/python3", "/usr/local/bin/python3"].into_iter().find(|p| Path::new(p).exists());
    let program = program.expect("python3 is installed").to_owned();
    let name = FunctionName::new("test", "python").unwrap();
    let mut spec = FunctionSpec::new(name, vec![program, "-u".into(), "-c".into(), FUNC.into()], "/".into());
    spec.format = Format::HttpStream;
    spec.memory = 64 << 20;
    spec.init_timeout_ms = 60_000;
    spec.env.insert("MODE".into(), mode.into());
    spec
}

/// Another function that does the same.
pub fn another(n: u32) -> FunctionSpec {
    let mut spec = python("");
    spec.name = FunctionName::new("test", &format!("python{n}")).unwrap();
    spec
}

/// Formats whose calls come on STDIN, one after the other.
pub const ON_STDIN: [Format; 5] =
    [Format::Http, Format::Json, Format::JsonHttp, Format::CloudEvent, Format::Mless];

/// A function of one of [`ON_STDIN`].
pub fn speaker(format: Format, mode: &str) -> FunctionSpec {
    let mut spec = python(mode);
    let code = include_str!("speaker.py").to_owned();
    *spec.command.last_mut().unwrap() = code;
    spec.name = FunctionName::new("test", format.as_str()).unwrap();
    spec.format = format;
    if format == Format::Mless {
        spec.format_options.handler = "speaker.handler".into();
    }
    spec
}

/// A body as a [`speaker`] takes it: what it is told to do travels in it where nothing else would carry it.
pub fn told(format: Format, todo: &str, body: &str) -> Vec<u8> {
    match format {
        Format::CloudEvent | Format::Lambda => serde_json::to_vec(body).unwrap(),
        Format::Mless => serde_json::to_vec(&serde_json::json!({"do": todo, "body": body})).unwrap(),
        _ => body.as_bytes().to_vec(),
    }
}

/// What a [`speaker`] said: an `mless` result is JSON.
pub fn heard(format: Format, body: &[u8]) -> String {
    match format {
        Format::Mless | Format::Lambda => serde_json::from_slice(body).unwrap(),
        _ => String::from_utf8(body.to_vec()).unwrap(),
    }
}

impl Session {
    /// Calls a [`speaker`].
    pub async fn tell(&mut self, spec: &FunctionSpec, todo: &str, body: &str) -> Answer {
        self.call(spec, todo, &told(spec.format, todo, body)).await
    }
}
