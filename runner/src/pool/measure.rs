//! What was observed of a function.

use std::time::Duration;

/// A mean that forgets: each value counts for a fifth of what is known by then.
#[derive(Debug, Default, Clone, Copy)]
pub struct Mean(Option<f64>);

impl Mean {
    pub fn add(&mut self, value: Duration) {
        let value = value.as_secs_f64();
        self.0 = Some(self.0.map_or(value, |old| old * 0.8 + value * 0.2));
    }

    /// Zero if nothing was observed.
    pub fn get(self) -> Duration {
        self.0.map_or(Duration::ZERO, Duration::from_secs_f64)
    }
}
