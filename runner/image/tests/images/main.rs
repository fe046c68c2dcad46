//! Images as they come: archives, layouts, a real registry; good ones, damaged ones, hostile ones.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod archives;
mod auth;
mod faults;
mod hostile;
mod kills;
mod kit;
mod layers;
mod publish;
mod pulls;
mod real;
mod registry;
mod rootless;
mod tls;
