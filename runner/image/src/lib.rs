//! Images: from registries and archives to directories that sandboxes use as their root.
//!
//! A [`Store`] owns one directory. [`Store::prepare`] gives an [`Image`]: the path of a root with the image's files, its configuration
//! with users resolved, and a hold that keeps it from eviction. Layers are verified while they stream in, unpacked once, and shared by all
//! roots that are made of them. What an image may and may not bring along, and what bounds it, is in `docs/images.md`.
//!
//! The other way round, a [`Publisher`] puts a [`Layer`] on top of an image and into a registry: how code that comes as a zip gets to all runners.
//!
//! Everything that comes from outside is hostile until it is verified: see [`unpack`] for names and links, [`read`] for digests and bombs,
//! [`limits`] for the rest.

mod config;
mod digest;
mod document;
mod error;
mod flatten;
mod found;
mod layer;
mod ledger;
mod limits;
mod local;
mod marks;
mod metered;
mod publish;
mod read;
mod registry;
mod scratch;
mod single_flight;
mod store;
mod tree;
mod unpack;

pub use config::{ImageConfig, User};
pub use error::{Error, Fault};
pub use layer::{Layer, LayerBuilder};
pub use ledger::Usage;
pub use limits::Limits;
pub use publish::{Publisher, Top};
pub use registry::Config as RegistryConfig;
pub use store::{Config, Image, Phases, Source, Store};
