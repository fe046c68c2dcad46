//! The wire: generated code, the conversions at its border, and the one table of statuses.
//!
//! Generated types end where a message is received: [`convert`] checks them into the words of `stoker_core`, which the rest of
//! the code may trust.

pub mod convert;
pub mod frames;
pub mod status;

use std::net::SocketAddr;

use stoker_core::call::{LEAST_WINDOW, WINDOW};
use stoker_core::error::MAX_REPORT;

/// Services and messages for clients and operators.
pub mod v1 {
    #![allow(
        missing_docs,
        clippy::pedantic,
        clippy::all,
        rust_2018_idioms,
        unused_qualifications,
        rustdoc::all
    )]
    tonic::include_proto!("stoker.v1");
}

/// Between balancer and runner.
pub mod runner {
    /// Version 1 of the private protocol.
    pub mod v1 {
        #![allow(
            missing_docs,
            clippy::pedantic,
            clippy::all,
            rust_2018_idioms,
            unused_qualifications,
            rustdoc::all
        )]
        tonic::include_proto!("stoker.runner.v1");
    }
}

/// The descriptors of all files, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The newest version of the session protocol that this build speaks. Since 2 `Draining` is answered by `Settled`, a runner's last word is
/// `Closing`, and runners know the number of a function's version. Since 3 [windows](window) are larger.
pub const SESSION_VERSION: u32 = 3;

/// The oldest.
pub const OLDEST_SESSION_VERSION: u32 = 1;

/// Bytes of an answer that a runner may send before the balancer has given credit, by the version that both speak.
#[must_use]
pub const fn window(version: u32) -> u32 {
    if version < 3 { LEAST_WINDOW } else { WINDOW }
}

/// Most functions that a balancer defines on one session; a runner may end one that defines more.
pub const MAX_DEFINED: usize = 65_536;

/// Most versions that a balancer wants to be kept ready on one runner.
pub const MAX_KEPT: usize = 8_192;

/// Most bytes of one message on a session: what a function reports of its failure, and room for what is around that. Whoever gets a longer one ends the
/// session with all its calls. (Releases before this took 1 MiB in all.)
pub const MAX_FRAME: usize = MAX_REPORT + (128 << 10);

/// Largest HTTP/2 frame that connections of ours take: room for a piece of a body with what is around it. With the 16 KiB that
/// HTTP/2 gives by itself, each piece costs four or five system calls at either end.
pub const HTTP2_FRAME: u32 = 128 << 10;

/// Bytes that may be on the way to us on a stream of HTTP/2, by where its other end is, as far as that is known. Nothing is far on one machine, and what
/// is read ahead of whoever takes it has left the caches when it is passed on: a third less throughput of 1 MB bodies. From another machine a window is
/// what comes in one round trip, 80 MB/s at 50 ms; what connections allow bounds all streams of each together.
#[must_use]
pub fn stream_window(other: Option<SocketAddr>) -> u32 {
    match other.is_none_or(|other| other.ip().to_canonical().is_loopback()) {
        // With room for what is around the pieces: the last of a window would be cut in two.
        true => WINDOW + (4 << 10),
        false => 4 << 20,
    }
}

/// Most bytes of one message of the services that hold a whole body.
pub const MAX_MESSAGE: usize = 4 << 20;
