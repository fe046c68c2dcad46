//! Calls processes of a function directly, over the pipes or the socket that a runner would use: what is left of a call without
//! Stoker. `benches/formats` holds fleets against it.
//!
//! `cargo run --release --example direct -- FORMAT PROGRAM CALLERS SECONDS BYTES`: each caller has a process and a thread of its own.
//! Prints one JSON object.

#![expect(clippy::disallowed_methods, reason = "a caller of its own has nothing else to do than to wait")]

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant, SystemTime};

use bytes::BytesMut;
use stoker_core::function::{Format, FunctionName, FunctionSpec};
use stoker_core::{CallId, RequestHead, TraceContext};
use stoker_format::{After, Codec, Event, Request};

/// How long a function may take until it listens.
const START: Duration = Duration::from_secs(30);

/// A process of the function, and the way to it. Ends with it.
struct Function {
    process: Child,
    input: Box<dyn Write>,
    output: Box<dyn Read>,
}

impl Drop for Function {
    fn drop(&mut self) {
        // It may have ended by itself.
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

impl Function {
    fn start(format: Format, program: &str, directory: &Path, number: usize) -> io::Result<Self> {
        let mut command = Command::new(program);
        command.env("FN_FORMAT", format.as_str()).stderr(Stdio::null());
        if format == Format::HttpStream {
            let directory = directory.join(number.to_string());
            std::fs::create_dir(&directory)?;
            let socket = directory.join("lsnr.sock");
            let listener = format!("unix:{}", socket.display());
            let mut process =
                command.env("FN_LISTENER", listener).stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
            let begun = Instant::now();
            let stream = loop {
                match UnixStream::connect(&socket) {
                    Ok(stream) => break stream,
                    Err(error) if process.try_wait()?.is_some() || begun.elapsed() > START => {
                        return Err(error);
                    }
                    // No event tells that it listens.
                    Err(_) => std::thread::sleep(Duration::from_millis(1)),
                }
            };
            return Ok(Self { process, input: Box::new(stream.try_clone()?), output: Box::new(stream) });
        }
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let none = || io::Error::other("no pipe");
        let input = process.stdin.take().ok_or_else(none)?;
        let output = process.stdout.take().ok_or_else(none)?;
        Ok(Self { process, input: Box::new(input), output: Box::new(output) })
    }

    /// Reads some more; false at the end.
    fn read(&mut self, input: &mut BytesMut) -> io::Result<bool> {
        let mut some = [0; 16 * 1024];
        let count = self.output.read(&mut some)?;
        input.extend_from_slice(&some[..count]);
        Ok(count > 0)
    }

    fn greet(&mut self, codec: &Codec, spec: &FunctionSpec, input: &mut BytesMut) -> io::Result<()> {
        let Some(mut startup) = codec.startup(&spec.env) else { return Ok(()) };
        self.input.write_all(&startup.encode())?;
        loop {
            let more = self.read(input)?;
            match startup.decode(input, !more) {
                Some(Ok(())) => return Ok(()),
                Some(Err(fault)) => return Err(io::Error::other(fault.message)),
                None => {}
            }
        }
    }

    fn call(
        &mut self,
        codec: &Codec,
        request: &Request<'_>,
        body: &[u8],
        input: &mut BytesMut,
    ) -> io::Result<()> {
        let mut exchange = codec.begin(request);
        let mut out = BytesMut::new();
        exchange.encode_head(request, &mut out);
        exchange.encode_body(body, &mut out);
        exchange.encode_end(&mut out);
        self.input.write_all(&out)?;
        let mut more = true;
        loop {
            while let Some(event) = exchange.decode(input, !more) {
                match event {
                    Event::End(After::Reuse) => return Ok(()),
                    Event::End(_) | Event::Failed { .. } => {
                        return Err(io::Error::other(format!("{event:?}")));
                    }
                    Event::Head { .. } | Event::Body(_) | Event::Trailers(_) => {}
                }
            }
            more = self.read(input)?;
        }
    }
}

/// Nanoseconds of each call.
fn caller(
    mut function: Function,
    codec: &Codec,
    spec: &FunctionSpec,
    body: &[u8],
    ready: &Barrier,
    time: Duration,
) -> io::Result<Vec<u64>> {
    let (head, trace) =
        (RequestHead { method: "POST".to_owned(), ..Default::default() }, TraceContext::default());
    let mut input = BytesMut::new();
    let greeted = function.greet(codec, spec, &mut input);
    ready.wait();
    greeted?;
    let mut times = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < time {
        let before = Instant::now();
        let deadline = SystemTime::now() + Duration::from_secs(30);
        let request = Request {
            call: CallId::new(),
            head: &head,
            deadline,
            trace: &trace,
            length: Some(body.len() as u64),
        };
        function.call(codec, &request, body, &mut input)?;
        times.push(before.elapsed().as_nanos() as u64);
    }
    Ok(times)
}

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let usage = "usage: direct FORMAT PROGRAM CALLERS SECONDS BYTES";
    let [format, program, callers, seconds, bytes] = arguments.as_slice() else { panic!("{usage}") };
    let format = Format::parse(format).expect(usage);
    let number = |text: &String| text.parse::<usize>().expect(usage);
    let (callers, time, body) =
        (number(callers), Duration::from_secs(number(seconds) as u64), vec![b'1'; number(bytes)]);
    let name = FunctionName::new("bench", "direct").expect("both are names");
    let mut spec = FunctionSpec::new(name, vec![program.clone()], "/".into());
    spec.format = format;
    spec.format_options.handler = "bench.direct".to_owned();
    let codec = Codec::new(&spec).expect("the format has calls that are written");
    let directory = std::env::temp_dir().join(format!("direct-{}", std::process::id()));
    std::fs::create_dir(&directory)?;
    let ready = Barrier::new(callers);
    let times = std::thread::scope(|scope| {
        let run = |number: usize| {
            let (codec, spec, body, ready, directory) = (&codec, &spec, &body, &ready, &directory);
            scope.spawn(move || {
                let function = Function::start(format, program, directory, number);
                if function.is_err() {
                    ready.wait();
                }
                caller(function?, codec, spec, body, ready, time)
            })
        };
        let threads: Vec<_> = (0..callers).map(run).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("it does not panic"))
            .collect::<io::Result<Vec<_>>>()
    });
    std::fs::remove_dir_all(&directory)?;
    let mut times: Vec<u64> = times?.into_iter().flatten().collect();
    times.sort_unstable();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize] as f64 / 1000.0;
    println!(
        "{{\"calls\": {}, \"calls_per_second\": {:.0}, \"p50_us\": {:.1}, \"p99_us\": {:.1}}}",
        times.len(),
        times.len() as f64 / time.as_secs_f64(),
        at(0.5),
        at(0.99)
    );
    Ok(())
}
