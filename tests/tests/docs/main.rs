//! The documentation, held against what it is about: links lead somewhere, references are what the code says, and the commands in its
//! pages do what the pages say.

#![expect(clippy::unwrap_used, reason = "tests, though clippy does not see it in their helpers")]

mod commands;
mod errors;
mod links;
mod machine;
mod map;
mod page;
mod reference;
mod security;
