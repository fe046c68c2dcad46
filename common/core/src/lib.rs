//! The words of the domain, shared by every part of Stoker.
//!
//! Nothing here performs I/O or knows a wire format: other crates convert into these types at their border and from
//! then on may trust them.

pub mod backoff;
pub mod call;
pub mod capacity;
pub mod cidr;
pub mod error;
pub mod function;
pub mod histogram;
pub mod ids;
pub mod image;
pub mod later;
pub mod machine;
pub mod moment;
pub mod resources;
pub mod secret;
pub mod text;
pub mod trigger;
pub mod units;

pub use call::{Deadline, RequestHead, ResponseHead, Timings, TraceContext};
pub use capacity::{Capacity, RunnerState, Warmth};
pub use error::{Blame, Code, Error, Refusal, Retry};
pub use function::{Digest, Format, FormatOptions, FunctionName, FunctionSpec};
pub use ids::{CallId, ContainerId, Incarnation, RunnerName};
pub use image::ImageRef;
pub use resources::{Ask, Resources};
