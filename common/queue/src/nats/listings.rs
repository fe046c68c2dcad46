//! Lists that are read in pages. The server has no order of ours, so that before the first page can be told the ids of all calls are asked for that may be
//! among them: of the indexes, of what waits or runs, of what has begun. They are kept for the next pages, which would else cost as much each.
//! A page that nothing is kept for any more, or that another balancer is asked for, is read anew.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::stream::Stream;
use futures_util::TryStreamExt as _;

use super::setup::Store;
use super::{Inner, away};
use crate::{Error, Filter, State};

/// Lists that are kept at once.
const MOST: usize = 4;

/// And how long since the last page of one.
const LONGEST: Duration = Duration::from_secs(60);

/// Between the id with which a page ended and the list that it is of.
const MARK: char = '.';

/// What is kept; the one that was read last is the last.
#[derive(Debug, Default)]
pub struct Listings(Vec<Listing>);

#[derive(Debug)]
struct Listing {
    name: String,
    of: Of,
    ids: Arc<[Box<str>]>,
    read: Instant,
}

/// Which calls a list may tell of.
#[derive(Debug, Clone, PartialEq)]
pub struct Of {
    /// Empty: of all.
    pub function: String,
    /// Nothing: of any.
    pub state: Option<State>,
}

/// One list: ids of calls, the newest first as far as they tell times.
#[derive(Debug, Clone)]
pub struct Ids {
    name: String,
    of: Of,
    ids: Arc<[Box<str>]>,
}

/// Where a list goes on: behind this id, and in which of those that are kept.
#[derive(Debug, Clone, Copy, Default)]
pub struct Place<'a> {
    pub id: &'a str,
    of: &'a str,
}

impl<'a> Place<'a> {
    /// What a page [said](Ids::place), or the beginning.
    ///
    /// # Errors
    /// It is nothing that a page says.
    pub fn read(text: &'a str) -> Result<Self, Error> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let (id, of) = text.split_once(MARK).unwrap_or((text, ""));
        super::named(id).map_err(|_| crate::no_position())?;
        Ok(Self { id, of })
    }
}

impl Ids {
    /// Those behind this place.
    pub fn behind(&self, place: Place<'_>) -> &[Box<str>] {
        let from = match place.id {
            "" => 0,
            id => self.ids.partition_point(|one| **one >= *id),
        };
        &self.ids[from..]
    }

    /// Where the next page begins behind one that ends with this id.
    pub fn place(&self, id: &str) -> String {
        format!("{id}{MARK}{}", self.name)
    }
}

impl Listings {
    /// Forgets those of which no page was read for long.
    pub fn forget(&mut self) {
        self.0.retain(|listing| listing.read.elapsed() < LONGEST);
    }

    fn find(&mut self, name: &str, of: &Of) -> Option<Ids> {
        self.forget();
        let at = self.0.iter().position(|listing| listing.name == name && listing.of == *of)?;
        let mut listing = self.0.remove(at);
        listing.read = Instant::now();
        let ids = Ids { name: listing.name.clone(), of: listing.of.clone(), ids: listing.ids.clone() };
        self.0.push(listing);
        Some(ids)
    }

    /// Keeps one, of which there are more pages.
    pub fn keep(&mut self, ids: &Ids) {
        if self.find(&ids.name, &ids.of).is_some() {
            return;
        }
        if self.0.len() == MOST {
            self.0.remove(0);
        }
        let Ids { name, of, ids } = ids.clone();
        self.0.push(Listing { name, of, ids, read: Instant::now() });
    }

    /// Drops one that was read to its end.
    pub fn over(&mut self, ids: &Ids) {
        self.0.retain(|listing| listing.name != ids.name);
    }
}

/// The ids of all calls that this filter may let through: those of the list that this place is of, if it is kept, or as they are now.
pub async fn ids(inner: &Inner, store: &Store, filter: &Filter, place: Place<'_>) -> Result<Ids, Error> {
    let of = Of { function: filter.function.clone(), state: filter.state };
    if let Some(kept) = inner.listings().find(place.of, &of) {
        return Ok(kept);
    }
    // Most ids begin with their time.
    let mut ids: Vec<_> = now(inner, store, &of).await?.into_iter().collect();
    ids.sort_unstable_by(|a, b| b.cmp(a));
    Ok(Ids { name: uuid::Uuid::now_v7().as_simple().to_string(), of, ids: ids.into() })
}

/// All of these that there are, and perhaps others.
pub async fn now(inner: &Inner, store: &Store, of: &Of) -> Result<HashSet<Box<str>>, Error> {
    let open = async || ids_in(&store.calls, inner.subject(&of.function, "*")).await;
    let begun = async || ids_in(&store.progress.stream, format!("{}*", store.progress.prefix)).await;
    let index = of.state.and_then(|state| store.index(state)).filter(|index| index.is_filled());
    if let Some(index) = index {
        return index.ids(&of.function).await;
    }
    match of.state {
        Some(State::Queued) => open().await,
        // First what has not ended: what begins meanwhile is not missed.
        Some(State::Running) => {
            let (mut running, begun) = (open().await?, begun().await?);
            running.retain(|id| begun.contains(id));
            Ok(running)
        }
        Some(State::Done | State::Dead | State::Cancelled) => begun().await,
        None => {
            let mut all = open().await?;
            all.extend(begun().await?);
            Ok(all)
        }
    }
}

/// The ids with which the subjects of a stream end that are like this one.
pub async fn ids_in(stream: &Stream, subjects: String) -> Result<HashSet<Box<str>>, Error> {
    let mut ids = HashSet::new();
    let mut found = stream.info_with_subjects(subjects).await.map_err(away)?;
    while let Some((subject, _)) = found.try_next().await.map_err(away)? {
        ids.extend(subject.rsplit('.').next().map(Box::from));
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(function: &str) -> Of {
        Of { function: function.to_owned(), state: None }
    }

    fn list(name: &str) -> Ids {
        Ids { name: name.to_owned(), of: of("a/f"), ids: ["d", "c", "b", "a"].map(Box::from).into() }
    }

    #[test]
    fn a_list_goes_on_where_it_ended_whether_it_is_kept_or_not() {
        let (first, mut kept) = (list("first"), Listings::default());
        assert_eq!(first.behind(Place::read("").unwrap()).len(), 4);
        kept.keep(&first);
        let next = first.place("c");
        let place = Place::read(&next).unwrap();
        assert_eq!(place.id, "c");
        let found = kept.find(place.of, &of("a/f")).expect("it is kept");
        assert_eq!(found.behind(place), &["b", "a"].map(Box::from));
        assert!(kept.find(place.of, &of("a/g")).is_none(), "another function's");
        assert!(
            kept.find(place.of, &Of { state: Some(State::Dead), ..of("a/f") }).is_none(),
            "those that were given up"
        );
        // By a balancer that does not keep it, and from one that keeps none.
        assert_eq!(list("second").behind(place).len(), 2);
        assert_eq!(list("second").behind(Place::read("bb").unwrap()), &["b", "a"].map(Box::from));
        kept.over(&found);
        assert!(kept.find(place.of, &of("a/f")).is_none());
        for wrong in ["an ../odd one", ".first", "a b.first"] {
            assert!(matches!(Place::read(wrong), Err(Error::Unsupported(_))), "{wrong}");
        }
    }

    #[test]
    fn few_are_kept_and_not_for_ever() {
        let mut kept = Listings::default();
        let lists: Vec<_> = (0..=MOST).map(|n| list(&n.to_string())).collect();
        for ids in &lists[..MOST] {
            kept.keep(ids);
        }
        // The one that was read last stays.
        assert!(kept.find("0", &of("a/f")).is_some());
        kept.keep(&lists[MOST]);
        let there: Vec<_> = lists.iter().map(|ids| kept.find(&ids.name, &ids.of).is_some()).collect();
        assert_eq!(there, [true, false, true, true, true]);
        kept.0[0].read = Instant::now().checked_sub(LONGEST).unwrap();
        kept.forget();
        assert_eq!(kept.0.len(), MOST - 1);
    }
}
