//! The formats from outside: what is written for a call, what is made of an answer, and what holds for all of them.

#![expect(clippy::unwrap_used, reason = "all of it is tests")]

mod docs;
mod golden;
mod kit;
mod kits;
mod limits;
mod properties;
mod sequence;
