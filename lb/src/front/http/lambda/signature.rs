//! AWS's Signature Version 4, checked where somebody must be let in.
//!
//! A request is signed by an access key that the access file has. What does not need the body is checked before the body is read: whoever
//! has no key costs no memory. A body that is signed as a stream of chunks is refused: no call of this API needs it.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::NaiveDateTime;
use http::header::{AUTHORIZATION, HeaderMap};
use http::request::Parts;
use ring::{digest, hmac};
use stoker_core::error::{Code, Error};
use stoker_core::text::{escape, hex};

use super::Refused;

/// The scheme in `Authorization`.
const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// How far a client's clock may be off.
const SKEW: Duration = Duration::from_secs(5 * 60);

/// What a signature may cover at most; more headers than a request may have.
const MOST_HEADERS: usize = 256;

/// What is said besides to whom nobody knows: signed URLs are among them.
pub const ASKED: &str =
    "; or sign the request with an access key, in its header `authorization` and not in its URL";

/// Whether a request shows a signature of this kind.
pub fn is_there(headers: &HeaderMap) -> bool {
    headers.get(AUTHORIZATION).is_some_and(|value| value.as_bytes().starts_with(ALGORITHM.as_bytes()))
}

/// What a request says about its signature, and all that was signed but the body.
#[derive(Debug)]
pub struct Claim {
    pub key: String,
    scope: String,
    time: String,
    signature: Vec<u8>,
    /// The canonical request up to the hash of the body.
    head: String,
    /// The hash as the request names it, where it does.
    hash: Option<String>,
}

impl Claim {
    /// Reads the head of a request at `now`.
    ///
    /// # Errors
    /// It is not signed, or cannot have been signed rightly.
    pub fn read(parts: &Parts, now: SystemTime) -> Result<Self, Refused> {
        let header = one(&parts.headers, AUTHORIZATION.as_str())?;
        let fields = header.strip_prefix(ALGORITHM).ok_or_else(missing)?;
        let field = |name: &str| {
            let mut fields = fields.split(',').filter_map(|field| field.trim().split_once('='));
            let found = fields.find_map(|(key, value)| (key == name).then_some(value));
            found.ok_or_else(|| incomplete(&format!("'{name}' parameter")))
        };
        let (credential, signed, signature) =
            (field("Credential")?, field("SignedHeaders")?, field("Signature")?);
        let (key, scope) =
            credential.split_once('/').ok_or_else(|| incomplete("a scope in its 'Credential' parameter"))?;
        let signature = unhex(signature).ok_or_else(|| incomplete("a 'Signature' in hexadecimal"))?;
        let time = one(&parts.headers, "x-amz-date")?;
        let signed_at = seconds(&time).ok_or_else(|| incomplete("a 'X-Amz-Date' like 20260102T030405Z"))?;
        let parts_of_scope: Vec<&str> = scope.split('/').collect();
        match parts_of_scope[..] {
            [date, _, "lambda", "aws4_request"] if time.starts_with(date) && date.len() == 8 => {}
            _ => {
                let text = format!(
                    "Credential should be scoped to a valid date and to service 'lambda', not {scope:?}"
                );
                return Err(named(403, "InvalidSignatureException", text));
            }
        }
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let off = now.abs_diff(Duration::from_secs(signed_at));
        if off > SKEW {
            let text = format!(
                "Signature expired or not yet current: {time} is {} s off, 300 s are allowed",
                off.as_secs()
            );
            return Err(named(403, "InvalidSignatureException", text));
        }
        let hash = match one(&parts.headers, "x-amz-content-sha256") {
            Ok(hash) if hash.starts_with("STREAMING-") => {
                let text = "a body that is signed in chunks (STREAMING-…) is not taken: sign it as a whole, or as UNSIGNED-PAYLOAD";
                return Err(named(400, "InvalidSignatureException", text.to_owned()));
            }
            Ok(hash) => Some(hash),
            Err(_) => None,
        };
        Ok(Self {
            key: key.to_owned(),
            scope: scope.to_owned(),
            head: canonical(parts, signed)?,
            time,
            signature,
            hash,
        })
    }

    /// Whether the owner of `secret` signed this, with this body.
    ///
    /// # Errors
    /// Somebody else did, or something else was signed.
    pub fn verify(&self, secret: &str, body: &[u8]) -> Result<(), Refused> {
        let actual = hex(digest::digest(&digest::SHA256, body).as_ref());
        let hash = match &self.hash {
            Some(hash) if hash == "UNSIGNED-PAYLOAD" => hash,
            Some(hash) if *hash != actual => {
                let text = "The body is another than the X-Amz-Content-Sha256 of its request says.";
                return Err(named(400, "InvalidSignatureException", text.to_owned()));
            }
            _ => &actual,
        };
        let request = format!("{}{hash}", self.head);
        let request = hex(digest::digest(&digest::SHA256, request.as_bytes()).as_ref());
        let text = format!("{ALGORITHM}\n{}\n{}\n{request}", self.time, self.scope);
        let key = self.scope.split('/').fold(format!("AWS4{secret}").into_bytes(), |key, part| {
            let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
            hmac::sign(&key, part.as_bytes()).as_ref().to_vec()
        });
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
        // In a time that says nothing about how much of it was right.
        hmac::verify(&key, text.as_bytes(), &self.signature).map_err(|_| wrong())
    }
}

/// What is said to whoever shows a key that nobody has.
pub fn unknown() -> Refused {
    named(
        403,
        "UnrecognizedClientException",
        "The security token included in the request is invalid.".to_owned(),
    )
}

/// What is said to whoever shows no signature of this kind.
pub fn missing() -> Refused {
    incomplete(&format!("`{ALGORITHM}`"))
}

fn incomplete(what: &str) -> Refused {
    named(403, "IncompleteSignatureException", format!("Authorization header requires {what}."))
}

fn wrong() -> Refused {
    let text = "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method. Consult the service documentation for details.";
    named(403, "InvalidSignatureException", text.to_owned())
}

fn named(status: u16, name: &'static str, text: String) -> Refused {
    Refused::aws(status, name, Error::new(Code::Unauthenticated, text))
}

/// The one header of this name.
fn one(headers: &HeaderMap, name: &str) -> Result<String, Refused> {
    let mut all = headers.get_all(name).iter();
    match (all.next().and_then(|value| value.to_str().ok()), all.next()) {
        (Some(value), None) => Ok(value.trim().to_owned()),
        _ => Err(incomplete(&format!("one '{name}' header"))),
    }
}

/// Everything that is signed but the body's hash, in the one form that both sides make of it.
fn canonical(parts: &Parts, signed: &str) -> Result<String, Refused> {
    let names: Vec<&str> = signed.split(';').collect();
    let sorted = names.windows(2).all(|pair| pair[0] < pair[1]);
    if !sorted || names.len() > MOST_HEADERS || !names.contains(&"host") {
        let text = "SignedHeaders must be sorted, each once, with 'host' among them.".to_owned();
        return Err(named(403, "InvalidSignatureException", text));
    }
    // What decides about the meaning of a request must be signed with it.
    if let Some(missing) = parts
        .headers
        .keys()
        .map(http::HeaderName::as_str)
        .find(|name| name.starts_with("x-amz-") && !names.contains(name))
    {
        let text = format!("The header '{missing}' is not among the signed ones.");
        return Err(named(403, "InvalidSignatureException", text));
    }
    let mut headers = String::new();
    for name in &names {
        let values: Vec<String> = match *name {
            // HTTP/2 has it elsewhere.
            "host" if !parts.headers.contains_key("host") => {
                parts.uri.authority().map(|authority| authority.to_string()).into_iter().collect()
            }
            name => {
                let values = parts.headers.get_all(name).iter();
                values.map(|value| squeezed(&String::from_utf8_lossy(value.as_bytes()))).collect()
            }
        };
        if values.is_empty() {
            return Err(named(
                403,
                "InvalidSignatureException",
                format!("The signed header '{name}' is not there."),
            ));
        }
        headers += &format!("{name}:{}\n", values.join(","));
    }
    // Escaped as it stands on the wire, so that its escapes are escaped twice.
    let path = parts.uri.path().split('/').map(escape).collect::<Vec<_>>().join("/");
    let query = query(parts.uri.query().unwrap_or_default());
    Ok(format!("{}\n{path}\n{query}\n{headers}\n{signed}\n", parts.method))
}

/// Spaces around a value are not signed, and several within count as one.
fn squeezed(value: &str) -> String {
    value.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Names and values as they came, in order; an escape is written in one way only.
fn query(query: &str) -> String {
    let mut pairs: BTreeMap<(String, String), usize> = BTreeMap::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        *pairs.entry((escape(&unescaped(key)), escape(&unescaped(value)))).or_default() += 1;
    }
    let all = pairs.into_iter().flat_map(|((key, value), times)| vec![format!("{key}={value}"); times]);
    all.collect::<Vec<_>>().join("&")
}

/// Escapes resolved, as far as they are escapes.
fn unescaped(text: &str) -> String {
    super::decoded(text).map_or_else(|_| text.to_owned(), std::borrow::Cow::into_owned)
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    (0..64).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

/// Seconds since 1970 of a text like `20260102T030405Z`.
pub fn seconds(text: &str) -> Option<u64> {
    // The parser takes shorter numbers and signs, which AWS does not.
    let shape = text.bytes().enumerate().all(|(at, byte)| match at {
        8 => byte == b'T',
        15 => byte == b'Z',
        _ => byte.is_ascii_digit(),
    });
    let time =
        NaiveDateTime::parse_from_str(text, "%Y%m%dT%H%M%SZ").ok().filter(|_| shape && text.len() == 16)?;
    u64::try_from(time.and_utc().timestamp()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

    /// A request as botocore writes it.
    fn request(change: impl FnOnce(http::request::Builder) -> http::request::Builder) -> Parts {
        let request =
            http::Request::post("/2015-03-31/functions/arn%3Aaws%3Alambda/invocations?b=2&a=x%20y&a=1")
                .header("host", "localhost:7080")
                .header("x-amz-date", "20260102T030405Z")
                .header("x-amz-log-type", " a   b ");
        change(request).body(()).expect("a request").into_parts().0
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    const NOW: u64 = 1_767_323_045;

    fn signed(scope: &str, headers: &str, signature: &str) -> String {
        format!("{ALGORITHM} Credential=AKID/{scope}, SignedHeaders={headers}, Signature={signature}")
    }

    const SCOPE: &str = "20260102/us-east-1/lambda/aws4_request";
    const HEADERS: &str = "host;x-amz-date;x-amz-log-type";

    fn with(authorization: String) -> Parts {
        request(|request| request.header("authorization", authorization))
    }

    fn name(refused: Refused) -> &'static str {
        refused.name().1
    }

    #[test]
    fn what_is_signed_has_one_form() {
        let parts = request(|request| request);
        let text = canonical(&parts, HEADERS).expect("it has one");
        assert_eq!(
            text,
            "POST\n/2015-03-31/functions/arn%253Aaws%253Alambda/invocations\na=1&a=x%20y&b=2\n\
             host:localhost:7080\nx-amz-date:20260102T030405Z\nx-amz-log-type:a b\n\nhost;x-amz-date;x-amz-log-type\n"
        );
        for wrong in [
            "host",
            "x-amz-date;host",
            "host;host;x-amz-date;x-amz-log-type",
            "host;x-amz-date;x-amz-log-type;x-gone",
        ] {
            assert_eq!(canonical(&parts, wrong).map_err(name), Err("InvalidSignatureException"), "{wrong}");
        }
    }

    #[test]
    fn only_the_owner_of_the_secret_signs() {
        let mut claim =
            Claim::read(&with(signed(SCOPE, HEADERS, &"0".repeat(64))), at(NOW)).expect("it is complete");
        assert_eq!(claim.key, "AKID");
        assert_eq!(claim.verify(SECRET, b"{}").map_err(name), Err("InvalidSignatureException"));
        // The same sum, made by Python's hmac and hashlib.
        let signature = "6f17971d50a3bcd630451a4eb2df47fc14716aa2037abcd367663469377d7537";
        claim.signature = unhex(signature).expect("it is one");
        claim.verify(SECRET, b"{}").map_err(name).expect("it is the owner's");
        for (secret, body) in [("other", &b"{}"[..]), (SECRET, b"[]")] {
            assert_eq!(claim.verify(secret, body).map_err(name), Err("InvalidSignatureException"));
        }
        // A hash that the request names must be the body's.
        claim.hash = Some(hex(digest::digest(&digest::SHA256, b"{}").as_ref()));
        claim.verify(SECRET, b"{}").map_err(name).expect("it is the same");
        assert!(claim.verify(SECRET, b"[]").is_err());
    }

    #[test]
    fn clocks_scopes_and_forms_are_checked() {
        let good = signed(SCOPE, HEADERS, &"0".repeat(64));
        for now in [NOW - 299, NOW + 299] {
            assert!(Claim::read(&with(good.clone()), at(now)).is_ok());
        }
        for now in [NOW - 301, NOW + 301, 0] {
            assert_eq!(
                Claim::read(&with(good.clone()), at(now)).map_err(name).err(),
                Some("InvalidSignatureException")
            );
        }
        for (authorization, expected) in [
            ("Bearer x".to_owned(), "IncompleteSignatureException"),
            (ALGORITHM.to_owned(), "IncompleteSignatureException"),
            (signed(SCOPE, HEADERS, "12"), "IncompleteSignatureException"),
            (signed(SCOPE, HEADERS, &"é".repeat(32)), "IncompleteSignatureException"),
            (
                signed("20260103/us-east-1/lambda/aws4_request", HEADERS, &"0".repeat(64)),
                "InvalidSignatureException",
            ),
            (
                signed("20260102/us-east-1/s3/aws4_request", HEADERS, &"0".repeat(64)),
                "InvalidSignatureException",
            ),
            (signed("20260102", HEADERS, &"0".repeat(64)), "InvalidSignatureException"),
        ] {
            let Ok(value) = http::HeaderValue::from_bytes(authorization.as_bytes()) else {
                panic!("a value")
            };
            let parts = request(|request| request.header("authorization", value));
            assert_eq!(Claim::read(&parts, at(NOW)).map_err(name).err(), Some(expected), "{authorization}");
        }
        let streaming = request(|request| {
            request
                .header("authorization", good.clone())
                .header("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD")
        });
        assert_eq!(Claim::read(&streaming, at(NOW)).map_err(name).err(), Some("InvalidSignatureException"));
    }

    #[test]
    fn times_are_read() {
        assert_eq!(seconds("20260102T030405Z"), Some(NOW));
        assert_eq!(seconds("19700101T000000Z"), Some(0));
        assert_eq!(seconds("20240229T235959Z"), Some(1_709_251_199));
        for wrong in [
            "",
            "20260102T030405",
            "20261302T030405Z",
            "2026-102T030405Z",
            "20260102 030405Z",
            "+0260102T030405Z",
        ] {
            assert_eq!(seconds(wrong), None, "{wrong}");
        }
    }
}
