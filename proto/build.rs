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

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    // `Bytes` payloads: a received body is a slice of the received frame, never a copy.
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
