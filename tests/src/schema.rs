//! What a release of the protocol knows: its messages and their fields, read from descriptors, and messages as that release, or a newer one
//! than any, would send them.

use std::collections::HashMap;

use bytes::{Buf as _, Bytes};
use prost::Message as _;
use prost::encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint};
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FileDescriptorSet};

/// The protocol of release 0.1.0.
pub const RELEASED: &[u8] = include_bytes!("../../proto/released/0.1.0.binpb");

/// A field of a release after the next; no release has such a number.
const UNKNOWN: u32 = 15_000;

/// By full name: messages with their fields, methods with the messages that they take and give.
#[derive(Debug, Default)]
pub struct Schema {
    messages: HashMap<String, HashMap<u32, Option<String>>>,
    methods: HashMap<String, (String, String)>,
}

impl Schema {
    /// Of a set of descriptors.
    #[must_use]
    pub fn read(descriptors: &[u8]) -> Self {
        let mut schema = Self::default();
        for file in FileDescriptorSet::decode(descriptors).expect("descriptors").file {
            let package = file.package().to_owned();
            for message in &file.message_type {
                schema.add(&package, message);
            }
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{package}.{}/{}", service.name(), method.name());
                    schema.methods.insert(path, (plain(method.input_type()), plain(method.output_type())));
                }
            }
        }
        schema
    }

    fn add(&mut self, scope: &str, message: &DescriptorProto) {
        let name = format!("{scope}.{}", message.name());
        let fields = message.field.iter().map(|field| {
            let inner = (field.r#type() == Type::Message).then(|| plain(field.type_name()));
            (field.number() as u32, inner)
        });
        self.messages.insert(name.clone(), fields.collect());
        for nested in &message.nested_type {
            self.add(&name, nested);
        }
    }

    /// The messages of a method, which it takes and gives; `None` of one that is not known.
    #[must_use]
    pub fn method(&self, path: &str) -> Option<&(String, String)> {
        self.methods.get(path)
    }
}

fn plain(name: &str) -> String {
    name.trim_start_matches('.').to_owned()
}

/// How a peer of another release sees what passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lens {
    /// What this schema has no field for is lost.
    Older,
    /// Every message has a field that nobody knows.
    Newer,
}

impl Lens {
    /// A message as it looks through this.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn through(self, schema: &Schema, message: &str, bytes: &[u8]) -> Bytes {
        let (fields, mut rest, mut out) = (schema.messages.get(message), bytes, Vec::new());
        while rest.has_remaining() {
            let field = rest;
            let (number, wire) = decode_key(&mut rest).expect("a field");
            let known = fields.and_then(|fields| fields.get(&number));
            match wire {
                WireType::Varint => drop(decode_varint(&mut rest).expect("a number")),
                WireType::SixtyFourBit => rest.advance(8),
                WireType::ThirtyTwoBit => rest.advance(4),
                WireType::LengthDelimited => {
                    let length = decode_varint(&mut rest).expect("a length") as usize;
                    let payload = &rest[..length];
                    rest.advance(length);
                    if let Some(Some(inner)) = known {
                        let payload = self.through(schema, inner, payload);
                        encode_key(number, wire, &mut out);
                        encode_varint(payload.len() as u64, &mut out);
                        out.extend_from_slice(&payload);
                        continue;
                    }
                }
                WireType::StartGroup | WireType::EndGroup => panic!("proto3 has no groups"),
            }
            if known.is_some() || self == Lens::Newer {
                out.extend_from_slice(&field[..field.len() - rest.len()]);
            }
        }
        if self == Lens::Newer {
            let text = b"of a newer release";
            encode_key(UNKNOWN, WireType::LengthDelimited, &mut out);
            encode_varint(text.len() as u64, &mut out);
            out.extend_from_slice(text);
        }
        out.into()
    }
}

#[cfg(test)]
mod tests {
    use stoker_proto::runner::v1::{EngageRequest, Hello, engage_request::Frame};

    use super::*;

    #[test]
    fn what_a_lens_adds_another_takes_away() {
        let schema = Schema::read(RELEASED);
        let hello = Hello { balancer: "b".into(), version: 7, ..Default::default() };
        let message = EngageRequest { frame: Some(Frame::Hello(hello)) };
        let (name, plain) = ("stoker.runner.v1.EngageRequest", message.encode_to_vec());
        let newer = Lens::Newer.through(&schema, name, &plain);
        // Once in the message and once in the message inside it.
        assert_eq!(newer.windows(18).filter(|part| *part == b"of a newer release").count(), 2);
        assert_eq!(EngageRequest::decode(newer.clone()).unwrap(), message);
        assert_eq!(Lens::Older.through(&schema, name, &newer), plain);
        let (takes, _) = schema.method("/stoker.runner.v1.RunnerService/Engage").unwrap();
        assert_eq!(takes, name);
    }
}
