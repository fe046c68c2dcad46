//! How things stand with etcd, counted where it happens, for those who watch a process.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use stoker_core::moment::now_ms;

/// What goes on all the time with etcd, and can be interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The view of the fleet.
    Fleet,
    /// The view of the functions.
    Functions,
    /// The view of the apps.
    Apps,
    /// A runner's place in the fleet.
    Registration,
    /// The view of the places of functions with a limit.
    Places,
}

impl Part {
    /// One word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Part::Fleet => "fleet",
            Part::Functions => "functions",
            Part::Apps => "apps",
            Part::Registration => "registration",
            Part::Places => "places",
        }
    }
}

/// Of one process.
#[derive(Debug, Default)]
pub struct Figures {
    answered_ms: AtomicU64,
    parts: [Of; 5],
}

#[derive(Debug, Default)]
struct Of {
    interruptions: AtomicU64,
    interrupted: AtomicBool,
    revision: AtomicI64,
}

impl Figures {
    /// When etcd answered or told something last, in milliseconds since 1970; 0: not yet.
    #[must_use]
    pub fn answered_ms(&self) -> u64 {
        self.answered_ms.load(Ordering::Relaxed)
    }

    /// How often it was interrupted.
    #[must_use]
    pub fn interruptions(&self, part: Part) -> u64 {
        self.parts[part as usize].interruptions.load(Ordering::Relaxed)
    }

    /// Whether it is interrupted now.
    #[must_use]
    pub fn is_interrupted(&self, part: Part) -> bool {
        self.parts[part as usize].interrupted.load(Ordering::Relaxed)
    }

    /// The revision at which etcd was when a view heard of it last.
    #[must_use]
    pub fn revision(&self, part: Part) -> i64 {
        self.parts[part as usize].revision.load(Ordering::Relaxed)
    }

    pub(super) fn answered(&self) {
        self.answered_ms.store(now_ms(), Ordering::Relaxed);
    }

    pub(super) fn interrupted(&self, part: Part, now: bool) {
        let of = &self.parts[part as usize];
        if !of.interrupted.swap(now, Ordering::Relaxed) && now {
            of.interruptions.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn reached(&self, part: Part, revision: i64) {
        self.parts[part as usize].revision.store(revision, Ordering::Relaxed);
    }
}
