//! Secrets by reference: what a function's environment names, and only a runner has.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The name of a secret of a function's app: `NAME`, or `NAME/KEY` for one value of several.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SecretName(String);

/// Bytes of each part of a name.
const LONGEST: usize = 253;

impl SecretName {
    /// Reads a name. Its parts are names of files that nothing leads out of the directory with.
    ///
    /// # Errors
    /// A sentence with what would be right. It does not repeat the text: somebody may have written the secret itself.
    pub fn parse(text: &str) -> Result<Self, String> {
        let good = |part: &str| {
            (1..=LONGEST).contains(&part.len())
                && !part.starts_with('.')
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        };
        let mut parts = text.split('/');
        match (parts.next(), parts.next(), parts.next()) {
            (Some(name), key, None) if good(name) && key.is_none_or(good) => Ok(Self(text.to_owned())),
            _ => Err("a secret is named NAME or NAME/KEY, each of a-z, A-Z, 0-9, -, _ and ., not beginning with a dot".to_owned()),
        }
    }

    /// As it is written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for SecretName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
    }
}

impl From<SecretName> for String {
    fn from(name: SecretName) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_nowhere_else() {
        for good in ["db", "db/password", "tls.crt", "A_b-1.x/y"] {
            assert_eq!(SecretName::parse(good).map(|name| name.to_string()).as_deref(), Ok(good));
        }
        let long = "x".repeat(254);
        for wrong in [
            "", "/", "db/", "/db", "a/b/c", "..", "../x", "db/..", ".hidden", "db/.x", "a b", "a\0", "é",
            &long,
        ] {
            let why = SecretName::parse(wrong).unwrap_err();
            assert!(wrong.len() < 4 || !why.contains(wrong), "{why}");
        }
        assert!(serde_json::from_str::<SecretName>("\"../x\"").is_err(), "nor out of the registry");
    }
}
