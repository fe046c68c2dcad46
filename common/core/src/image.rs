//! The name of an image in a registry, as people write it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// `registry/repository:tag@sha256:…`. Grammar and short forms are those of Docker: without a registry it is Docker Hub,
/// without a tag `latest`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageRef {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

/// Where names without a registry lead.
const HUB: &str = "docker.io";
/// Longest name of a repository and longest tag, in bytes: the distribution specification's.
const MAX_REPOSITORY: usize = 255;
const MAX_TAG: usize = 128;

impl ImageRef {
    /// Reads a reference.
    ///
    /// # Errors
    /// One sentence that says what is wrong with it and what would be right.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| Err(format!("`{text}` is not an image: {what}"));
        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((rest, digest)) => {
                let hex = digest.strip_prefix("sha256:").unwrap_or_default();
                if hex.len() != 64 || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
                    return wrong("its digest must be sha256: and 64 digits of 0-9 and a-f");
                }
                (rest, Some(digest.to_owned()))
            }
        };
        let (path, tag) = match rest.rsplit_once(':') {
            // The port of a registry.
            Some((_, after)) if after.contains('/') => (rest, None),
            Some((path, tag)) => (path, Some(tag.to_owned())),
            None => (rest, None),
        };
        if let Some(tag) = &tag {
            let first = tag.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
            let all = tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
            if !first || !all || tag.len() > MAX_TAG {
                return wrong(
                    "its tag must be 1 to 128 of a-z, A-Z, 0-9, _, . and -, and not start with . or -",
                );
            }
        }
        let (registry, repository) = match path.split_once('/') {
            Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (host, rest.to_owned()),
            Some(_) => (HUB, path.to_owned()),
            None => (HUB, format!("library/{path}")),
        };
        if !is_host(registry) {
            return wrong("its registry must be a host name or address, with a port where there is one");
        }
        if repository.len() > MAX_REPOSITORY || !repository.split('/').all(is_component) {
            return wrong("write a name like registry.example/team/hello:1, in lower case");
        }
        let tag = if digest.is_none() && tag.is_none() { Some("latest".to_owned()) } else { tag };
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }

    /// Host, and port where there is one.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The name within its registry.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Present unless there is a digest.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// `sha256:…`, of the manifest or of the index that leads to it.
    #[must_use]
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// It names the same content for ever.
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        self.digest.is_some()
    }

    /// The same name for this content.
    ///
    /// # Errors
    /// What is wrong with the digest.
    pub fn pin(&self, digest: &str) -> Result<Self, String> {
        let unpinned = Self { digest: None, ..self.clone() };
        Self::parse(&format!("{unpinned}@{digest}"))
    }

    /// The name as it was asked for: without the digest that its tag led to, and with one that was there in place of a tag.
    #[must_use]
    pub fn asked(&self) -> Self {
        match self.tag {
            Some(_) => self.unpinned(),
            None => self.clone(),
        }
    }

    /// The same name without its digest: what a registry is asked again.
    #[must_use]
    pub fn unpinned(&self) -> Self {
        let tag = self.tag.clone().or_else(|| Some("latest".to_owned()));
        Self { digest: None, tag, ..self.clone() }
    }
}

/// A DNS name, an IPv4 address or an IPv6 address in brackets, with a port or without.
fn is_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let name = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            let label = |l: &str| {
                !l.is_empty()
                    && !l.starts_with('-')
                    && !l.ends_with('-')
                    && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            };
            host.len() <= 253 && host.split('.').all(label)
        }
    };
    name && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// Letters and digits, separated by one `.`, one or two `_`, or any number of `-`.
fn is_component(text: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let mut separator = String::new();
    for byte in text.bytes() {
        if alphanumeric(byte) {
            separator.clear();
        } else if matches!(byte, b'.' | b'_' | b'-') {
            separator.push(char::from(byte));
            let fine = matches!(&separator[..], "." | "_" | "__") || separator.bytes().all(|b| b == b'-');
            if !fine {
                return false;
            }
        } else {
            return false;
        }
    }
    text.bytes().next().is_some_and(alphanumeric) && separator.is_empty()
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl TryFrom<String> for ImageRef {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
    }
}

impl From<ImageRef> for String {
    fn from(image: ImageRef) -> String {
        image.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn short_forms_mean_what_docker_means() {
        let cases = [
            ("busybox", "docker.io/library/busybox:latest"),
            ("team/hello:1", "docker.io/team/hello:1"),
            ("localhost/hello", "localhost/hello:latest"),
            ("127.0.0.1:5000/a/b__c:v1.2-x", "127.0.0.1:5000/a/b__c:v1.2-x"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
            ("registry.example/hello", "registry.example/hello:latest"),
        ];
        for (text, whole) in cases {
            let image = ImageRef::parse(text).unwrap();
            assert_eq!(image.to_string(), whole, "{text}");
            assert_eq!(ImageRef::parse(whole), Ok(image.clone()));
            let pinned = image.pin(DIGEST).unwrap();
            assert_eq!(pinned.to_string(), format!("{whole}@{DIGEST}"));
            assert!(pinned.is_pinned() && !image.is_pinned());
            assert_eq!(
                (pinned.unpinned(), pinned.asked(), image.asked()),
                (image.clone(), image.clone(), image)
            );
        }
        let bare = ImageRef::parse(&format!("r.example/x@{DIGEST}")).unwrap();
        assert_eq!((bare.tag(), bare.digest()), (None, Some(DIGEST)));
        assert_eq!((bare.unpinned().tag(), bare.asked()), (Some("latest"), bare));
    }

    #[test]
    fn what_is_no_image_is_said_to_be_none() {
        let long = "a".repeat(256);
        let bad = [
            "",
            "UPPER",
            "a//b",
            "/a",
            "a/",
            "a:",
            "a:-x",
            "a b",
            "a@sha256:12",
            "a@md5:1",
            "ex.ample:0/a",
            "-x.y/a",
            "x.y:99999/a",
            "a..b",
            "a___b",
            "a._b",
            "[::1/a",
            "http://x.y/a",
            &long,
        ];
        for text in bad {
            assert!(ImageRef::parse(text).is_err(), "{text}");
        }
    }
}
