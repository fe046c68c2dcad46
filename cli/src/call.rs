//! `call`: one call, streamed both ways, so that bodies of any size pass through in pieces.

use std::io::Read;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};
use stoker_core::call::CHUNK;
use stoker_core::{Code, Error};
use stoker_proto::v1;
use stoker_proto::v1::invoke_stream_request::Frame as Send;
use stoker_proto::v1::invoke_stream_response::Frame as Receive;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::args::{Call, Common, Output};
use crate::client::{self, Connection};
use crate::failure::Failure;
use crate::output;

/// Pieces of the body read ahead.
const AHEAD: usize = 4;

/// The balancer ends a call at its deadline and says what it was doing. One that has not by so much later does not answer at all.
const LATE: Duration = Duration::from_secs(2);

pub async fn run(args: Call, common: &Common) -> Result<(), Failure> {
    let source = open(&args.data)?;
    let mut calls = client::calls(Connection::open(&common.server).await?);
    let head = v1::RequestHead { headers: headers(&args), ..Default::default() };
    let start = v1::CallStart { function: args.function.clone(), head: Some(head) };

    let (frames, receiver) = mpsc::channel(AHEAD);
    let (problems, mut read_failed) = mpsc::channel(1);
    // Reading may block (a terminal, a pipe), so it has a thread. It ends with its source, or when nobody takes its pieces
    // any more; one that still waits for STDIN when the answer is complete ends with the process.
    std::thread::Builder::new()
        .name("body".into())
        .spawn(move || feed(start, source, &frames, &problems))
        .map_err(|error| Failure::platform(format!("cannot start a thread: {error}"), ""))?;

    let mut request = tonic::Request::new(ReceiverStream::new(receiver));
    if let Some(timeout) = args.timeout {
        request.set_timeout(timeout);
    }
    let began = Instant::now();
    let mut answer = Answer::default();
    // Of what was written to STDOUT.
    let mut ends_a_line = true;
    let receive = async {
        let mut stream = calls.invoke_stream(request).await?.into_inner();
        while let Some(response) = stream.message().await? {
            match response.frame {
                Some(Receive::Answer(head)) => answer.head = head,
                Some(Receive::Body(piece)) if common.output == Output::Json => {
                    answer.body.extend_from_slice(&piece)
                }
                Some(Receive::Body(piece)) => {
                    output::write(&piece)?;
                    ends_a_line = piece.last().map_or(ends_a_line, |last| *last == b'\n');
                }
                Some(Receive::End(end)) => answer.end = Some(end),
                None => {}
            }
        }
        Ok::<_, Failure>(())
    };
    let late = async {
        match args.timeout {
            Some(timeout) => tokio::time::sleep(timeout.saturating_add(LATE)).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        result = receive => result?,
        () = late => return Err(silent(&common.server)),
        // A body that cannot be read to its end must not look like a shorter one: leaving cancels the call.
        Some(failure) = read_failed.recv() => return Err(failure),
    }
    let total = began.elapsed();
    if answer.end.is_none() {
        let error = Error::new(Code::RunnerLost, "the answer ended before it was complete");
        return Err(Failure::of(error.may_have_started()));
    }
    if common.output == Output::Json {
        output::print_json(&answer.json(total))?;
    }
    let succeeded = answer.succeeded();
    // An answer is written as it is, and what is said about it begins on a line of its own where both are read together.
    if !ends_a_line && (args.show_timing || succeeded.is_err()) && output::is_in_one_place() {
        output::say("\n");
    }
    if args.show_timing {
        output::say(&answer.timing(total));
    }
    succeeded
}

fn silent(server: &str) -> Failure {
    let text =
        format!("the balancer at {server} has not answered, {} s after the call's deadline", LATE.as_secs());
    Failure::of(Error::new(Code::Unavailable, text).may_have_started())
}

#[derive(Default)]
struct Answer {
    head: v1::CallAnswer,
    /// Only kept for JSON; else it goes out as it comes.
    body: Vec<u8>,
    end: Option<v1::CallEnd>,
}

impl Answer {
    /// A status that says of itself that it is an error is the function's answer all the same: it is written as any other, and the exit code tells a
    /// script that the function did not succeed, as it does for calls that are made later.
    fn succeeded(&self) -> Result<(), Failure> {
        let status = self.head.head.as_ref().map_or(200, |head| head.status);
        match status {
            0..400 => Ok(()),
            _ => Err(Failure::new(
                Error::new(Code::FunctionFailed, format!("the function answered with the status {status}"))
                    .may_have_started(),
                "its answer is on STDOUT; see `stoker logs` for what it wrote besides",
            )),
        }
    }

    fn json(&self, total: Duration) -> Value {
        let head = self.head.head.clone().unwrap_or_default();
        let end = self.end.clone().unwrap_or_default();
        let headers = head.headers.iter().map(|h| json!([h.name, String::from_utf8_lossy(&h.value)]));
        json!({
            "call_id": self.head.call_id,
            "runner": end.runner,
            "revision": end.revision,
            "status": head.status,
            "headers": headers.collect::<Vec<_>>(),
            // Text where it is text; programs that send bytes take them from STDOUT without -o json.
            "body": String::from_utf8_lossy(&self.body),
            "body_bytes": self.body.len(),
            "timings": output::timings(end.timings.as_ref()),
            "total_us": total.as_micros() as u64,
        })
    }

    fn timing(&self, total: Duration) -> String {
        let end = self.end.clone().unwrap_or_default();
        let t = end.timings.unwrap_or_default();
        let total_us = total.as_micros() as u64;
        let start = if t.cold { "cold: a container was started for it" } else { "warm" };
        let rows = [
            ("call", self.head.call_id.clone()),
            ("runner", end.runner),
            ("revision", end.revision.to_string()),
            ("start", start.to_owned()),
            ("total", output::human_us(total_us)),
            (
                "  on the way",
                output::human_us(total_us.saturating_sub(t.wait_us + t.thaw_us + t.execution_us)),
            ),
            ("  waited", output::human_us(t.wait_us)),
            ("    image", output::human_us(t.image_us)),
            ("    create", output::human_us(t.create_us)),
            ("    start", output::human_us(t.start_us)),
            ("    init", output::human_us(t.init_us)),
            ("  thaw", output::human_us(t.thaw_us)),
            ("  function", output::human_us(t.execution_us)),
            ("    first byte", output::human_us(t.first_byte_us)),
        ];
        rows.iter().map(|(key, value)| format!("{key:<14} {value}\n")).collect()
    }
}

/// For the function.
pub fn headers(args: &Call) -> Vec<v1::Header> {
    let header = |(name, value): &(String, String)| v1::Header {
        name: name.clone(),
        value: Bytes::from(value.clone().into_bytes()),
    };
    args.headers.iter().map(header).collect()
}

/// Where the body comes from.
pub fn open(data: &str) -> Result<Box<dyn Read + std::marker::Send>, Failure> {
    if data == "-" {
        return Ok(Box::new(std::io::stdin()));
    }
    match data.strip_prefix('@') {
        None => Ok(Box::new(std::io::Cursor::new(data.as_bytes().to_vec()))),
        Some(path) => match std::fs::File::open(path) {
            Ok(file) => Ok(Box::new(file)),
            Err(error) => {
                Err(Failure::usage(format!("{path} cannot be read: {error}"), "name a file that is there"))
            }
        },
    }
}

fn feed(
    start: v1::CallStart,
    mut source: Box<dyn Read + std::marker::Send>,
    frames: &mpsc::Sender<v1::InvokeStreamRequest>,
    problems: &mpsc::Sender<Failure>,
) {
    let frame = |frame| v1::InvokeStreamRequest { frame: Some(frame) };
    if frames.blocking_send(frame(Send::Start(start))).is_err() {
        return;
    }
    let mut buffer = vec![0; CHUNK];
    loop {
        match source.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => {
                if frames.blocking_send(frame(Send::Body(Bytes::copy_from_slice(&buffer[..n])))).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => {
                let failure =
                    Failure::usage(format!("the body cannot be read: {error}"), "check what --data names");
                // Nobody listens once the answer is complete.
                _ = problems.blocking_send(failure);
                return;
            }
        }
    }
}
