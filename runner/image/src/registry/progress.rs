//! How a pull stands: what is told of it when its time is over before it is.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::Error;

/// See the module. Shared by those who pull and who waits for them.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Who was asked and has not answered yet.
    awaited: Mutex<Option<String>>,
    /// What went wrong last and was tried again.
    trouble: Mutex<Option<String>>,
    /// Bytes of layers.
    came: AtomicU64,
}

impl Progress {
    /// Waits for the answer of somebody. If that does not come, this is whom it came from.
    pub async fn awaiting<T>(&self, who: impl fmt::Display, answer: impl Future<Output = T>) -> T {
        let set = |who| *self.awaited.lock().unwrap_or_else(PoisonError::into_inner) = who;
        set(Some(who.to_string()));
        let answer = answer.await;
        set(None);
        answer
    }

    pub fn met(&self, trouble: &Error) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(trouble.message.clone());
    }

    pub fn came(&self, bytes: usize) {
        self.came.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// What held it up, as the end of a sentence; nothing where nobody is known who did.
    pub fn so_far(&self) -> String {
        let said = |of: &Mutex<Option<String>>| of.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut text = match (said(&self.trouble), said(&self.awaited)) {
            (Some(trouble), _) => format!(": {trouble}"),
            (None, Some(who)) => format!(": {who} did not answer"),
            (None, None) => String::new(),
        };
        match self.came.load(Ordering::Relaxed) {
            0 => {}
            bytes if text.is_empty() => text = format!(": {bytes} bytes of it had come by then"),
            bytes => text.push_str(&format!("; {bytes} bytes of it had come by then")),
        }
        text
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
    }
}
