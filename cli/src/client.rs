//! The way to a balancer: one connection, and errors that say what to do.

mod connection;
mod credentials;

use stoker_proto::MAX_MESSAGE;
use stoker_proto::v1::call_service_client::CallServiceClient;
use stoker_proto::v1::fleet_service_client::FleetServiceClient;
use stoker_proto::v1::function_service_client::FunctionServiceClient;

pub use self::connection::{Connection, origin, place};
pub use self::credentials::{authorization, secured, show, tls};
use crate::failure::Failure;

/// Room for the head beside a body of [`MAX_MESSAGE`].
const HEAD_ROOM: usize = 256 * 1024;

/// Most bytes of an answer of `CallService` in one message.
pub const MAX_ANSWER: usize = MAX_MESSAGE + HEAD_ROOM;

/// Lists of functions and runners have no limit of their own.
const LIST_MESSAGE: usize = 64 << 20;

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

/// Calls.
pub fn calls(connection: Connection) -> CallServiceClient<Connection> {
    let origin = connection.origin();
    CallServiceClient::with_origin(connection, origin)
        .max_decoding_message_size(MAX_ANSWER)
        .max_encoding_message_size(MAX_ANSWER)
}

/// Functions.
pub async fn functions(server: &str) -> Result<FunctionServiceClient<Connection>, Failure> {
    let connection = Connection::open(server).await?;
    let origin = connection.origin();
    Ok(FunctionServiceClient::with_origin(connection, origin).max_decoding_message_size(LIST_MESSAGE))
}

/// The fleet.
pub async fn fleet(server: &str) -> Result<FleetServiceClient<Connection>, Failure> {
    let connection = Connection::open(server).await?;
    let origin = connection.origin();
    Ok(FleetServiceClient::with_origin(connection, origin).max_decoding_message_size(LIST_MESSAGE))
}
