//! Who is let in, for what, and for how much: the access file, as the doors ask it.
//!
//! Without one everybody may everything, which is meant for loopback. With one every request is somebody's: the servers find out whose and put a
//! [`Caller`] beside it, and doors ask [`Guard::allow`]. A request without a caller is nobody's, so that a door that forgets to hand it on lets
//! in nobody. Health and reflection are open: they say nothing that is not public.

mod limits;

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use arc_swap::ArcSwap;
use http::header::AUTHORIZATION;
use http::{Extensions, HeaderMap, HeaderValue};
use stoker_core::error::{Code, Error, Retry};
use stoker_runtime::audit::{Audit, Event};
use stoker_runtime::auth::{AccessFile, Generation, Identity, Secret, Unknown, bearer};
use stoker_runtime::telemetry::Facts;
use stoker_runtime::tls::Secured;

use self::limits::Limiter;
pub use self::limits::{Meter, Share};
use crate::addresses::Address;
pub use stoker_runtime::auth::Permission;
pub use stoker_runtime::tls::Peer;

/// One connection, as far as it says who is there.
#[derive(Debug, Default)]
pub struct Origin {
    pub peer: Option<Arc<Peer>>,
    /// Where from, as it is noted.
    pub remote: String,
    /// The address in that.
    pub address: Option<IpAddr>,
    /// What is counted of those at that address whom nobody knows.
    pub counted: Option<Arc<Address>>,
    /// It came by TLS.
    pub secure: bool,
    /// Nothing that comes by it is served, for this reason.
    pub refused: Option<Error>,
    /// What spans say of it.
    pub facts: Facts,
}

impl Origin {
    /// Of a new connection, which is counted with others of its address, and is `refused` for a reason, or is not.
    pub fn of(stream: &Secured, counted: Option<Arc<Address>>, refused: Option<Error>) -> Arc<Self> {
        let remote = stream.remote().map(|remote| remote.to_string()).unwrap_or_default();
        let address = stream.remote().map(|remote| remote.ip().to_canonical());
        let (peer, secure) = (stream.peer().cloned(), stream.is_tls());
        let origin = Self { peer, remote, address, counted, secure, refused, ..Self::default() };
        let facts = crate::observe::of_origin(&origin);
        Arc::new(Self { facts, ..origin })
    }
}

/// Who asks.
#[derive(Clone, Default)]
pub struct Caller(Asks);

#[derive(Clone, Default)]
enum Asks {
    /// Nobody has looked who it is.
    #[default]
    Nobody,
    /// Whoever is at the other end of this, where nobody is asked.
    Anyone(Arc<Origin>),
    Asked(Arc<Asker>),
}

struct Asker {
    who: Who,
    origin: Arc<Origin>,
}

enum Who {
    /// This process itself, for what it took over earlier.
    Platform,
    /// Nobody so far: what it shows is a signature, which is yet to be checked.
    Unsigned,
    Known {
        identity: Arc<Identity>,
        /// Of the access file.
        generation: u64,
        /// What it showed, to be asked again when the file has changed; a certificate is the connection's.
        token: Option<HeaderValue>,
        /// Somebody else found out who it is, by a signature.
        signed: bool,
        /// Why it is `anybody`, though it showed a token or a signature.
        unproven: Option<Unknown>,
    },
}

impl Caller {
    /// Whoever the server found to be behind a request.
    pub fn of(extensions: &Extensions) -> Self {
        extensions.get::<Self>().cloned().unwrap_or_default()
    }

    /// This process itself, for calls that were taken earlier, when their caller was asked.
    pub fn platform() -> Self {
        Self::asked(Who::Platform, &Arc::default())
    }

    fn asked(who: Who, origin: &Arc<Origin>) -> Self {
        Self(Asks::Asked(Arc::new(Asker { who, origin: origin.clone() })))
    }

    fn asker(&self) -> Option<&Asker> {
        match &self.0 {
            Asks::Asked(asker) => Some(asker),
            Asks::Nobody | Asks::Anyone(_) => None,
        }
    }

    fn origin(&self) -> Option<&Arc<Origin>> {
        match &self.0 {
            Asks::Nobody => None,
            Asks::Anyone(origin) => Some(origin),
            Asks::Asked(asker) => Some(&asker.origin),
        }
    }

    /// Its name; empty where nobody was asked.
    pub fn name(&self) -> &str {
        match self.asker() {
            Some(Asker { who: Who::Known { identity, .. }, .. }) => identity.name(),
            Some(Asker { who: Who::Platform, .. }) => "stoker",
            Some(Asker { who: Who::Unsigned, .. }) | None => "",
        }
    }

    /// Whether it showed nothing of ours, and was let in as the access file's `anybody`.
    pub fn is_anybody(&self) -> bool {
        self.name() == "anybody"
    }

    /// What is counted at its address, where nobody knows who it is.
    pub fn address(&self) -> Option<&Arc<Address>> {
        let origin = match &self.0 {
            Asks::Nobody => return None,
            Asks::Anyone(origin) => origin,
            Asks::Asked(asker) => match asker.who {
                Who::Unsigned => &asker.origin,
                Who::Known { .. } if self.is_anybody() => &asker.origin,
                Who::Known { .. } | Who::Platform => return None,
            },
        };
        origin.counted.as_ref()
    }

    fn remote(&self) -> &str {
        self.origin().map_or("", |origin| origin.remote.as_str())
    }
}

/// See the module.
pub struct Guard {
    file: Option<File>,
    pub audit: Audit,
}

struct File {
    access: Arc<AccessFile>,
    limiter: ArcSwap<Limiter>,
}

impl Guard {
    /// Lets in everybody.
    pub fn open(audit: Audit) -> Self {
        Self { file: None, audit }
    }

    /// Lets in those of an access file.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn new(path: &Path, audit: Audit) -> Result<Self, String> {
        let file = File { access: Arc::new(AccessFile::read(path)?), limiter: ArcSwap::default() };
        Ok(Self { file: Some(file), audit })
    }

    /// Reads the file again. One with a mistake changes nothing.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn reload(&self) -> Result<(), String> {
        let Some(file) = &self.file else { return Ok(()) };
        let before = file.access.now();
        file.access.reload()?;
        if file.access.now().access.limits() != before.access.limits() {
            // What was measured by the former ones says nothing about these.
            file.limiter.store(Arc::default());
        }
        Ok(())
    }

    /// The access file, for others that ask by it.
    pub fn access_file(&self) -> Option<Arc<AccessFile>> {
        self.file.as_ref().map(|file| file.access.clone())
    }

    /// Whether nobody is asked.
    pub fn is_open(&self) -> bool {
        self.file.is_none()
    }

    /// Whoever is at the other end of this, where nobody is asked and it is counted: all others need not be known.
    pub fn counted(&self, origin: &Arc<Origin>) -> Option<Caller> {
        (self.is_open() && origin.counted.is_some()).then(|| Caller(Asks::Anyone(origin.clone())))
    }

    /// Finds out whose a request is. A token that did its work is taken out of the headers: it is no function's business.
    ///
    /// # Errors
    /// Nobody is known by it.
    pub async fn identify(&self, headers: &mut HeaderMap, origin: &Arc<Origin>) -> Result<Caller, Error> {
        let Some(file) = &self.file else { return Ok(Caller(Asks::Anyone(origin.clone()))) };
        let shown = shown(headers)?;
        let token = shown.as_ref().and_then(|value| bearer(value.as_bytes()));
        let (now, found) = file.access.identify(token, origin.peer.as_deref()).await;
        match found {
            Ok(identity) => {
                let token = if token.is_some() { headers.remove(AUTHORIZATION) } else { None };
                let generation = now.number;
                let who = Who::Known { identity, generation, token, signed: false, unproven: None };
                Ok(Caller::asked(who, origin))
            }
            Err(unknown) => match now.access.anybody() {
                // What is no credential of ours may be the function's.
                Some(anybody) => {
                    let who = Who::Known {
                        identity: anybody.clone(),
                        generation: now.number,
                        token: None,
                        signed: false,
                        unproven: token.is_some().then_some(unknown),
                    };
                    Ok(Caller::asked(who, origin))
                }
                // A signature is checked by the door that has signatures, which then says who it is.
                None if now.access.has_keys() && token.is_none() && shown.is_some() => {
                    Ok(Caller::asked(Who::Unsigned, origin))
                }
                None => {
                    let error = unauthenticated(unknown);
                    self.refused("authenticate", "", &origin.remote, &[], &error);
                    Err(error)
                }
            },
        }
    }

    /// The secret of an access key and whose it is, for the door that has signatures.
    pub fn key(&self, id: &str) -> Option<(Secret, Arc<Identity>)> {
        self.file.as_ref()?.access.now().access.key(id).cloned()
    }

    /// Whoever was found out by a signature, where `caller` came from.
    pub fn signed(&self, caller: &Caller, identity: Arc<Identity>) -> Caller {
        let generation = self.file.as_ref().map_or(0, |file| file.access.now().number);
        let who = Who::Known { identity, generation, token: None, signed: true, unproven: None };
        Caller::asked(who, caller.origin().unwrap_or(&Arc::default()))
    }

    /// `anybody` who also showed what is no credential of this fleet, where `caller` came from: what anybody may not, it is told that.
    pub fn unproven(&self, caller: &Caller) -> Caller {
        match caller.asker() {
            Some(Asker { who: Who::Known { identity, generation, .. }, origin }) => {
                let (identity, unproven) = (identity.clone(), Some(Unknown::Wrong));
                let who =
                    Who::Known { identity, generation: *generation, token: None, signed: false, unproven };
                Caller::asked(who, origin)
            }
            _ => caller.clone(),
        }
    }

    /// Whether a caller may do this with an app.
    ///
    /// # Errors
    /// It is nobody, or may not.
    pub fn allow(&self, caller: &Caller, permission: Permission, app: &str) -> Result<(), Error> {
        let Some(file) = &self.file else { return Ok(()) };
        let now = file.access.now();
        let Some(identity) = self.current(caller, &now)? else { return Ok(()) };
        if identity.may(permission, app) {
            return Ok(());
        }
        let what = permission.as_str();
        let error = denied(caller, format!("{} may not {what} in app `{app}`", identity.name()));
        self.refused(what, identity.name(), caller.remote(), &[app.to_owned()], &error);
        Err(error)
    }

    /// Whether a caller may do this with the fleet, which is to do it with every app.
    ///
    /// # Errors
    /// It is nobody, or may not.
    pub fn allow_fleet(&self, caller: &Caller, permission: Permission) -> Result<(), Error> {
        let Some(file) = &self.file else { return Ok(()) };
        let now = file.access.now();
        let Some(identity) = self.current(caller, &now)? else { return Ok(()) };
        if identity.may_everywhere(permission) {
            return Ok(());
        }
        let what = permission.as_str();
        let text = format!("{} may not {what} the fleet: that takes `{what}: [\"*\"]`", identity.name());
        let error = denied(caller, text);
        self.refused(what, identity.name(), caller.remote(), &[], &error);
        Err(error)
    }

    /// Whether a caller may see an app, by any permission, without a word where it may not: for lists.
    pub fn sees(&self, caller: &Caller, app: &str) -> bool {
        let Some(file) = &self.file else { return true };
        let all = [Permission::Observe, Permission::Manage, Permission::Invoke];
        match self.current(caller, &file.access.now()) {
            Ok(Some(identity)) => all.iter().any(|permission| identity.may(*permission, app)),
            Ok(None) => true,
            Err(_) => false,
        }
    }

    /// Lets a call of an app in, with its part of what its caller may ask for, held as long as the call lasts.
    ///
    /// # Errors
    /// Its caller is nobody, may not call the app, or has had its share.
    pub fn enter(&self, caller: &Caller, app: &str) -> Result<Option<Share>, Error> {
        let Some(file) = &self.file else { return Ok(None) };
        let now = file.access.now();
        self.allow(caller, Permission::Invoke, app)?;
        if matches!(caller.asker(), Some(Asker { who: Who::Platform, .. })) {
            return Ok(None);
        }
        file.limiter.load().enter(now.access.limits(), caller.name(), app, Instant::now()).map_err(|wait| {
            let text = format!("{} has had its share of app `{app}` for now", caller.name());
            Error::new(Code::RateLimited, text).retry(Retry::After(wait))
        })
    }

    /// Who a caller is now; nobody in particular for this process itself. A file that has changed is asked again: streams live long.
    fn current(&self, caller: &Caller, now: &Generation) -> Result<Option<Arc<Identity>>, Error> {
        let Some(asker) = caller.asker() else { return Err(unauthenticated(Unknown::Nothing)) };
        let (identity, generation, token, signed) = match &asker.who {
            Who::Platform => return Ok(None),
            Who::Unsigned => return Err(unauthenticated(Unknown::Nothing)),
            Who::Known { identity, generation, token, signed, .. } => (identity, generation, token, signed),
        };
        if let Some(unknown) = identity.gone(SystemTime::now()) {
            return Err(unauthenticated(unknown));
        }
        if *generation == now.number || *signed {
            return Ok(Some(identity.clone()));
        }
        let token = token.as_ref().and_then(|value| bearer(value.as_bytes()));
        let found = now.access.identify(token, asker.origin.peer.as_deref(), SystemTime::now());
        match (found, now.access.anybody()) {
            (Ok(identity), _) => Ok(Some(identity)),
            (Err(_), Some(anybody)) => Ok(Some(anybody.clone())),
            (Err(unknown), None) => Err(unauthenticated(unknown)),
        }
    }

    /// Notes a change, or that it failed.
    pub fn note(&self, caller: &Caller, what: &str, on: &[String], outcome: Result<(), &Error>) {
        let outcome = outcome.map_or_else(|error| stoker_proto::status::row(error.code).reason, |()| "ok");
        self.audit.note(Event { what, identity: caller.name(), remote: caller.remote(), on, outcome });
    }

    fn refused(&self, what: &str, identity: &str, remote: &str, on: &[String], error: &Error) {
        let outcome = stoker_proto::status::row(error.code).reason;
        self.audit.refused(Event { what, identity, remote, on, outcome });
    }
}

/// The one `authorization`, if there is one.
fn shown(headers: &HeaderMap) -> Result<Option<HeaderValue>, Error> {
    let mut all = headers.get_all(AUTHORIZATION).iter();
    match (all.next(), all.next()) {
        (_, Some(_)) => Err(Error::new(Code::InvalidRequest, "authorization: stands there twice")),
        (first, None) => Ok(first.cloned()),
    }
}

fn unauthenticated(unknown: Unknown) -> Error {
    let text = match unknown {
        Unknown::Nothing => {
            "nobody is known by this request: show a token (`authorization: Bearer …`) or a certificate"
        }
        Unknown::Wrong => "what this request shows is no credential of this fleet",
        Unknown::Over => "the time of the credential that this request shows has passed",
        Unknown::KeyNotRead => "the token is signed by a key that its issuer does not publish",
    };
    Error::new(Code::Unauthenticated, text)
}

/// Of somebody who is known, and of whoever showed nothing. Whoever showed a token that is not good is told that, and can show a better one.
fn denied(caller: &Caller, text: String) -> Error {
    match caller.asker() {
        Some(Asker { who: Who::Known { unproven: Some(unknown), .. }, .. }) => unauthenticated(*unknown),
        _ => Error::new(Code::PermissionDenied, text),
    }
}

/// What a browser or a kit is told that shows nothing.
pub const CHALLENGE: HeaderValue = HeaderValue::from_static("Bearer realm=\"stoker\"");

#[cfg(test)]
mod tests;
