//! Where asynchronous calls are kept, as it is told.

use std::path::PathBuf;
use std::time::Duration;

use stoker_runtime::config::{Mistake, Settings};

#[cfg(feature = "nats")]
use super::LATER_NATS_CA;
use super::{LATER_LEASE, LATER_NATS_PASSWORD, LATER_NATS_REPLICAS, LATER_NATS_USER, LATER_QUEUE};
use crate::config::CallQueue;

/// The value of `later.queue`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Nowhere,
    Directory(PathBuf),
    Nats(Vec<String>),
}

/// Reads it.
pub fn place(text: &str) -> Result<Place, String> {
    let is_nats = |url: &str| url.starts_with("nats://") || url.starts_with("tls://");
    if text == "none" {
        return Ok(Place::Nowhere);
    }
    if text.split(',').any(is_nats) {
        let urls: Vec<_> = text.split(',').map(|url| url.trim().to_owned()).collect();
        // What is in a URL is shown to whoever may see the settings.
        if urls.iter().all(|url| is_nats(url) && !url.contains('@')) {
            return Ok(Place::Nats(urls));
        }
        return Err("servers are written nats://HOST:PORT or tls://HOST:PORT; who we are goes into later.nats_user and \
                    later.nats_password"
            .to_owned());
    }
    match text {
        "" => Err("write none, a directory, or nats://HOST:4222".to_owned()),
        // Perhaps a password stands before it.
        url if url.contains("://") && url.contains('@') => {
            Err("is no server of NATS, and has a user or a password in it: write nats://HOST:4222".to_owned())
        }
        url if url.contains("://") => Err(format!("`{url}` is no server of NATS: write nats://HOST:4222")),
        directory => Ok(Place::Directory(directory.into())),
    }
}

/// The queue, and what is wrong with it.
pub fn queue(settings: &Settings, mistakes: &mut Vec<Mistake>) -> CallQueue {
    let told = (settings.maybe(&LATER_NATS_USER), settings.maybe(&LATER_NATS_PASSWORD));
    match told {
        (Some(_), None) => {
            mistakes.push(settings.mistake(&LATER_NATS_USER, "has no password: give later.nats_password"));
        }
        (None, Some(_)) => {
            mistakes.push(settings.mistake(&LATER_NATS_PASSWORD, "is nobody's: give later.nats_user"));
        }
        _ => {}
    }
    if !(1..=5).contains(&settings.get(&LATER_NATS_REPLICAS)) {
        mistakes.push(settings.mistake(&LATER_NATS_REPLICAS, "is not between 1 and 5"));
    }
    let lease = settings.get(&LATER_LEASE);
    if !(Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&lease) {
        mistakes.push(settings.mistake(&LATER_LEASE, "is not between 1s and 1h"));
    }
    match settings.get(&LATER_QUEUE) {
        Place::Nowhere => CallQueue::None,
        Place::Directory(directory) => CallQueue::Disk(stoker_queue::disk::Config {
            lease,
            ..stoker_queue::disk::Config::new(directory)
        }),
        #[cfg(feature = "nats")]
        Place::Nats(servers) => CallQueue::Nats(stoker_queue::nats::Config {
            user: told.0.zip(told.1),
            ca: settings.maybe(&LATER_NATS_CA),
            lease,
            replicas: settings.get(&LATER_NATS_REPLICAS),
            ..stoker_queue::nats::Config::new(servers)
        }),
        #[cfg(not(feature = "nats"))]
        Place::Nats(_) => {
            let text = "this build has no client of NATS: build stoker-lb with its feature `nats`";
            mistakes.push(settings.mistake(&LATER_QUEUE, text));
            CallQueue::None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_nowhere_a_directory_or_nats() {
        assert_eq!(place("none"), Ok(Place::Nowhere));
        assert_eq!(place("/var/lib/stoker/calls"), Ok(Place::Directory("/var/lib/stoker/calls".into())));
        let two = "nats://a:4222,tls://b:4222";
        assert_eq!(place(two), Ok(Place::Nats(two.split(',').map(str::to_owned).collect())));
        for wrong in ["", "http://a", "nats://me:secret@a:4222", "nats://a:4222,b:4222"] {
            assert!(place(wrong).is_err(), "{wrong}");
        }
        assert!(!place("redis://me:secret@a:4222").unwrap_err().contains("secret"));
    }
}
