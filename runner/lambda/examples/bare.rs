//! A function of AWS Lambda with nothing between it and its caller: `Invoke` of AWS's API by HTTP, and the Runtime API, in one process. What a
//! balancer, a session and a runner add to a call is over this.
//!
//! `cargo run --release -p stoker-lambda --example bare -- PROGRAM [ARGUMENT...]` prints its address, serves one connection after the other
//! until its STDIN ends, then prints the number of calls, and the median and the 99th percentile of the times that the Runtime API
//! alone took for them, in microseconds, as JSON.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement: what fails ends it")]

use std::cell::RefCell;
use std::convert::Infallible;
use std::io::Read as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use stoker_lambda::{About, Invocation, Kind, RuntimeApi, Said};
use tokio::net::{TcpListener, TcpStream};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut arguments = std::env::args().skip(1);
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
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    api.ready().await.unwrap();
    let times = RefCell::new(Vec::new());
    tokio::select! {
        never = serve(&api, &times) => match never {},
        () = end_of_input() => {}
    }
    function.kill().unwrap();
    function.wait().unwrap();
    let mut times = times.into_inner();
    times.sort_unstable();
    let at = |part: usize| times.get(times.len() * part / 100).map_or(0, Duration::as_micros);
    println!("{{\"calls\":{},\"p50_us\":{},\"p99_us\":{}}}", times.len(), at(50), at(99));
}

/// Returns when nobody needs it any more.
async fn end_of_input() {
    let (over, ended) = tokio::sync::oneshot::channel();
    // Ends with the input.
    std::thread::spawn(move || {
        _ = std::io::stdin().read_to_end(&mut Vec::new());
        _ = over.send(());
    });
    _ = ended.await;
}

async fn serve(api: &RuntimeApi, times: &RefCell<Vec<Duration>>) -> Infallible {
    let door = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("http://{}", door.local_addr().unwrap());
    loop {
        let (stream, _) = door.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let service =
            service_fn(move |request| async move { Ok::<_, Infallible>(invoke(api, times, request).await) });
        // A caller may leave as it likes.
        _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    }
}

async fn invoke(
    api: &RuntimeApi,
    times: &RefCell<Vec<Duration>>,
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    let payload = request.into_body().collect().await.unwrap().to_bytes();
    api.idle().await.unwrap();
    let request_id = format!("bare-{}", times.borrow().len());
    let invocation = Invocation {
        request_id,
        deadline: Some(SystemTime::now() + Duration::from_secs(10)),
        arn: "arn:aws:lambda:us-east-1:000000000000:function:bare".into(),
        payload,
        ..Invocation::default()
    };
    let begun = Instant::now();
    let mut said = api.invoke(invocation).unwrap();
    let mut answer = BytesMut::new();
    let last = loop {
        match said.next().await.unwrap() {
            Said::Head { .. } => {}
            Said::Piece(piece) => answer.extend_from_slice(&piece),
            last => break last,
        }
    };
    times.borrow_mut().push(begun.elapsed());
    assert_eq!(last, Said::End);
    Response::new(Full::new(answer.freeze()))
}
