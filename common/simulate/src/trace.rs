//! What is called, when, and for how long: read from a file or made up.

pub mod azure;
pub mod synthetic;

use std::time::Duration;

/// Microseconds of simulated time.
pub type Micros = u64;

/// One second.
pub const SECOND: Micros = 1_000_000;

/// A function as far as placement sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Function {
    /// Stable: its place in the order of rank comes from it.
    pub name: String,
    /// Bytes that a container of it takes.
    pub memory: u64,
    /// What a launch takes in the middle.
    pub cold: Micros,
}

impl Function {
    /// Its app: the name up to the last `/`.
    #[must_use]
    pub fn app(&self) -> &str {
        self.name.rsplit_once('/').map_or(&self.name, |(app, _)| app)
    }
}

/// One call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// When it comes.
    pub at: Micros,
    /// Its function, as a position in [`Trace::functions`].
    pub function: u32,
    /// Time in the function.
    pub takes: Micros,
}

/// Functions and their calls in order of time.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// What it is, for people.
    pub title: String,
    /// All of them.
    pub functions: Vec<Function>,
    /// By time.
    pub calls: Vec<Call>,
    /// From the first moment to the last.
    pub span: Micros,
}

/// Most calls of one run: each is kept in memory, and what takes longer than minutes to simulate nobody waits for.
pub const MOST_CALLS: usize = 20_000_000;

impl Trace {
    /// Puts calls in order; those at the same time stay in the order in which they were made.
    fn sort(&mut self) {
        self.calls.sort_by_key(|call| call.at);
    }

    /// Cores that are busy on average while the functions run.
    #[must_use]
    pub fn work(&self) -> f64 {
        let busy: f64 = self.calls.iter().map(|call| call.takes as f64).sum();
        busy / (self.span.max(1)) as f64
    }

    /// The same calls, with pauses between them so many times as long.
    #[must_use]
    pub fn stretched(mut self, factor: f64) -> Self {
        for call in &mut self.calls {
            call.at = (call.at as f64 * factor) as Micros;
        }
        self.span = (self.span as f64 * factor) as Micros;
        self
    }
}

/// As a time of the standard library.
#[must_use]
pub fn duration(micros: Micros) -> Duration {
    Duration::from_micros(micros)
}

/// And back.
#[must_use]
pub fn micros(duration: Duration) -> Micros {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
