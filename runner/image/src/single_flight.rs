//! The same work asked for several times at once is done once.
//!
//! A piece of work runs in a task of its own for as long as somebody waits for it; the last to stop waiting ends it. The map knows it only
//! weakly, so that nothing is left of it afterwards.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::error::{Error, Result};

pub(crate) struct SingleFlight<K, T> {
    under_way: Mutex<HashMap<K, Weak<Flight<T>>>>,
}

struct Flight<T> {
    /// For whom it was started: others may be answered otherwise (with other credentials, say).
    origin: String,
    result: watch::Receiver<Option<Result<T>>>,
    _stop: DropGuard,
}

impl<K, T> Default for SingleFlight<K, T> {
    fn default() -> Self {
        Self { under_way: Mutex::new(HashMap::new()) }
    }
}

impl<K: Hash + Eq + Clone, T: Clone + Send + Sync + 'static> SingleFlight<K, T> {
    /// Joins the work with this key, or starts it. Its end is told by the token; dropping this waits no more.
    ///
    /// A success is everybody's. A failure is that of its origin: who has another tries once more by itself.
    pub async fn join<F, W>(&self, key: K, origin: &str, work: W) -> Result<T>
    where
        W: Fn(CancellationToken) -> F,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        loop {
            let flight = self.board(&key, origin, &work);
            let mut result = flight.result.clone();
            let result = match result.wait_for(Option::is_some).await {
                Ok(result) => result.clone(),
                Err(_) => None,
            };
            match result {
                Some(Err(_)) if flight.origin != origin => {
                    // It is not to be boarded again: somebody else may still hold it.
                    self.forget(&key, &flight);
                }
                Some(result) => return result,
                None => {
                    return Err(Error::store("the image store: the work on an image ended without a result"));
                }
            }
        }
    }

    fn board<F, W>(&self, key: &K, origin: &str, work: W) -> Arc<Flight<T>>
    where
        W: FnOnce(CancellationToken) -> F,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = under_way.get(key).and_then(Weak::upgrade) {
            return flight;
        }
        under_way.retain(|_, flight| flight.strong_count() > 0);
        let stop = CancellationToken::new();
        let (done, result) = watch::channel(None);
        let (work, stopped) = (work(stop.clone()), stop.clone());
        tokio::spawn(async move {
            let result = tokio::select! {
                result = work => result,
                () = stopped.cancelled() => Err(Error::abandoned()),
            };
            done.send_replace(Some(result));
        });
        let flight = Arc::new(Flight { origin: origin.to_owned(), result, _stop: stop.drop_guard() });
        under_way.insert(key.clone(), Arc::downgrade(&flight));
        flight
    }

    fn forget(&self, key: &K, flight: &Arc<Flight<T>>) {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if under_way.get(key).is_some_and(|there| std::ptr::eq(there.as_ptr(), Arc::as_ptr(flight))) {
            under_way.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn many_who_ask_are_one_piece_of_work() {
        let flights = SingleFlight::<u8, u32>::default();
        let (runs, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let ask = || {
            flights.join(1, "a", |_| {
                let (runs, go) = (Arc::clone(&runs), Arc::clone(&go));
                async move {
                    runs.fetch_add(1, Ordering::Relaxed);
                    go.notified().await;
                    Ok(7)
                }
            })
        };
        let (first, second, third, ()) = tokio::join!(ask(), ask(), ask(), async { go.notify_one() });
        assert_eq!((first, second, third), (Ok(7), Ok(7), Ok(7)));
        assert_eq!(runs.load(Ordering::Relaxed), 1);
        go.notify_one();
        assert_eq!(ask().await, Ok(7));
        assert_eq!(runs.load(Ordering::Relaxed), 2, "what is done is done again: results are kept elsewhere");
    }

    #[tokio::test]
    async fn the_last_to_go_ends_the_work() {
        let flights = Arc::new(SingleFlight::<u8, u32>::default());
        let (started, ended) = (Arc::new(Notify::new()), CancellationToken::new());
        let ask = |flights: Arc<SingleFlight<u8, u32>>| {
            let (started, ended) = (Arc::clone(&started), ended.clone());
            tokio::spawn(async move {
                flights
                    .join(1, "a", move |_| {
                        let (started, ended) = (Arc::clone(&started), ended.clone());
                        async move {
                            let _ended = ended.drop_guard();
                            started.notify_one();
                            std::future::pending().await
                        }
                    })
                    .await
            })
        };
        let first = ask(Arc::clone(&flights));
        started.notified().await;
        let second = ask(Arc::clone(&flights));
        tokio::task::yield_now().await;
        first.abort();
        assert!(first.await.is_err());
        assert!(!ended.is_cancelled(), "one still waits");
        second.abort();
        assert!(second.await.is_err());
        ended.cancelled().await;
    }

    #[tokio::test]
    async fn a_failure_is_for_its_origin_alone() {
        let flights = SingleFlight::<u8, &str>::default();
        let go = Arc::new(Notify::new());
        let ask = |origin: &'static str| {
            let go = Arc::clone(&go);
            flights.join(1, origin, move |_| {
                let go = Arc::clone(&go);
                async move {
                    if origin == "wrong" {
                        go.notified().await;
                        return Err(Error::image("not for you"));
                    }
                    Ok(origin)
                }
            })
        };
        let (wrong, right, ()) = tokio::join!(ask("wrong"), ask("right"), async { go.notify_one() });
        assert_eq!(wrong.unwrap_err().fault, crate::Fault::Image);
        assert_eq!(right, Ok("right"));
    }
}
