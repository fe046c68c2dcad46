//! The way to a balancer: one connection, and errors that say what to do.

use std::time::Duration;

use stoker_proto::MAX_MESSAGE;
use stoker_proto::v1::call_service_client::CallServiceClient;
use stoker_proto::v1::fleet_service_client::FleetServiceClient;
use stoker_proto::v1::function_service_client::FunctionServiceClient;
use tonic::transport::{Channel, Endpoint};

use crate::failure::Failure;

/// A balancer that does not answer the connection for so long is away.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Room for the head beside a body of [`MAX_MESSAGE`].
const HEAD_ROOM: usize = 256 * 1024;

/// Runs a command's future on a runtime of its own.
pub fn block_on(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    runtime()?.block_on(command)
}

/// A runtime on this thread: nothing here needs more, and a single-threaded one is the cheapest per call.
pub fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::platform(format!("cannot start a runtime: {error}"), ""))
}

/// Connects to the balancer.
pub async fn connect(server: &str) -> Result<Channel, Failure> {
    let url = if server.contains("://") { server.to_owned() } else { format!("http://{server}") };
    let endpoint = Endpoint::from_shared(url)
        .map_err(|_| {
            Failure::usage(format!("`{server}` is not an address"), "write it like http://127.0.0.1:7070")
        })?
        .connect_timeout(CONNECT_LIMIT)
        .tcp_nodelay(true)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20);
    endpoint.connect().await.map_err(|error| {
        let mut what = format!("no balancer answers at {server}");
        // The outermost says only "transport error"; the innermost is what the system said.
        let mut source = std::error::Error::source(&error);
        let mut last = None;
        while let Some(inner) = source {
            last = Some(inner.to_string());
            source = inner.source();
        }
        if let Some(last) = last {
            what.push_str(&format!(": {last}"));
        }
        Failure::platform(
            what,
            "start a fleet with `stoker up`, or name another with --server or STOKER_SERVER",
        )
    })
}

/// Calls.
pub fn calls(channel: Channel) -> CallServiceClient<Channel> {
    CallServiceClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE + HEAD_ROOM)
        .max_encoding_message_size(MAX_MESSAGE + HEAD_ROOM)
}

/// Functions.
pub async fn functions(server: &str) -> Result<FunctionServiceClient<Channel>, Failure> {
    Ok(FunctionServiceClient::new(connect(server).await?).max_decoding_message_size(64 << 20))
}

/// The fleet.
pub async fn fleet(server: &str) -> Result<FleetServiceClient<Channel>, Failure> {
    Ok(FleetServiceClient::new(connect(server).await?).max_decoding_message_size(64 << 20))
}
