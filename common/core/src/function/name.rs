//! What a function is called: `app/function`, and the ids that Fn's doors know the two by.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::ids::is_name;

/// `app/function`; both parts are [names](is_name).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FunctionName {
    text: Arc<str>,
    slash: usize,
}

impl FunctionName {
    /// `None` unless both are names.
    pub fn new(app: &str, function: &str) -> Option<Self> {
        (is_name(app) && is_name(function))
            .then(|| Self { text: format!("{app}/{function}").into(), slash: app.len() })
    }

    /// Reads `app/function`.
    pub fn parse(text: &str) -> Option<Self> {
        let (app, function) = text.split_once('/')?;
        Self::new(app, function)
    }

    /// The app.
    #[must_use]
    pub fn app(&self) -> &str {
        &self.text[..self.slash]
    }

    /// The function within its app.
    #[must_use]
    pub fn function(&self) -> &str {
        &self.text[self.slash + 1..]
    }

    /// `app/function`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The id under which Fn's doors know it: 26 characters, the same on every machine for the same name.
    #[must_use]
    pub fn id(&self) -> String {
        opaque_id("fn", &self.text)
    }

    /// The id of its app.
    #[must_use]
    pub fn app_id(&self) -> String {
        Self::app_id_of(self.app())
    }

    /// The id of the app of this name.
    #[must_use]
    pub fn app_id_of(app: &str) -> String {
        opaque_id("app", app)
    }
}

/// 26 characters of Crockford's base 32 (130 bits of SHA-256), like the ids that Fn makes, but derived.
#[must_use]
pub fn opaque_id(kind: &str, text: &str) -> String {
    const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    let hash = Sha256::digest(format!("stoker:{kind}:{text}"));
    let mut out = String::with_capacity(26);
    let (mut bits, mut held) = (0u32, 0u32);
    for byte in hash {
        held = (held << 8) | u32::from(byte);
        bits += 8;
        while bits >= 5 && out.len() < 26 {
            bits -= 5;
            out.push(char::from(ALPHABET[((held >> bits) & 31) as usize]));
        }
    }
    out
}

impl fmt::Display for FunctionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl TryFrom<String> for FunctionName {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).ok_or_else(|| format!("`{text}` is not a function: write app/function"))
    }
}

impl From<FunctionName> for String {
    fn from(name: FunctionName) -> String {
        name.text.as_ref().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_split_and_give_stable_ids() {
        let name = FunctionName::parse("demo/hello").unwrap();
        assert_eq!((name.app(), name.function(), name.as_str()), ("demo", "hello", "demo/hello"));
        assert_eq!(name.id().len(), 26);
        assert_eq!(name.id(), FunctionName::new("demo", "hello").unwrap().id());
        assert_ne!(name.id(), FunctionName::new("demo", "hell").unwrap().id());
        for bad in ["", "demo", "/x", "x/", "a/b/c", "a b/c"] {
            assert_eq!(FunctionName::parse(bad), None, "{bad}");
        }
    }
}
