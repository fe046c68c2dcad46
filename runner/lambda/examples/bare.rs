//! Calls a function of AWS Lambda with nothing between: the Runtime API alone, on the loopback device. What a runner and a balancer
//! add to a call is over this.
//!
//! `cargo run --release -p stoker-lambda --example bare -- SECONDS PROGRAM [ARGUMENT...]` prints the number of calls, and the median, the
//! 99th percentile and the mean of their times in microseconds, as JSON.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement: what fails ends it")]

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use stoker_lambda::{About, Invocation, Kind, RuntimeApi, Said};
use tokio::net::TcpStream;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let seconds: u64 = arguments.next().unwrap().parse().unwrap();
    let program = arguments.next().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let about = About {
        function: "bare".into(),
        version: "$LATEST".into(),
        handler: "event".into(),
        account: "000000000000".into(),
        log_stream: "bare".into(),
        memory: 128 << 20,
        kind: Kind::OnDemand,
        again: false,
        concurrency: 1,
        external: Vec::new(),
        no_extensions: false,
        credentials: None,
        connect: Arc::new(|port| Box::pin(TcpStream::connect(("127.0.0.1", port)))),
    };
    let api = RuntimeApi::serve(listener, about).unwrap();
    let mut function = Command::new(program)
        .args(arguments)
        .env("AWS_LAMBDA_RUNTIME_API", address.to_string())
        .env("AWS_LAMBDA_FUNCTION_NAME", "bare")
        .env("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST")
        .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128")
        .env("_HANDLER", "event")
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    api.ready().await.unwrap();
    let payload = Bytes::from(format!("{{\"text\":\"{}\"}}", "x".repeat(1000)));
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut times = Vec::new();
    while Instant::now() < end {
        api.idle().await.unwrap();
        let invocation = Invocation {
            request_id: format!("bare-{}", times.len()),
            deadline: Some(SystemTime::now() + Duration::from_secs(10)),
            arn: "arn:aws:lambda:us-east-1:000000000000:function:bare".into(),
            payload: payload.clone(),
            ..Invocation::default()
        };
        let begun = Instant::now();
        let mut answer = api.invoke(invocation).unwrap();
        let last = loop {
            match answer.next().await.unwrap() {
                Said::Head { .. } | Said::Piece(_) => {}
                last => break last,
            }
        };
        times.push(begun.elapsed());
        assert_eq!(last, Said::End);
    }
    function.kill().unwrap();
    function.wait().unwrap();
    times.sort_unstable();
    let at = |part: usize| times[times.len() * part / 100].as_micros();
    let mean = times.iter().sum::<Duration>().as_micros() / times.len() as u128;
    println!("{{\"calls\":{},\"p50_us\":{},\"p99_us\":{},\"mean_us\":{mean}}}", times.len(), at(50), at(99));
}
