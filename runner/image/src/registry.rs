//! The client of registries (distribution specification, "v2"): from a name to documents and the bytes of layers, and the way back.
//!
//! Nothing a registry says is believed before its digest is checked; credentials go to the registry itself, and to the token server that
//! it names, and nowhere else.

mod auth;
mod credentials;
mod helper;
mod http;
mod progress;
mod upload;
mod words;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RANGE, RETRY_AFTER,
};
use ::http::{Method, StatusCode};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use stoker_core::ImageRef;
use stoker_core::backoff::Backoff;
use tokio::sync::mpsc;

use crate::digest::Digest;
use crate::document::{self, Configuration, Descriptor, Document, Platform};
use crate::error::{Error, Result};
use crate::found::{Found, Place};
use crate::limits;
use auth::{Authorization, Scope};
use credentials::Credential;
use http::{Http, Origin, RequestError};
pub(crate) use progress::Progress;
pub(crate) use upload::Blob;

/// Where names without a registry lead.
const HUB: &str = "docker.io";
/// Who answers for it.
const HUB_HOST: &str = "registry-1.docker.io";

/// How often a request is made in all, when the registry cannot be reached or says that it cannot answer now.
const TRIES: usize = 5;
/// Hosts to which a registry leads on, one after the other, for one answer.
const HOPS: usize = 5;
/// A registry that wants to be left alone for longer gets its way: the call fails, and says when to come back.
const PATIENCE: Duration = Duration::from_secs(20);
/// The same where somebody waits to hear what a tag leads to.
const SHORT_PATIENCE: Duration = Duration::from_secs(2);
/// A body that brings nothing for this long is given up, and asked for again from where it stopped.
const SILENCE: Duration = Duration::from_secs(30);

/// How registries are reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// Registries that are asked without TLS, as they are written in images: `host` or `host:port`. Those on loopback always are.
    pub without_tls: Vec<String>,
    /// A directory of files like Docker's `config.json`; a function's `credentials` is the name of one. It is read for each pull.
    pub credentials: Option<PathBuf>,
    /// Certificates of further authorities, in PEM form, beside those of the system.
    pub ca: Option<PathBuf>,
}

/// A client of registries. Its connections are kept for a while and used again.
pub(crate) struct Registry {
    config: Config,
    http: Http,
}

impl Registry {
    /// Blocking: reads certificates.
    pub fn new(config: Config) -> Result<Self> {
        let http = Http::new(&config)?;
        Ok(Self { config, http })
    }

    /// A conversation about one repository, whose progress can be looked at from outside.
    pub async fn session(
        self: &Arc<Self>,
        image: &ImageRef,
        credentials: Option<&str>,
        progress: &Arc<Progress>,
    ) -> Result<Session> {
        let scope = Scope::reading(image.repository());
        self.converse(image, credentials, scope, Arc::clone(progress)).await
    }

    /// The same to put something there, which may take blobs from another repository of the same registry.
    pub async fn writing(
        self: &Arc<Self>,
        image: &ImageRef,
        credentials: Option<&str>,
        from: Option<&ImageRef>,
    ) -> Result<Session> {
        let from = from.filter(|from| from.registry() == image.registry()).map(ImageRef::repository);
        self.converse(image, credentials, Scope::writing(image.repository(), from), Arc::default()).await
    }

    async fn converse(
        self: &Arc<Self>,
        image: &ImageRef,
        credentials: Option<&str>,
        scope: Scope,
        progress: Arc<Progress>,
    ) -> Result<Session> {
        let host = if image.registry() == HUB { HUB_HOST } else { image.registry() };
        let origin = self.http.origin(host)?;
        let credential = match (credentials, &self.config.credentials) {
            (None, _) => None,
            (Some(name), None) => {
                return Err(Error::image(format!(
                    "it wants the credentials `{name}`, and this machine has no directory of credentials"
                )));
            }
            (Some(name), Some(directory)) => {
                Some(credentials::find(directory, name, image, &progress).await?)
            }
        };
        let repository = image.repository().to_owned();
        Ok(Session {
            registry: Arc::clone(self),
            origin,
            repository,
            scope,
            credential,
            patience: PATIENCE,
            progress,
            authorization: Mutex::default(),
        })
    }
}

/// A conversation with a registry about one repository.
pub(crate) struct Session {
    registry: Arc<Registry>,
    origin: Origin,
    repository: String,
    /// What is to be done there.
    scope: Scope,
    credential: Option<Credential>,
    /// How long the registry may want to be left alone before it is asked again.
    patience: Duration,
    progress: Arc<Progress>,
    /// What the registry took last.
    authorization: Mutex<Option<Authorization>>,
}

/// What an image is made of.
pub(crate) struct Documents {
    /// The lowest first.
    pub layers: Vec<Descriptor>,
    pub configuration: Configuration,
    /// The configuration as it was written.
    pub written: Bytes,
}

/// What a registry is asked.
struct Request {
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Bytes,
}

/// A piece of a blob. A stream of them that ends without [`Piece::End`] is cut off.
pub(crate) enum Piece {
    Data(Bytes),
    End,
}

impl Session {
    /// The same for somebody who waits to hear what comes of it.
    pub fn hurried(self) -> Self {
        Self { patience: SHORT_PATIENCE, ..self }
    }

    /// What a tag or digest leads to now.
    pub async fn resolve(&self, reference: &str) -> Result<Digest> {
        let path = self.path("manifests", reference);
        let mut waits = backoff();
        loop {
            match self.ask_once(&Method::HEAD, &path, document::ACCEPT, None).await {
                Ok(head) => {
                    let said = head.headers().get("docker-content-digest");
                    match said.and_then(|value| Digest::parse(value.to_str().ok()?)) {
                        Some(digest) => return Ok(digest),
                        None => break,
                    }
                }
                // What cannot be asked in this way may be asked in the other, and then says why not.
                Err(RequestError::Final(_)) => break,
                Err(trouble) => self.again(&mut waits, trouble).await?,
            }
        }
        // Some do not say it, and some do not take HEAD.
        let bytes = self.document(&path, None).await?;
        Document::parse(&bytes)?;
        Ok(Digest::of(&bytes))
    }

    /// An image, ready to be unpacked.
    pub async fn find(&self, digest: Digest) -> Result<Found> {
        let Documents { layers, configuration, .. } = self.documents(digest).await?;
        let layers = layers.iter();
        let place = |layer: &Descriptor| Place::Registry { elsewhere: !layer.urls.is_empty() };
        let blobs = layers.map(|layer| (Some(layer.digest), layer.size, place(layer))).collect();
        Found::new(configuration, blobs)
    }

    /// The documents of an image.
    pub async fn documents(&self, digest: Digest) -> Result<Documents> {
        let mut digest = digest;
        let mut size = None;
        for _ in 0..limits::NESTING {
            let bytes =
                self.verified(&self.path("manifests", &digest.to_string()), digest, size, "manifest").await?;
            match Document::parse(&bytes)? {
                Document::Index(manifests) => {
                    let chosen = document::choose(&manifests, &Platform::here())?;
                    (digest, size) = (chosen.digest, Some(chosen.size));
                }
                Document::Manifest { config, layers } => {
                    let path = self.path("blobs", &config.digest.to_string());
                    let written =
                        self.verified(&path, config.digest, Some(config.size), "configuration").await?;
                    let configuration = Configuration::parse(&written, &config.media_type)?;
                    return Ok(Documents { layers, configuration, written });
                }
            }
        }
        Err(Error::image("its indexes lead to indexes without end"))
    }

    async fn verified(&self, path: &str, digest: Digest, size: Option<u64>, what: &str) -> Result<Bytes> {
        if size.is_some_and(|size| size > limits::DOCUMENT) {
            return Err(Error::image(format!("its {what} is larger than 4 MiB")));
        }
        let bytes =
            self.document(path, size).await.map_err(|error| error.about(format_args!("its {what}")))?;
        let is = Digest::of(&bytes);
        if is != digest {
            return Err(Error::registry(format!("{} gave {is} for its {what}, not {digest}", self.origin)));
        }
        Ok(bytes)
    }

    async fn document(&self, path: &str, size: Option<u64>) -> Result<Bytes> {
        let mut waits = backoff();
        loop {
            let answer = self.ask(Method::GET, path, document::ACCEPT, None).await?;
            let kind = answer.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
            if kind.is_some_and(|kind| kind.starts_with("text/html")) {
                return Err(Error::registry(format!(
                    "{} answers with a page for browsers: it is no registry, or something stands before it",
                    self.origin
                )));
            }
            match http::whole(answer.into_body(), size.unwrap_or(limits::DOCUMENT)).await {
                Ok(bytes) => return Ok(bytes),
                Err(trouble) => self.again(&mut waits, trouble).await?,
            }
        }
    }

    /// Sends the bytes of a blob, in order, from the start: a connection that breaks is made again and goes on where it stopped. Returns at
    /// the end, or when nobody takes them any more.
    pub async fn blob(&self, digest: Digest, size: u64, to: mpsc::Sender<Piece>) -> Result<()> {
        let path = self.path("blobs", &digest.to_string());
        let mut sent = 0;
        let mut waits = backoff();
        while sent < size {
            let before = sent;
            match self.blob_from(&path, &mut sent, size, &to).await {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(trouble) => {
                    // Whoever makes headway may go on: the time for all of it is bounded elsewhere.
                    if sent > before {
                        waits = backoff();
                    }
                    self.again(&mut waits, trouble).await?;
                }
            }
        }
        // Whoever does not take it does not want it.
        to.send(Piece::End).await.unwrap_or_default();
        Ok(())
    }

    /// Whether the receiver is still there.
    async fn blob_from(
        &self,
        path: &str,
        sent: &mut u64,
        size: u64,
        to: &mpsc::Sender<Piece>,
    ) -> std::result::Result<bool, RequestError> {
        let range = (*sent > 0).then_some(*sent);
        let answer = self
            .ask(Method::GET, path, "application/octet-stream", range)
            .await
            .map_err(RequestError::Final)?;
        // Who does not know ranges starts again.
        let mut skip = match answer.status() {
            StatusCode::PARTIAL_CONTENT if starts_at(answer.headers(), *sent) => 0,
            StatusCode::PARTIAL_CONTENT => {
                return Err(RequestError::Final(Error::registry(format!(
                    "{} gave another part of a layer than was asked for",
                    self.origin
                ))));
            }
            _ => *sent,
        };
        let mut body = answer.into_body();
        let broken = |why: &dyn std::fmt::Display| {
            RequestError::Passing(
                Error::registry(format!("{} broke off in the middle of a layer: {why}", self.origin)),
                None,
            )
        };
        loop {
            let frame = match tokio::time::timeout(SILENCE, body.frame()).await {
                Err(_) => return Err(broken(&"it fell silent")),
                Ok(None) if *sent < size => return Err(broken(&"it ended too soon")),
                Ok(None) => return Ok(true),
                Ok(Some(frame)) => frame.map_err(|error| broken(&http::why(&error)))?,
            };
            let Ok(mut data) = frame.into_data() else { continue };
            let passed = skip.min(data.len() as u64);
            bytes::Buf::advance(&mut data, passed as usize);
            skip -= passed;
            if data.is_empty() {
                continue;
            }
            *sent += data.len() as u64;
            self.progress.came(data.len());
            if *sent > size {
                let error = format!("{} gave more than the {size} bytes of a layer", self.origin);
                return Err(RequestError::Final(Error::registry(error)));
            }
            if to.send(Piece::Data(data)).await.is_err() {
                return Ok(false);
            }
        }
    }

    fn path(&self, kind: &str, reference: &str) -> String {
        format!("/v2/{}/{kind}/{reference}", self.repository)
    }

    /// Asks until there is an answer that is a success, or one that will not change.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        accept: &'static str,
        from: Option<u64>,
    ) -> Result<::http::Response<Incoming>> {
        let mut waits = backoff();
        loop {
            match self.ask_once(&method, path, accept, from).await {
                Ok(answer) => return Ok(answer),
                Err(trouble) => self.again(&mut waits, trouble).await?,
            }
        }
    }

    /// Waits until it may be tried again.
    ///
    /// # Errors
    /// It will not go away, or it has been tried often enough.
    async fn again(
        &self,
        waits: &mut (impl Iterator<Item = Duration> + Send),
        trouble: RequestError,
    ) -> Result<()> {
        let (mut error, after) = match trouble {
            RequestError::Final(error) => return Err(error),
            RequestError::Passing(error, after) => (error, after),
        };
        let wait = waits.next().filter(|_| after.is_none_or(|after| after <= self.patience));
        let Some(wait) = wait else {
            if let Some(after) = after {
                let seconds = after.as_secs_f64().ceil();
                error.message.push_str(&format!(", and wants to be left alone for {seconds} s"));
            }
            error.retry_after = after;
            return Err(error);
        };
        tracing::debug!(registry = %self.origin, %error, "a registry is asked again");
        self.progress.met(&error);
        tokio::time::sleep(wait.max(after.unwrap_or_default())).await;
        Ok(())
    }

    async fn ask_once(
        &self,
        method: &Method,
        path: &str,
        accept: &'static str,
        from: Option<u64>,
    ) -> std::result::Result<::http::Response<Incoming>, RequestError> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(accept));
        if let Some(from) = from
            && let Ok(range) = HeaderValue::from_str(&format!("bytes={from}-"))
        {
            headers.insert(RANGE, range);
        }
        let request = Request { method: method.clone(), path: path.to_owned(), headers, body: Bytes::new() };
        Ok(self.request(self.origin.clone(), request).await?.1)
    }

    /// One request, to wherever it leads: who answered, and what. A registry that asks who we are is told so once.
    async fn request(
        &self,
        mut at: Origin,
        mut request: Request,
    ) -> std::result::Result<(Origin, ::http::Response<Incoming>), RequestError> {
        let mut challenged = false;
        for _ in 0..=HOPS {
            let mut headers = request.headers.clone();
            // To the registry and to nobody else.
            if at == self.origin
                && let Some(authorization) = self.authorization()
            {
                headers.insert(AUTHORIZATION, authorization.header());
            }
            let http = &self.registry.http;
            let sent = http.send(&at, request.method.clone(), &request.path, headers, request.body.clone());
            // Behind a pointer, as what holds it is awaited within as much again several times over.
            let answer = self.progress.awaiting(&at, Box::pin(sent)).await?;
            match answer.status() {
                status if status.is_success() => return Ok((at, answer)),
                StatusCode::UNAUTHORIZED if at == self.origin && !challenged => {
                    challenged = true;
                    let (asked, credential) = (answer.headers(), self.credential.as_ref());
                    let authorization =
                        auth::answer(http, &self.origin, asked, &self.scope, credential, &self.progress)
                            .await?;
                    *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(authorization);
                }
                status if status.is_redirection() => {
                    (at, request.path) = http.follow(&at, answer.headers().get(LOCATION))?;
                }
                _ => return Err(self.refused(&at, answer).await),
            }
        }
        Err(RequestError::Final(Error::registry(format!("{} leads in a circle", self.origin))))
    }

    fn authorization(&self) -> Option<Authorization> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn refused(&self, at: &Origin, answer: ::http::Response<Incoming>) -> RequestError {
        let (status, after) = (answer.status(), after(&answer));
        // One that repeats what it was told is not repeated; nor are others, whose addresses may have secrets in them.
        let told = |text: &str| {
            self.credential.as_ref().is_some_and(|credential| credential.is_in(text))
                || self.authorization().is_some_and(|authorization| authorization.is_in(text))
        };
        let said = match *at == self.origin {
            true => words::of(answer.into_body(), told).await,
            false => None,
        };
        let said = said.map(|said| format!(": it says {said}")).unwrap_or_default();
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                RequestError::Final(Error::denied(match &self.credential {
                    Some(credential) => {
                        format!(
                            "{at} does not take the credentials `{}` for it ({status}){said}",
                            credential.name
                        )
                    }
                    None => format!(
                        "{at} does not show it to everybody, if it is there: name `credentials` ({status}){said}"
                    ),
                }))
            }
            StatusCode::NOT_FOUND => {
                RequestError::Final(Error::missing(format!("{at} does not have it{said}")))
            }
            StatusCode::PAYLOAD_TOO_LARGE => RequestError::Final(Error::registry(format!(
                "{at}, or what stands before it, takes no request of that size ({status}){said}"
            ))),
            // What was begun is not known there any more, or is further than we are.
            StatusCode::RANGE_NOT_SATISFIABLE => RequestError::Passing(
                Error::registry(format!("{at} goes on at another place than we do ({status})")),
                None,
            ),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => RequestError::Passing(
                Error::registry(format!("{at} takes no more requests now ({status}){said}")),
                after,
            ),
            status if status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED => {
                RequestError::Passing(Error::registry(format!("{at} cannot answer ({status}){said}")), after)
            }
            status => RequestError::Final(Error::registry(format!(
                "{at} gave an answer that means nothing here ({status}){said}"
            ))),
        }
    }
}

fn backoff() -> impl Iterator<Item = Duration> + Send {
    // Runners that were refused together do not come back together.
    let seed = stoker_core::Incarnation::new().0;
    Backoff::new(Duration::from_millis(200), Duration::from_secs(5), seed).take(TRIES - 1)
}

fn after(answer: &::http::Response<Incoming>) -> Option<Duration> {
    let seconds: u64 = answer.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// `bytes 100-199/200`.
fn starts_at(headers: &HeaderMap, offset: u64) -> bool {
    let start = headers
        .get(CONTENT_RANGE)
        .and_then(|value| value.to_str().ok()?.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok());
    start == Some(offset)
}
