//! How a pull stands: what is told of it when somebody's time is over before it is.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::Error;

/// See the module. Shared by those who pull and who waits for them.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// What is waited for, as it is told where it was in vain.
    awaited: Mutex<Option<String>>,
    /// What went wrong last and was tried again.
    trouble: Mutex<Option<String>>,
    /// Bytes of layers, as they are stored: those that came, and those that there are to come, where that is known.
    came: AtomicU64,
    whole: AtomicU64,
}

impl Progress {
    /// Waits for the answer of somebody. If that does not come, this is whom it came from.
    pub async fn awaiting<T>(&self, who: impl fmt::Display, answer: impl Future<Output = T>) -> T {
        self.held_up(format!("{who} did not answer"), answer).await
    }

    /// Waits for its turn behind others.
    pub async fn behind<T>(&self, others: impl fmt::Display, turn: impl Future<Output = T>) -> T {
        self.held_up(format!("it waited for its turn behind {others}"), turn).await
    }

    async fn held_up<T>(&self, why: String, awaited: impl Future<Output = T>) -> T {
        let set = |why| *self.awaited.lock().unwrap_or_else(PoisonError::into_inner) = why;
        set(Some(why));
        let came = awaited.await;
        set(None);
        came
    }

    pub fn met(&self, trouble: &Error) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(trouble.message.clone());
    }

    pub fn came(&self, bytes: usize) {
        self.came.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// So many are to come in all.
    pub fn expects(&self, bytes: u64) {
        self.whole.store(bytes, Ordering::Relaxed);
    }

    /// What held it up, as the end of a sentence; nothing where nobody is known who did.
    pub fn so_far(&self) -> String {
        let said = |of: &Mutex<Option<String>>| of.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut text = match (said(&self.trouble), said(&self.awaited)) {
            (Some(trouble), _) => format!(": {trouble}"),
            (None, Some(why)) => format!(": {why}"),
            (None, None) => String::new(),
        };
        let (came, whole) = (self.came.load(Ordering::Relaxed), self.whole.load(Ordering::Relaxed));
        if came > 0 {
            text.push_str(if text.is_empty() { ": " } else { "; " });
            text.push_str(&format!("{} of it had come by then", share(came, whole)));
        }
        text
    }
}

/// So much of the whole, where that is known: what was fetched twice, after a break, is more than there is.
fn share(came: u64, whole: u64) -> String {
    const MEGABYTE: u64 = 1_000_000;
    let (unit, digits, name) = if came.max(whole) < MEGABYTE { (1, 0, "bytes") } else { (MEGABYTE, 1, "MB") };
    let say = |bytes: u64| format!("{:.digits$}", bytes as f64 / unit as f64);
    match whole {
        0 => format!("{} {name}", say(came)),
        whole => format!("{} of {} {name}", say(came.min(whole)), say(whole)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_held_it_up_is_told() {
        let progress = Progress::default();
        assert_eq!(progress.so_far(), "");
        progress.awaiting("somebody", async {}).await;
        assert_eq!(progress.so_far(), "", "who has answered held up nobody");
        let silent = progress.awaiting("r.example", std::future::pending::<()>());
        tokio::time::timeout(std::time::Duration::ZERO, silent).await.unwrap_err();
        progress.came(7);
        assert_eq!(progress.so_far(), ": r.example did not answer; 7 bytes of it had come by then");
        progress.met(&Error::registry("r.example broke off"));
        assert_eq!(progress.so_far(), ": r.example broke off; 7 bytes of it had come by then");
        progress.expects(90);
        assert_eq!(progress.so_far(), ": r.example broke off; 7 of 90 bytes of it had come by then");
    }

    #[tokio::test]
    async fn who_waits_for_a_turn_is_held_up_by_no_registry() {
        let progress = Progress::default();
        let waiting = progress.behind("four others", std::future::pending::<()>());
        tokio::time::timeout(std::time::Duration::ZERO, waiting).await.unwrap_err();
        assert_eq!(progress.so_far(), ": it waited for its turn behind four others");
    }

    #[test]
    fn a_share_is_told_in_units_that_can_be_read() {
        let told = [(7, 0), (0, 999_999), (12_345_678, 80_000_000), (2_000_000, 0), (91, 90)];
        assert_eq!(
            told.map(|(came, whole)| share(came, whole)),
            ["7 bytes", "0 of 999999 bytes", "12.3 of 80.0 MB", "2.0 MB", "90 of 90 bytes"]
        );
    }
}
