//! What a server can be told of TLS, and what it must be told before others can reach it.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::Files;
use crate::config::kind::{PATH, TRUTH};
use crate::config::{Declared, Key, Maybe, Mistake, Settings, Table};

static CERTIFICATE: Maybe<PathBuf> = Key::required(
    "tls.certificate",
    PATH,
    "Our certificate, in PEM form: TLS on all our ports; `stoker certs` makes a first one",
)
.optional();
static KEY: Maybe<PathBuf> = Key::required("tls.key", PATH, "The key of tls.certificate").optional();
static CA: Maybe<PathBuf> = Key::required(
    "tls.ca",
    PATH,
    "The authority that signs the certificates of the fleet's balancers and runners, who know each other by it",
)
.optional();
static INSECURE: Key<bool> = Key::new(
    "insecure",
    TRUTH,
    "false",
    "Serve others than this machine although anybody could listen in or ask: only where a network of its own keeps them out",
);

/// What a server can be told of TLS.
pub static KEYS: Table = &[&CERTIFICATE, &KEY, &CA, &INSECURE];

/// What the values of [`KEYS`] come to.
#[derive(Debug, Clone)]
pub struct Plan {
    pub files: Option<Files>,
    /// Ports without TLS are fine.
    pub insecure: bool,
}

impl Plan {
    /// Adds to `mistakes` what does not fit together.
    pub fn new(settings: &Settings, mistakes: &mut Vec<Mistake>) -> Self {
        let mut wrong = |key, text: &str| mistakes.push(settings.mistake(key, text));
        let ca = settings.maybe(&CA);
        let files = match (settings.maybe(&CERTIFICATE), settings.maybe(&KEY)) {
            (Some(certificate), Some(key)) => Some(Files { certificate, key, ca, client_ca: None }),
            (Some(_), None) => {
                wrong(&CERTIFICATE, "has no key: give `tls.key` too");
                None
            }
            (None, Some(_)) => {
                wrong(&KEY, "is of no certificate: give `tls.certificate` too");
                None
            }
            (None, None) => {
                if ca.is_some() {
                    wrong(&CA, "is of no use alone: give `tls.certificate` and `tls.key` too");
                }
                None
            }
        };
        Self { files, insecure: settings.get(&INSECURE) }
    }

    /// A mistake in one of the files.
    #[must_use]
    pub fn wrong(settings: &Settings, why: impl std::fmt::Display) -> Mistake {
        settings.mistake(&CERTIFICATE, why)
    }

    /// A server that is known to others by its authority cannot do without.
    pub fn needs_ca(&self, settings: &Settings, mistakes: &mut Vec<Mistake>) {
        if self.files.as_ref().is_some_and(|files| files.ca.is_none()) {
            let text = "is not enough: give `tls.ca` too, by which balancers and runners know each other";
            mistakes.push(settings.mistake(&CERTIFICATE, text));
        }
    }
}

/// Whether others than this machine reach an address.
#[must_use]
pub fn open_to_others(address: SocketAddr) -> bool {
    !address.ip().to_canonical().is_loopback()
}

/// What is wrong with serving others at the address of this key without TLS.
pub fn exposed(settings: &Settings, told: &Plan, key: &dyn Declared, address: SocketAddr) -> Option<Mistake> {
    let bare = open_to_others(address) && told.files.is_none() && !told.insecure;
    bare.then(|| {
        settings.mistake(
            key,
            format!(
                "{address} can be reached from other machines, and there is no TLS: give `tls.certificate`, `tls.key` and `tls.ca` \
                 (`stoker certs` makes them), listen on 127.0.0.1, or write `insecure: true` where a network of its own keeps others out"
            ),
        )
    })
}
