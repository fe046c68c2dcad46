//! The way to etcd: connections, deadlines, and what an error means.
//!
//! A connection goes to one member. Whoever is in trouble on it drops it and takes the next member, so that one that is gone, cut off or
//! silent is left behind; nothing depends on how a shared connection heals. Every request has a deadline:
//! etcd that is frozen answers nothing at all, not even an error.

use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use etcd_client::{Client, ConnectOptions, KvClient, WatchClient};
use stoker_core::backoff::Backoff;

use super::figures::{Figures, Part};
use super::tls::Tls;
use super::{Config, Error};

/// Most bytes of one answer. etcd keeps values under 1.5 MiB and sends those of a page, or of the events that piled up, together.
const MAX_ANSWER: usize = 256 << 20;

/// A connection on which nothing arrived for this long is asked for a sign of life. etcd closes connections that are asked more
/// often than every five seconds.
const KEEP_ALIVE: Duration = Duration::from_secs(6);

/// How long etcd may take to compare a password. That is costly on purpose, a fifth of a second of a core by default, and etcd goes on with it for who has
/// gone: after a restart of etcd everybody asks at once, and if each gave up and asked again before its turn had come, none would ever be let in. A member
/// that is frozen meanwhile is noticed by [`KEEP_ALIVE`].
const PASSWORD: Duration = Duration::from_secs(60);

/// Waits between attempts.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// See the module.
pub struct Link {
    endpoints: Vec<String>,
    options: ConnectOptions,
    tls: Option<Tls>,
    /// A connection begins with a password.
    asks_password: bool,
    deadline: Duration,
    /// The member that answered last.
    good: AtomicUsize,
    /// How things stand.
    pub figures: Arc<Figures>,
}

/// What went wrong with one request or stream.
#[derive(Debug)]
pub enum Trouble {
    /// No answer within the deadline.
    Silent(Duration),
    /// A stream ended; says which.
    Ended(String),
    /// The lease that was named does not exist.
    LeaseGone,
    /// A certificate or key cannot be used; says why.
    Tls(String),
    /// etcd or the way to it.
    Etcd(etcd_client::Error),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Silent(deadline) => write!(f, "no answer within {deadline:?}"),
            Trouble::Ended(what) => f.write_str(what),
            Trouble::LeaseGone => f.write_str("the lease is gone"),
            Trouble::Tls(why) => f.write_str(why),
            Trouble::Etcd(etcd_client::Error::GRpcStatus(status)) => {
                write!(f, "{} ({:?})", status.message(), status.code())
            }
            Trouble::Etcd(error) => error.fmt(f),
        }
    }
}

impl From<etcd_client::Error> for Trouble {
    fn from(error: etcd_client::Error) -> Self {
        let gone = match &error {
            etcd_client::Error::LeaseKeepAliveError(text) => text.contains("lease not found"),
            etcd_client::Error::GRpcStatus(status) => {
                status.code() == tonic::Code::NotFound && status.message().contains("lease not found")
            }
            _ => false,
        };
        if gone { Trouble::LeaseGone } else { Trouble::Etcd(error) }
    }
}

impl Trouble {
    fn code(&self) -> Option<tonic::Code> {
        match self {
            Trouble::Etcd(etcd_client::Error::GRpcStatus(status)) => Some(status.code()),
            _ => None,
        }
    }

    /// Another member, or the same one later, may do it.
    pub fn is_away(&self) -> bool {
        use tonic::Code;
        match self {
            Trouble::Silent(_) | Trouble::Ended(_) => true,
            Trouble::LeaseGone | Trouble::Tls(_) => false,
            Trouble::Etcd(_) => match self.code() {
                Some(code) => matches!(
                    code,
                    Code::Unavailable
                        | Code::DeadlineExceeded
                        | Code::Cancelled
                        | Code::Unknown
                        | Code::Internal
                        | Code::Aborted
                ),
                None => matches!(
                    self,
                    Trouble::Etcd(etcd_client::Error::TransportError(_) | etcd_client::Error::IoError(_))
                ),
            },
        }
    }

    /// More at once than etcd takes: bytes of a request, or operations of a transaction.
    fn is_too_large(&self) -> bool {
        let Trouble::Etcd(etcd_client::Error::GRpcStatus(status)) = self else { return false };
        match status.code() {
            tonic::Code::InvalidArgument => {
                ["too large", "too many operations"].iter().any(|text| status.message().contains(text))
            }
            tonic::Code::ResourceExhausted => status.message().contains("larger than max"),
            _ => false,
        }
    }
}

impl Link {
    /// The way that `config` describes. Nothing is connected yet.
    pub fn new(config: &Config) -> Self {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(config.deadline)
            .with_keep_alive(KEEP_ALIVE, config.deadline)
            .with_keep_alive_while_idle(false)
            // A member that lost its quorum would keep a watch silently open.
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if let Some(user) = &config.user {
            options = options.with_user(&user.name, &user.password);
        }
        // Processes that start together begin with different members.
        let first = (random() % 1024) as usize;
        Self {
            endpoints: config.endpoints.clone(),
            options,
            tls: config.tls.clone(),
            asks_password: config.user.is_some(),
            deadline: config.deadline,
            good: AtomicUsize::new(first),
            figures: Arc::default(),
        }
    }

    /// The member to begin with.
    pub fn good(&self) -> usize {
        self.good.load(Ordering::Relaxed)
    }

    /// A new connection to a member; they are counted in a circle.
    pub async fn connect(&self, member: usize) -> Result<Client, Trouble> {
        let endpoint = &self.endpoints[member % self.endpoints.len()];
        let options = match &self.tls {
            None => self.options.clone(),
            Some(tls) => tls.clone().add_to(self.options.clone()).await?,
        };
        // Without a password nobody is asked anything yet.
        let limit = if self.asks_password { PASSWORD } else { self.deadline };
        limited(limit, Client::connect([endpoint], Some(options))).await
    }

    /// The answer to a request, if it comes in time.
    pub async fn within<T>(
        &self,
        request: impl Future<Output = Result<T, etcd_client::Error>>,
    ) -> Result<T, Trouble> {
        let answer = limited(self.deadline, request).await?;
        self.figures.answered();
        Ok(answer)
    }

    /// Does something that a person waits for: tries every member, and again for as long as an election or a restart may take.
    pub async fn ask<T, F: Future<Output = Result<T, Trouble>>>(
        &self,
        attempt: &str,
        ask: impl Fn(Client) -> F,
    ) -> Result<T, Error> {
        let (begun, first, mut waits) = (Instant::now(), self.good(), waits());
        let mut tried = 0;
        loop {
            let member = first.wrapping_add(tried);
            let answer = match self.connect(member).await {
                Ok(client) => ask(client).await,
                Err(trouble) => Err(trouble),
            };
            tried += 1;
            let more = tried < self.endpoints.len() || begun.elapsed() < self.patience();
            match answer {
                Err(trouble) if trouble.is_away() && more => {
                    tokio::time::sleep(waits.next().unwrap_or(LONGEST_WAIT)).await;
                }
                Err(trouble) => return Err(self.error(attempt, &trouble)),
                Ok(answer) => {
                    self.good.store(member, Ordering::Relaxed);
                    return Ok(answer);
                }
            }
        }
    }

    /// How long a person waits for an etcd that does not answer.
    pub fn patience(&self) -> Duration {
        self.deadline * 2
    }

    /// Trouble, for whoever asked.
    pub fn error(&self, attempt: &str, trouble: &Trouble) -> Error {
        let attempt = format!("{attempt} in etcd at {}", self.endpoints.join(", "));
        let reason = trouble.to_string();
        if trouble.is_away() {
            Error::Unavailable { attempt, reason }
        } else if trouble.is_too_large() {
            Error::TooLarge { attempt, reason }
        } else {
            Error::Store { attempt, cause: std::io::Error::other(reason) }
        }
    }
}

async fn limited<T>(
    limit: Duration,
    request: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, Trouble> {
    match tokio::time::timeout(limit, request).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Trouble::Silent(limit)),
    }
}

/// For keys and values.
pub fn kv(client: &Client) -> KvClient {
    client.kv_client().max_decoding_message_size(MAX_ANSWER)
}

/// For watches.
pub fn watches(client: &Client) -> WatchClient {
    client.watch_client().max_decoding_message_size(MAX_ANSWER)
}

/// The waits of one who tries again and again.
pub fn waits() -> Backoff {
    Backoff::new(FIRST_WAIT, LONGEST_WAIT, random())
}

fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Says that etcd is away once, and once that it is back.
pub struct Outage {
    figures: Arc<Figures>,
    part: Part,
    /// Whom it is about: as the setting has it.
    endpoints: String,
    what: String,
    since: Option<Instant>,
}

impl Outage {
    /// Of a part of what goes on by this way.
    pub fn new(link: &Link, part: Part, what: impl Into<String>) -> Self {
        let (figures, endpoints) = (link.figures.clone(), link.endpoints.join(", "));
        Self { figures, part, endpoints, what: what.into(), since: None }
    }

    pub fn goes_on(&mut self, trouble: &dyn fmt::Display) {
        self.figures.interrupted(self.part, true);
        match self.since {
            Some(_) => tracing::debug!(%trouble, "{} is still interrupted", self.what),
            None => {
                self.since = Some(Instant::now());
                tracing::warn!(
                    %trouble,
                    etcd = self.endpoints,
                    "{} is interrupted; it goes on when etcd answers",
                    self.what
                );
            }
        }
    }

    /// etcd told something, being at this revision.
    pub fn heard(&self, revision: i64) {
        self.figures.answered();
        self.figures.reached(self.part, revision);
    }

    pub fn is_over(&mut self) {
        self.figures.interrupted(self.part, false);
        if let Some(since) = self.since.take() {
            tracing::info!(after = ?since.elapsed(), "{} goes on", self.what);
        }
    }
}
