//! What a registry wants to hear: a password with each request, or a token that its token server gives.

use ::http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use ::http::{Method, StatusCode};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use stoker_core::text::escape;

use super::Progress;
use super::credentials::{Credential, Secret};
use super::http::{self, Http, Origin, RequestError};
use crate::error::Error;

/// Bytes of a token server's answer.
const ANSWER: u64 = 256 << 10;

/// The value of a header, which is never shown.
#[derive(Clone)]
pub(super) struct Authorization(HeaderValue);

impl Authorization {
    pub fn header(&self) -> HeaderValue {
        self.0.clone()
    }

    /// Whether somebody who reads this text has what opens the registry.
    pub fn is_in(&self, text: &str) -> bool {
        let value = self.0.to_str().unwrap_or_default();
        value.split_once(' ').is_some_and(|(_, secret)| !secret.is_empty() && text.contains(secret))
    }

    fn new(text: &str) -> Result<Self, RequestError> {
        let mut value = HeaderValue::from_str(text).map_err(|_| {
            RequestError::Final(Error::registry("a token or password has characters that cannot be sent"))
        })?;
        value.set_sensitive(true);
        Ok(Self(value))
    }

    fn basic(user: &str, password: &str) -> Result<Self, RequestError> {
        Self::new(&format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}"))))
    }

    fn bearer(token: &str) -> Result<Self, RequestError> {
        Self::new(&format!("Bearer {token}"))
    }
}

/// What somebody wants to do, in the words of token servers.
pub(super) struct Scope {
    text: String,
    /// More than a registry may have in mind: it is asked for whatever the registry says.
    insists: bool,
}

impl Scope {
    pub fn reading(repository: &str) -> Self {
        Self { text: format!("repository:{repository}:pull"), insists: false }
    }

    /// To put something there, and to take blobs from another repository.
    pub fn writing(repository: &str, from: Option<&str>) -> Self {
        let mut text = format!("repository:{repository}:pull,push");
        if let Some(from) = from.filter(|from| *from != repository) {
            text.push_str(&format!(" repository:{from}:pull"));
        }
        Self { text, insists: true }
    }
}

/// What to say to a registry that asked who we are.
pub(super) async fn answer(
    http: &Http,
    origin: &Origin,
    asked: &HeaderMap,
    scope: &Scope,
    credential: Option<&Credential>,
    progress: &Progress,
) -> Result<Authorization, RequestError> {
    let challenges: Vec<Challenge> = asked
        .get_all(WWW_AUTHENTICATE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(challenges)
        .collect();
    let named = |scheme: &str| challenges.iter().find(|c| c.scheme.eq_ignore_ascii_case(scheme));
    if let Some(Credential { secret: Secret::Token(token), .. }) = credential {
        return Authorization::bearer(token);
    }
    if let Some(bearer) = named("bearer") {
        return token(http, origin, bearer, scope, credential, progress).await;
    }
    match (named("basic"), credential) {
        (Some(_), Some(Credential { secret: Secret::Password { user, password }, .. })) => {
            Authorization::basic(user, password)
        }
        (Some(_), Some(credential)) => Err(RequestError::Final(Error::image(format!(
            "{origin} wants a user and a password, and the credentials `{}` are a token",
            credential.name
        )))),
        (Some(_), None) => Err(RequestError::Final(Error::denied(format!(
            "{origin} wants a user and a password: name `credentials`"
        )))),
        (None, _) => {
            let asked: Vec<_> = challenges.iter().map(|challenge| &*challenge.scheme).collect();
            Err(RequestError::Final(Error::registry(format!(
                "{origin} wants to know who we are, and neither by Basic nor by Bearer, which are known here (it names: {})",
                if asked.is_empty() { "nothing".to_owned() } else { asked.join(", ") }
            ))))
        }
    }
}

async fn token(
    http: &Http,
    origin: &Origin,
    challenge: &Challenge,
    scope: &Scope,
    credential: Option<&Credential>,
    progress: &Progress,
) -> Result<Authorization, RequestError> {
    let nowhere =
        || RequestError::Final(Error::registry(format!("{origin} names no token server that can be asked")));
    let realm = challenge.parameter("realm").ok_or_else(nowhere)?;
    // By the rules of redirections: a password does not leave TLS.
    let realm = HeaderValue::from_str(realm).map_err(|_| nowhere())?;
    let (server, path) = http.follow(origin, Some(&realm))?;
    let named = challenge.parameter("scope").filter(|_| !scope.insists);
    let mut form = vec![("scope", named.unwrap_or(&scope.text))];
    if let Some(service) = challenge.parameter("service") {
        form.push(("service", service));
    }
    let mut headers = HeaderMap::new();
    let (method, path, body) = match credential.map(|c| &c.secret) {
        Some(Secret::Identity(identity)) => {
            form.extend([
                ("grant_type", "refresh_token"),
                ("client_id", "stoker"),
                ("refresh_token", identity),
            ]);
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
            (Method::POST, path, query(&form))
        }
        secret => {
            if let Some(Secret::Password { user, password }) = secret {
                headers.insert(AUTHORIZATION, Authorization::basic(user, password)?.header());
            }
            let joint = if path.contains('?') { '&' } else { '?' };
            (Method::GET, format!("{path}{joint}{}", query(&form)), String::new())
        }
    };
    let sent = http.send(&server, method, &path, headers, Bytes::from(body));
    let answer = progress.awaiting(&server, sent).await?;
    let status = answer.status();
    match status {
        StatusCode::OK => {}
        StatusCode::UNAUTHORIZED
        | StatusCode::FORBIDDEN
        | StatusCode::BAD_REQUEST
        | StatusCode::NOT_FOUND => {
            return Err(RequestError::Final(Error::denied(match credential {
                Some(credential) => {
                    format!("{server} does not take the credentials `{}` ({status})", credential.name)
                }
                None => format!("{server} gives no token to those without credentials ({status})"),
            })));
        }
        status => {
            let error =
                Error::registry(format!("{server}, which gives tokens for {origin}, cannot ({status})"));
            return Err(RequestError::Passing(error, super::after(&answer)));
        }
    }
    #[derive(Deserialize)]
    struct Given {
        token: Option<String>,
        access_token: Option<String>,
    }
    let bytes = http::whole(answer.into_body(), ANSWER).await?;
    let given =
        serde_json::from_slice::<Given>(&bytes).ok().and_then(|given| given.token.or(given.access_token));
    let given = given.filter(|token| !token.is_empty()).ok_or_else(|| {
        RequestError::Final(Error::registry(format!("{server}, which gives tokens for {origin}, gave none")))
    })?;
    Authorization::bearer(&given)
}

/// `a=b&c=d`, with all that is not plain written as %XX.
fn query(form: &[(&str, &str)]) -> String {
    let mut out = String::new();
    for (n, (key, value)) in form.iter().enumerate() {
        if n > 0 {
            out.push('&');
        }
        out.push_str(key);
        out.push('=');
        out.push_str(&escape(value));
    }
    out
}

/// One way to say who one is.
#[derive(Debug, PartialEq, Eq)]
struct Challenge {
    scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }
}

/// Reads `Scheme key="value", key=value, Scheme …`.
fn challenges(text: &str) -> Vec<Challenge> {
    let mut found: Vec<Challenge> = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            return found;
        }
        match after.trim_start_matches([' ', '\t']).strip_prefix('=') {
            None => {
                found.push(Challenge { scheme: word.to_owned(), parameters: Vec::new() });
                rest = after;
            }
            Some(value) => {
                let (value, after) = read_value(value.trim_start_matches([' ', '\t']));
                if let Some(challenge) = found.last_mut() {
                    challenge.parameters.push((word.to_owned(), value));
                }
                rest = after;
            }
        }
    }
}

/// A word, or a text in quotes with `\` before what stands for itself; and what follows it.
fn read_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, char)| char)),
            char => value.push(char),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn challenges_are_read_as_servers_write_them() {
        let hub = r#"Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull,push""#;
        let read = challenges(hub);
        assert_eq!(read.len(), 1);
        assert_eq!(read[0].parameter("Realm"), Some("https://auth.example/token"));
        assert_eq!(read[0].parameter("scope"), Some("repository:a/b:pull,push"));
        let two = challenges(r#"Basic realm="a \"b\"", Bearer realm=x, error="y""#);
        assert_eq!(two.len(), 2);
        assert_eq!(two[0].parameter("realm"), Some("a \"b\""));
        assert_eq!((two[1].parameter("realm"), two[1].parameter("error")), (Some("x"), Some("y")));
        assert_eq!(challenges("Negotiate")[0].scheme, "Negotiate");
        assert_eq!(challenges(", ,"), []);
        assert_eq!(challenges(r#"Bearer realm="open"#)[0].parameter("realm"), Some("open"));
    }

    #[test]
    fn queries_are_escaped() {
        assert_eq!(
            query(&[("scope", "repository:a/b:pull"), ("s", "ä &")]),
            "scope=repository%3Aa%2Fb%3Apull&s=%C3%A4%20%26"
        );
    }

    proptest! {
        #[test]
        fn noise_is_read_to_its_end(text in "\\PC{0,60}") {
            challenges(&text);
        }
    }
}
