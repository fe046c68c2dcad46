//! A page for people, and the events that keep it fresh.
//!
//! It only shows. The page is one file whose script and style are named by
//! their hashes in its policy, so that nothing else runs in it, whatever a name or a text may contain; it is loaded by nobody else's page and
//! asks nobody but this server. A port on loopback is for those on this machine: a page from elsewhere that makes its own name lead here is
//! refused by that name.

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use futures_util::Stream;
use http::{HeaderMap, HeaderValue, header};
use http_body_util::StreamBody;
use hyper::body::Frame;
use ring::digest::{SHA256, digest};
use tokio::sync::Semaphore;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// Those who may watch at once; each holds one of the port's connections.
const VIEWERS: usize = 16;

/// The body of the events.
pub type Events = StreamBody<Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, Infallible>> + Send>>>;

/// See the module.
pub struct Live {
    page: &'static str,
    policy: HeaderValue,
    beat: Duration,
    now: Box<dyn Fn() -> Bytes + Send + Sync>,
    places: Arc<Semaphore>,
}

impl Live {
    /// This page, which gets what `now` gives, one line of JSON, at every beat.
    #[must_use]
    pub fn new(page: &'static str, beat: Duration, now: impl Fn() -> Bytes + Send + Sync + 'static) -> Self {
        let policy = format!(
            "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
             frame-ancestors 'none'",
            hashes(page, "script"),
            hashes(page, "style"),
        );
        Self {
            page,
            // Base64 and the letters above.
            policy: HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("default-src 'none'")),
            beat,
            now: Box::new(now),
            places: Arc::new(Semaphore::new(VIEWERS)),
        }
    }

    /// The page itself.
    pub fn page(&self) -> Bytes {
        Bytes::from_static(self.page.as_bytes())
    }

    /// What it shows now.
    pub fn now(&self) -> Bytes {
        (self.now)()
    }

    /// What it shows, from now on until `stop`; `None` if too many watch already.
    pub fn events(self: &Arc<Self>, stop: CancellationToken) -> Option<Events> {
        let place = self.places.clone().try_acquire_owned().ok()?;
        let mut beat = tokio::time::interval(self.beat);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let state = (self.clone(), beat, stop, place);
        let events = futures_util::stream::unfold(state, |(live, mut beat, stop, place)| async move {
            tokio::select! {
                () = stop.cancelled() => return None,
                _ = beat.tick() => {}
            }
            let event = [b"data: ", &*live.now(), b"\n\n"].concat();
            Some((Ok(Frame::data(event.into())), (live, beat, stop, place)))
        });
        Some(StreamBody::new(Box::pin(events)))
    }

    /// What keeps the page to itself.
    pub fn guard(&self, headers: &mut HeaderMap) {
        headers.insert(header::CONTENT_SECURITY_POLICY, self.policy.clone());
        for (name, value) in [
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
            (header::CACHE_CONTROL, "no-store"),
            (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
            (header::HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
    }
}

/// The hashes of all elements of this name that have text, as a policy has them.
fn hashes(page: &str, element: &str) -> String {
    let (open, close) = (format!("<{element}>"), format!("</{element}>"));
    let texts = page.split(open.as_str()).skip(1).filter_map(|rest| rest.split_once(close.as_str()));
    let hash =
        |text: &str| base64::engine::general_purpose::STANDARD.encode(digest(&SHA256, text.as_bytes()));
    let all: Vec<_> = texts.map(|(text, _)| format!("'sha256-{}'", hash(text))).collect();
    if all.is_empty() { "'none'".to_owned() } else { all.join(" ") }
}

/// Whether a request names this machine as those on it do: by an address, or as localhost.
pub fn is_named_from_here(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST) else { return true };
    let Ok(authority) = host.to_str().unwrap_or_default().parse::<http::uri::Authority>() else {
        return false;
    };
    let name = authority.host().trim_matches(['[', ']']).to_ascii_lowercase();
    name.parse::<IpAddr>().is_ok() || name == "localhost" || name.ends_with(".localhost")
}
