//! Writes the protocol as it is, as descriptors without comments, to STDOUT: what is kept of a release, for `tests/compatible.rs`.
//! `cargo run -p stoker-tests --example released > proto/released/VERSION.binpb`

use std::io::Write as _;

use prost::Message as _;
use prost_types::FileDescriptorSet;

fn main() -> std::io::Result<()> {
    let mut all = FileDescriptorSet::decode(stoker_proto::DESCRIPTORS).map_err(std::io::Error::other)?;
    for file in &mut all.file {
        file.source_code_info = None;
    }
    std::io::stdout().write_all(&all.encode_to_vec())
}
