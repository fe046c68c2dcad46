//! Compiles the .proto files with protox, so that no `protoc` need be installed.

use std::path::PathBuf;

use prost::Message as _;

const FILES: [&str; 5] = [
    "stoker/v1/common.proto",
    "stoker/v1/call.proto",
    "stoker/v1/function.proto",
    "stoker/v1/fleet.proto",
    "stoker/runner/v1/runner.proto",
];

/// Frames of sessions that are kept behind a pointer.
const LARGE: [&str; 6] = [
    ".stoker.runner.v1.EngageRequest.frame.define",
    ".stoker.runner.v1.EngageResponse.frame.welcome",
    ".stoker.runner.v1.EngageResponse.frame.refused",
    ".stoker.runner.v1.EngageResponse.frame.finished",
    ".stoker.runner.v1.EngageResponse.frame.capacity",
    ".stoker.v1.SessionResponse.frame.finished",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    // `Bytes` payloads: a received body is a slice of the received frame, never a copy.
    let mut build = tonic_prost_build::configure().bytes(".");
    // A frame is moved some ten times on its way: the few large ones would make all of them large.
    for frame in LARGE {
        build = build.boxed(frame);
    }
    build.compile_fds(descriptors)?;
    Ok(())
}
