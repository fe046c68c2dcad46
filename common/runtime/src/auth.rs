//! Who asks, and what they may: read from one file, the access file, which is taken up anew when it changes.
//!
//! Somebody is known by a bearer token (a fixed one, of which the file has only the hash, or a JWT of an issuer that the file names), by the
//! certificate of a connection, or by an access key of AWS's kind, whose signatures whoever serves that API checks. Whoever shows nothing is
//! `anybody`, if the file has that. What an identity may is said by app, in three kinds: [`Permission`].

mod access_file;
mod file;
mod jwks;
mod jwt;

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use ring::digest;

pub(crate) use self::access_file::password;
pub use self::access_file::{AccessFile, Generation, bearer};
pub use self::jwks::Keeper;
pub use self::jwt::Issuer;
use self::jwt::Signer;
use crate::tls::Peer;
use crate::yaml;

/// The longest credential that is looked at.
const LONGEST: usize = 8 << 10;

/// Tokens of issuers that were found good and are remembered. One more makes room by forgetting all: they are found good again.
const REMEMBERED: usize = 4096;

/// What an identity may do with an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permission {
    /// Call its functions.
    Invoke,
    /// Change its functions; over all apps, `*`, also the fleet: drain and uncordon.
    Manage,
    /// See its functions and what they wrote; over all apps, `*`, also the fleet.
    Observe,
}

impl Permission {
    /// As it stands in the access file.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Permission::Invoke => "invoke",
            Permission::Manage => "manage",
            Permission::Observe => "observe",
        }
    }
}

/// Names by a pattern: one name, those that begin like `web-*`, or all, `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// Whether this name is meant.
    #[must_use]
    pub fn covers(&self, name: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => self.0 == name,
        }
    }

    /// Whether every name is meant.
    #[must_use]
    pub fn covers_all(&self) -> bool {
        self.0 == "*"
    }
}

/// What somebody may, in the order of [`Permission`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grants([Vec<Pattern>; 3]);

impl Grants {
    fn add(&mut self, other: &Grants) {
        for (mine, more) in self.0.iter_mut().zip(&other.0) {
            mine.extend_from_slice(more);
        }
    }
}

/// Somebody who is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    name: String,
    grants: Grants,
    /// From then on it is nobody.
    expires: Option<SystemTime>,
    /// Of a JWT: by which key it was found good.
    signer: Option<Signer>,
}

impl Identity {
    /// How it is called in limits, logs and the audit.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it may do this with an app.
    #[must_use]
    pub fn may(&self, permission: Permission, app: &str) -> bool {
        self.grants.0[permission as usize].iter().any(|pattern| pattern.covers(app))
    }

    /// Whether it may do this with every app, which is to do it with the fleet.
    #[must_use]
    pub fn may_everywhere(&self, permission: Permission) -> bool {
        self.grants.0[permission as usize].iter().any(Pattern::covers_all)
    }

    /// Why it is nobody any more, if it is: its time has passed, or the key by which it is known was withdrawn.
    #[must_use]
    pub fn gone(&self, now: SystemTime) -> Option<Unknown> {
        if self.expires.is_some_and(|end| now >= end) {
            return Some(Unknown::Over);
        }
        self.signer.as_ref().is_some_and(|signer| !signer.is_published()).then_some(Unknown::KeyNotRead)
    }
}

/// What is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// For those who must know it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a secret")
    }
}

/// How much one who is meant by it may ask for.
#[derive(Debug, Clone, PartialEq)]
pub struct Limit {
    /// Whose calls count; each name that the pattern covers has a measure of its own.
    pub identity: Option<Pattern>,
    /// The same for apps.
    pub app: Option<Pattern>,
    pub calls_per_second: Option<f64>,
    /// Calls at once after a pause; a second's worth unless said.
    pub burst: f64,
    /// Bytes of bodies, both ways.
    pub bytes_per_second: Option<f64>,
    /// Bytes after a pause; a second's worth unless said.
    pub bytes_burst: f64,
    pub concurrent: Option<u32>,
}

/// Why somebody is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    /// Nothing was shown.
    Nothing,
    /// What was shown is no credential of ours.
    Wrong,
    /// Its time has passed.
    Over,
    /// It is signed by a key that its issuer does not publish, as far as is known: it may be once the issuer was asked.
    KeyNotRead,
}

/// The access file, read. Replaced as a whole when the file changes.
pub struct Access {
    tokens: HashMap<[u8; 32], Arc<Identity>>,
    /// By a name in the certificate.
    certificates: HashMap<String, Arc<Identity>>,
    keys: HashMap<String, (Secret, Arc<Identity>)>,
    issuers: Vec<Arc<Issuer>>,
    anybody: Option<Arc<Identity>>,
    limits: Vec<Limit>,
    /// Files that it names, which are read with it.
    files: Vec<PathBuf>,
    /// Tokens of issuers by their hash.
    remembered: Mutex<HashMap<[u8; 32], Arc<Identity>>>,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").field("tokens", &self.tokens.len()).finish_non_exhaustive()
    }
}

impl Access {
    /// Reads an access file.
    ///
    /// # Errors
    /// Every mistake in it, a line each, with its place.
    pub fn read(path: &Path) -> Result<Self, String> {
        file::read(path, &yaml::load(path).map_err(|mistake| mistake.to_string())?)
    }

    /// Who it is that shows this token, and this certificate. A token that is shown is what counts: who shows a wrong one is not let in by
    /// a certificate.
    ///
    /// # Errors
    /// Why nobody is known by it; whether [`Access::anybody`] is then meant is the caller's to decide.
    pub fn identify(
        &self,
        token: Option<&[u8]>,
        peer: Option<&Peer>,
        now: SystemTime,
    ) -> Result<Arc<Identity>, Unknown> {
        let found = match (token, peer) {
            (Some(token), _) => self.by_token(token, now)?,
            (None, Some(peer)) => {
                let known = peer.names.iter().find_map(|name| self.certificates.get(name));
                known.ok_or(Unknown::Wrong)?.clone()
            }
            (None, None) => return Err(Unknown::Nothing),
        };
        found.gone(now).map_or(Ok(found), Err)
    }

    /// A token is found by its hash: how long that takes says nothing about the token, since nobody can choose what a text hashes to.
    fn by_token(&self, token: &[u8], now: SystemTime) -> Result<Arc<Identity>, Unknown> {
        if token.len() > LONGEST {
            return Err(Unknown::Wrong);
        }
        let hash = hash(token);
        if let Some(found) = self.tokens.get(&hash) {
            return Ok(found.clone());
        }
        if self.issuers.is_empty() {
            return Err(Unknown::Wrong);
        }
        let remembered = || self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        // One whose key was withdrawn is looked at again: another key may have signed it.
        if let Some(found) =
            remembered().get(&hash).filter(|found| found.gone(now) != Some(Unknown::KeyNotRead))
        {
            return Ok(found.clone());
        }
        let found = Arc::new(jwt::identity(token, &self.issuers, now)?);
        let mut remembered = remembered();
        if remembered.len() >= REMEMBERED {
            remembered.clear();
        }
        remembered.insert(hash, found.clone());
        Ok(found)
    }

    /// Who shows nothing, if they may do anything.
    #[must_use]
    pub fn anybody(&self) -> Option<&Arc<Identity>> {
        self.anybody.as_ref()
    }

    /// The secret of an access key, and whose it is.
    #[must_use]
    pub fn key(&self, id: &str) -> Option<&(Secret, Arc<Identity>)> {
        self.keys.get(id)
    }

    /// Whether there are access keys at all.
    #[must_use]
    pub fn has_keys(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Who may ask for how much.
    #[must_use]
    pub fn limits(&self) -> &[Limit] {
        &self.limits
    }

    /// The files that it names and that were read with it, for those who watch them.
    #[must_use]
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Those whose keys are kept up to date.
    #[must_use]
    pub fn issuers(&self) -> &[Arc<Issuer>] {
        &self.issuers
    }

    /// Hands on the keys that were read for issuers that are the same as before.
    pub fn take_over(&self, before: &Access) {
        for issuer in &self.issuers {
            if let Some(same) = before.issuers.iter().find(|other| other.same_keys(issuer)) {
                issuer.take_over(same);
            }
        }
    }
}

/// What the file has of a token.
#[must_use]
pub fn hash(token: &[u8]) -> [u8; 32] {
    let digest = digest::digest(&digest::SHA256, token);
    digest.as_ref().try_into().unwrap_or_default()
}

/// A new token that nobody can guess, and its hash as the file has it.
///
/// # Errors
/// This machine has no random numbers.
pub fn new_token() -> Result<(String, String), String> {
    let mut random = [0; 32];
    let source = ring::rand::SystemRandom::new();
    ring::rand::SecureRandom::fill(&source, &mut random)
        .map_err(|_| "this machine gives no random numbers")?;
    let token = format!("stk_{}", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(random));
    let hash = hash(token.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((token, hash))
}

/// Some room for clocks that differ.
const LEEWAY: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests;
