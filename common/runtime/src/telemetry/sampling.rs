//! Which calls are traced: decided at the first door that sees them, and, where it said no, once more when they are over.

use std::time::Duration;

use opentelemetry::trace::TraceId;

use super::context::Place;
use crate::config::Kind;

/// The samplers of the OpenTelemetry specification, by its names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sampler {
    AlwaysOn,
    AlwaysOff,
    Ratio,
    ParentOrOn,
    ParentOrOff,
    ParentOrRatio,
}

/// How a sampler is written.
pub(super) const SAMPLER: Kind<Sampler> = Kind::choice(
    "SAMPLER",
    &[
        ("always_on", Sampler::AlwaysOn),
        ("always_off", Sampler::AlwaysOff),
        ("traceidratio", Sampler::Ratio),
        ("parentbased_always_on", Sampler::ParentOrOn),
        ("parentbased_always_off", Sampler::ParentOrOff),
        ("parentbased_traceidratio", Sampler::ParentOrRatio),
    ],
);

/// A sampler with its ratio, ready to decide.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sampling {
    /// Whether the caller's decision counts.
    pub parent_based: bool,
    /// Traces whose number is below it are taken; numbers have 63 bits.
    below: u64,
}

impl Sampling {
    pub fn new(sampler: Sampler, ratio: f64) -> Self {
        let ratio = match sampler {
            Sampler::AlwaysOn | Sampler::ParentOrOn => 1.0,
            Sampler::AlwaysOff | Sampler::ParentOrOff => 0.0,
            Sampler::Ratio | Sampler::ParentOrRatio => ratio,
        };
        let parent_based =
            matches!(sampler, Sampler::ParentOrOn | Sampler::ParentOrOff | Sampler::ParentOrRatio);
        Self { parent_based, below: (ratio.clamp(0.0, 1.0) * (1_u64 << 63) as f64) as u64 }
    }

    /// The same answer for the same trace in every process with this ratio, as the specification has it.
    pub fn takes(self, parent: Option<&Place>, trace: TraceId) -> bool {
        match parent {
            Some(parent) if self.parent_based => parent.sampled,
            _ => {
                let bytes = trace.to_bytes();
                let low = bytes[8..].iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
                low >> 1 < self.below
            }
        }
    }
}

/// Which calls are sent though nobody samples them, as far as this process is concerned: who has made its part of a call knows how
/// that went, and nobody else does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Keep {
    /// Those that failed.
    pub failed: bool,
    /// Those that took longer.
    pub slow: Option<Duration>,
}

impl Keep {
    pub(super) fn any(self) -> bool {
        self.failed || self.slow.is_some()
    }

    /// Why a call is kept, if it is.
    pub(super) fn why(self, failed: bool, took: Duration) -> Option<&'static str> {
        match self.slow {
            _ if failed && self.failed => Some("failed"),
            Some(limit) if took > limit => Some("slow"),
            _ => None,
        }
    }
}
