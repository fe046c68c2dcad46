//! Tokens that somebody else gives out: JWTs, signed by keys that their issuer publishes.
//!
//! Which algorithm is used is the key's to say, never the token's alone: a key has one, and a token that names another is refused.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use serde_json::Value;
use tokio::sync::{Notify, watch};

use super::{Grants, Identity, LEEWAY, Unknown};

/// Keys of one issuer.
const KEYS: usize = 100;

/// Somebody who gives out tokens.
pub struct Issuer {
    name: String,
    audience: String,
    pub(super) source: Source,
    /// Its value is the name of whom a token is for.
    claim: String,
    conditions: Vec<Condition>,
    keys: ArcSwap<Vec<Key>>,
    /// Whoever keeps the keys is asked to read them again, and says when it has.
    pub(super) wanted: Notify,
    pub(super) read: watch::Sender<u64>,
}

/// Where an issuer's keys are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    File(PathBuf),
    Url {
        url: http::Uri,
        /// Who signed the certificate of what answers there, if not one that the system trusts.
        ca: Option<PathBuf>,
    },
}

/// What those may whose claims are like this.
#[derive(Debug)]
pub struct Condition {
    pub when: Vec<(String, String)>,
    pub grants: Grants,
}

/// A public key.
#[derive(Debug, Clone, PartialEq)]
struct Key {
    /// Empty if it has none: then it is tried for every token.
    id: String,
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq)]
enum Kind {
    Rsa { n: Vec<u8>, e: Vec<u8>, only: Option<String> },
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

/// The key by which a token was found good. A token is worth nothing once its issuer has withdrawn the key, however long it says that it is good.
#[derive(Clone)]
pub struct Signer {
    issuer: Arc<Issuer>,
    /// The set in which it was found: as long as that is in use, so is the key.
    set: Arc<Vec<Key>>,
    key: Key,
}

impl Signer {
    /// Whether its issuer publishes the key, by what was read last.
    pub fn is_published(&self) -> bool {
        let now = self.issuer.keys.load();
        Arc::ptr_eq(&now, &self.set) || now.contains(&self.key)
    }
}

impl PartialEq for Signer {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.issuer, &other.issuer) && self.key == other.key
    }
}

impl Eq for Signer {}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.issuer.fmt(f)
    }
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issuer").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Issuer {
    pub(super) fn new(
        name: String,
        audience: String,
        source: Source,
        claim: String,
        conditions: Vec<Condition>,
    ) -> Self {
        let (wanted, read) = (Notify::new(), watch::Sender::new(0));
        Self { name, audience, source, claim, conditions, keys: ArcSwap::default(), wanted, read }
    }

    /// Reads the keys, where they are in a file.
    pub(super) fn read_file(&self) -> Result<(), String> {
        let Source::File(path) = &self.source else { return Ok(()) };
        let text = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        self.take(&text).map_err(|why| format!("{}: {why}", path.display()))
    }

    /// Takes a set of keys in place of those before.
    pub(super) fn take(&self, jwks: &[u8]) -> Result<(), String> {
        let set: Value = serde_json::from_slice(jwks).map_err(|error| format!("is not JSON: {error}"))?;
        let all = set["keys"].as_array().ok_or("has no `keys`")?;
        let keys: Vec<_> = all.iter().take(KEYS).filter_map(Key::read).collect();
        if keys.is_empty() {
            return Err(
                "has no key that signs in a way that is known here (RS, PS, ES256, ES384, EdDSA)".to_owned()
            );
        }
        self.keys.store(keys.into());
        self.read.send_modify(|times| *times += 1);
        Ok(())
    }

    pub(super) fn same_keys(&self, other: &Issuer) -> bool {
        self.source == other.source && matches!(self.source, Source::Url { .. })
    }

    pub(super) fn take_over(&self, other: &Issuer) {
        self.keys.store(other.keys.load_full());
    }

    /// Asks for the keys anew and waits until they have been read, for at most `limit`.
    pub async fn refresh(&self, limit: Duration) {
        let mut read = self.read.subscribe();
        read.mark_unchanged();
        self.wanted.notify_one();
        // No news in time, or nobody who keeps them: the keys are what they are.
        tokio::time::timeout(limit, read.changed()).await.ok();
    }

    /// How it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn identity(&self, claims: &Value, now: SystemTime) -> Result<Identity, Unknown> {
        let audiences = match &claims["aud"] {
            Value::Array(all) => all.iter().any(|one| *one == self.audience),
            one => *one == self.audience,
        };
        let moment = |claim: &str| {
            let seconds = claims[claim].as_f64().filter(|seconds| (0.0..1e12).contains(seconds))?;
            Some(UNIX_EPOCH + Duration::from_secs_f64(seconds))
        };
        let end = moment("exp").ok_or(Unknown::Wrong)? + LEEWAY;
        if !audiences || (!claims["nbf"].is_null() && moment("nbf").is_none_or(|begin| begin > now + LEEWAY))
        {
            return Err(Unknown::Wrong);
        }
        if now >= end {
            return Err(Unknown::Over);
        }
        let who = claims[&self.claim]
            .as_str()
            .filter(|who| (1..=200).contains(&who.len()))
            .ok_or(Unknown::Wrong)?;
        let mut grants = Grants::default();
        for condition in &self.conditions {
            let holds = condition.when.iter().all(|(claim, value)| match &claims[claim] {
                Value::Array(all) => all.iter().any(|one| one == value),
                // A list as one text, as scopes are.
                Value::String(text) => text == value || text.split(' ').any(|word| word == value),
                Value::Bool(flag) => flag.to_string() == *value,
                _ => false,
            });
            if holds {
                grants.add(&condition.grants);
            }
        }
        let name = who.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        Ok(Identity { name, grants, expires: Some(end), signer: None })
    }
}

/// Whom a token is for.
pub fn identity(token: &[u8], issuers: &[Arc<Issuer>], now: SystemTime) -> Result<Identity, Unknown> {
    let text = std::str::from_utf8(token).map_err(|_| Unknown::Wrong)?;
    let (signed, sign) = text.rsplit_once('.').ok_or(Unknown::Wrong)?;
    let (head, body) = signed.split_once('.').ok_or(Unknown::Wrong)?;
    let json = |part: &str| -> Option<Value> { serde_json::from_slice(&BASE64.decode(part).ok()?).ok() };
    let (head, claims) = (json(head).ok_or(Unknown::Wrong)?, json(body).ok_or(Unknown::Wrong)?);
    let sign = BASE64.decode(sign).map_err(|_| Unknown::Wrong)?;
    // What must be understood and is not would change what the token means.
    if !head["crit"].is_null() {
        return Err(Unknown::Wrong);
    }
    let algorithm = head["alg"].as_str().ok_or(Unknown::Wrong)?;
    let id = head["kid"].as_str().unwrap_or_default();
    let name = claims["iss"].as_str().ok_or(Unknown::Wrong)?;
    let by = |issuer: &Arc<Issuer>| {
        let set = issuer.keys.load_full();
        let mut fitting =
            set.iter().filter(|key| id.is_empty() || key.id.is_empty() || key.id == id).peekable();
        if fitting.peek().is_none() {
            return Err(Unknown::KeyNotRead);
        }
        let key = fitting.find(|key| key.signed(algorithm, signed.as_bytes(), &sign));
        let key = key.ok_or(Unknown::Wrong)?.clone();
        let identity = issuer.identity(&claims, now)?;
        Ok(Identity { signer: Some(Signer { issuer: issuer.clone(), set: set.clone(), key }), ..identity })
    };
    // One issuer may stand there for several audiences: one of them is meant.
    let mut why = Unknown::Wrong;
    for issuer in issuers.iter().filter(|issuer| issuer.name == name) {
        match by(issuer) {
            Ok(identity) => return Ok(identity),
            Err(Unknown::Wrong) => {}
            Err(other) => why = other,
        }
    }
    Err(why)
}

impl Key {
    /// A key of a set, if it is one to check signatures with, in a way that is known here.
    fn read(value: &Value) -> Option<Self> {
        if value["use"].as_str().is_some_and(|usage| usage != "sig") {
            return None;
        }
        let part = |name: &str| BASE64.decode(value[name].as_str()?).ok();
        let point = |size: usize| {
            let (x, y) = (part("x")?, part("y")?);
            // Uncompressed, as the standards write a point.
            (x.len() == size && y.len() == size).then(|| [&[4][..], &x, &y].concat())
        };
        let kind = match (value["kty"].as_str()?, value["crv"].as_str()) {
            ("RSA", _) => {
                Kind::Rsa { n: part("n")?, e: part("e")?, only: value["alg"].as_str().map(str::to_owned) }
            }
            ("EC", Some("P-256")) => Kind::P256(point(32)?),
            ("EC", Some("P-384")) => Kind::P384(point(48)?),
            ("OKP", Some("Ed25519")) => Kind::Ed25519(part("x").filter(|x| x.len() == 32)?),
            _ => return None,
        };
        Some(Self { id: value["kid"].as_str().unwrap_or_default().to_owned(), kind })
    }

    fn signed(&self, algorithm: &str, message: &[u8], sign: &[u8]) -> bool {
        let by = |how: &'static dyn signature::VerificationAlgorithm, key: &[u8]| {
            UnparsedPublicKey::new(how, key).verify(message, sign).is_ok()
        };
        match (&self.kind, algorithm) {
            (Kind::P256(point), "ES256") => by(&signature::ECDSA_P256_SHA256_FIXED, point),
            (Kind::P384(point), "ES384") => by(&signature::ECDSA_P384_SHA384_FIXED, point),
            (Kind::Ed25519(key), "EdDSA") => by(&signature::ED25519, key),
            (Kind::Rsa { n, e, only }, _) if only.as_deref().is_none_or(|only| only == algorithm) => {
                let how = match algorithm {
                    "RS256" => &signature::RSA_PKCS1_2048_8192_SHA256,
                    "RS384" => &signature::RSA_PKCS1_2048_8192_SHA384,
                    "RS512" => &signature::RSA_PKCS1_2048_8192_SHA512,
                    "PS256" => &signature::RSA_PSS_2048_8192_SHA256,
                    "PS384" => &signature::RSA_PSS_2048_8192_SHA384,
                    "PS512" => &signature::RSA_PSS_2048_8192_SHA512,
                    _ => return false,
                };
                RsaPublicKeyComponents { n, e }.verify(how, message, sign).is_ok()
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made with OpenSSL.
    #[test]
    fn a_signature_by_rsa() {
        let n = "93vSiDO_MRopAqIWJkJv2-AQUyvnKMDUNlJAdBFsndsp4eDnzYH4ntBOG8t47IyOLtwQjf_Za9EzZqUYCZdLsns0-luPUQ_52WUxLrYw-OUouv37UHwNmPk2zj6N3WruFVFbVApTgQOr94nKgfvCwzd2bv6oDWdfXBI4HJ5_otQtwjp7ALxvd8BW31KZc5SVXAAczW2AKNC8-JLHg-s2J2u1-21p0FODy90n1wLGOYBdUqC-0g6Nj_4NyvGPBNIx2IoeP32BZfu9QQSm0S_Z10tHCYZkdOlA7QHc99sGpyQCE_qijRxMz5SmqsBXcCSEYl66TpEXo9TuSFmOr1dpRQ";
        let token = "head.claims.xqVTEBwN-cz2o5LvilGPK3AvwsXENay-u9oKhn74vjMVPXHkGrS5A33XLCsIcny0k_tmc8c4_fN63e9FdLqhQuPPlibKNUTzxukZOd6NiOdsjHneaUIslbufwHh1spwjJ-5TilGMs9rTYAytPXKgzh19sBRAUDDpWehZGAUJEQpFwfmAJLUijlesSS96lBvYEyVbR_zasj3_UgyxvnyP4018EcBrxo4xkqKu07BiXIFOM9zHdp6PCa3cwwMhLWXcSBLVTgrDBBbBaMr9FPsiKzTYLbAkqL00kUqWnWyTNFcI30cwjhfXR8l9MByTKq0Vr6pHqtD0ZuvVQygqtPkcuw";
        let (signed, sign) = token.rsplit_once('.').unwrap();
        let sign = BASE64.decode(sign).unwrap();
        let key = |only: Value| {
            Key::read(&serde_json::json!({"kty": "RSA", "n": n, "e": "AQAB", "alg": only})).unwrap()
        };
        for only in [Value::Null, "RS256".into()] {
            assert!(key(only.clone()).signed("RS256", signed.as_bytes(), &sign));
            assert!(!key(only.clone()).signed("RS512", signed.as_bytes(), &sign), "not in this way");
            assert!(!key(only).signed("RS256", &signed.as_bytes()[1..], &sign));
        }
        assert!(!key("PS256".into()).signed("RS256", signed.as_bytes(), &sign), "the key is for another way");
    }
}
