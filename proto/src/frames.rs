//! Messages of gRPC on a stream of HTTP/2, without a copy of the pieces of bodies in them.
//!
//! The generated services copy every message on either end of a connection: into the buffer in which it is encoded, and out of the
//! frames in which it came. For a piece of a body that is most of what a hop costs. [`Encoded`] sends what is long in a message
//! as it is, in a frame behind the rest of the message, and [`Decoded`] gives out slices of what was received. On the wire nothing is
//! different: where messages are cut into frames means nothing to gRPC.

mod decoded;
mod encoded;
mod invoke;

pub use self::decoded::{Decoded, Received};
pub use self::encoded::{Carries, Encoded, Out, trailers};
pub use self::invoke::{Invoked, Rest, Whole, invoke_request, invoke_response};

/// From this length on a piece is worth a frame of its own, and a slice worth to be held: what holds a slice holds the whole
/// buffer that it was received in, so that small ones are copied out.
const LONG: usize = 16 << 10;

/// Before each message: whether it is compressed, and its length.
const PREFIX: usize = 5;

#[cfg(test)]
mod tests;
