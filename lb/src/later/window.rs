//! How many calls of one function this balancer makes for later at once: as many as start at once, found by trying.
//!
//! A call that started without waiting says that there was room, so the window grows by one; one that had to wait for a slot took
//! the place of another, so it shrinks. What is learned follows the fleet up and down without being told how large it is.

use std::time::Duration;

/// A start that waited longer than this waited for others.
const WAITED: Duration = Duration::from_millis(5);

/// See the module.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    size: f64,
    most: f64,
    /// It has met the limit once: from then on it grows by one a round, and not by one a call.
    met: bool,
}

impl Window {
    pub fn new(most: usize) -> Self {
        Self { size: 1.0, most: most.max(1) as f64, met: false }
    }

    /// Calls at once.
    pub fn size(&self) -> usize {
        self.size as usize
    }

    /// A call was made. A cold start is slow and no sign that others were in its way.
    pub fn started(&mut self, waited: Duration, cold: bool) {
        if waited > WAITED && !cold {
            self.met = true;
            self.size = (self.size * 0.8).max(1.0);
            return;
        }
        let step = if self.met { 1.0 / self.size } else { 1.0 };
        self.size = (self.size + step).min(self.most);
    }

    /// There was no room.
    pub fn refused(&mut self) {
        self.met = true;
        self.size = (self.size / 2.0).max(1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fleet of `slots`: a call waits when more are there.
    fn run(window: &mut Window, slots: usize, rounds: usize) {
        for _ in 0..rounds {
            let calls = window.size();
            for n in 0..calls {
                window.started(if n < slots { Duration::ZERO } else { Duration::from_millis(50) }, false);
            }
        }
    }

    #[test]
    fn it_finds_the_fleets_size_and_follows_it() {
        let mut window = Window::new(1000);
        assert_eq!(window.size(), 1);
        run(&mut window, 40, 200);
        assert!((20..=60).contains(&window.size()), "{window:?}");
        run(&mut window, 4, 200);
        assert!((2..=8).contains(&window.size()), "{window:?}");
        run(&mut window, 80, 2000);
        assert!((40..=120).contains(&window.size()), "{window:?}");
    }

    #[test]
    fn it_stays_within_its_limits() {
        let mut window = Window::new(8);
        run(&mut window, 1000, 20);
        assert_eq!(window.size(), 8);
        for _ in 0..20 {
            window.refused();
        }
        assert_eq!(window.size(), 1);
        window.started(Duration::from_secs(9), true);
        assert_eq!(window.size(), 2, "a cold start is no sign of others");
    }
}
