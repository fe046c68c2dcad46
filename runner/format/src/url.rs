//! The parts of a request's URL that formats tell functions. What a client sent may be anything; what is written is safe in a
//! request line and a header.

use std::borrow::Cow;

use stoker_core::text::{escape_blank, unescape};

/// Most query parameters that are told one by one.
const MAX_PARAMETERS: usize = 256;

/// Host and port, where the URL has them, and the rest.
pub fn split(url: &str) -> (Option<&str>, &str) {
    let after = match url.find("://") {
        Some(at) if !url[..at].contains(['/', '?', '#']) => &url[at + 3..],
        _ => return (None, url),
    };
    let end = after.find(['/', '?', '#']).unwrap_or(after.len());
    let authority = &after[..end];
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    (Some(host).filter(|h| !h.is_empty()), &after[end..])
}

/// Path and query, as a request line has them.
pub fn target(url: &str) -> Cow<'_, str> {
    let (_, rest) = split(url);
    let rest = rest.split('#').next().unwrap_or_default();
    match escape_blank(rest) {
        rest if rest.starts_with('/') => rest,
        rest => Cow::Owned(format!("/{rest}")),
    }
}

/// The path alone.
pub fn path(url: &str) -> &str {
    let (_, rest) = split(url);
    rest.split(['?', '#']).next().unwrap_or_default()
}

/// The query's parameters, decoded; of a name that stands several times, the first.
pub fn parameters(url: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    let Some((_, query)) = url.split('#').next().and_then(|u| u.split_once('?')) else { return found };
    for pair in query.split('&').filter(|p| !p.is_empty()).take(MAX_PARAMETERS) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = decode(&name.replace('+', " "));
        if !found.iter().any(|(n, _)| *n == name) {
            found.push((name, decode(&value.replace('+', " "))));
        }
    }
    found
}

/// Percent-decoding; what is no escape stays.
pub fn decode(text: &str) -> String {
    String::from_utf8_lossy(&unescape(text)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_come_apart() {
        for (url, host, target_, path_) in [
            ("http://h:1/a/b?c=d#e", Some("h:1"), "/a/b?c=d", "/a/b"),
            ("https://u:p@h", Some("h"), "/", ""),
            ("/a?u=http://x/y", None, "/a?u=http://x/y", "/a"),
            ("http://h?x", Some("h"), "/?x", ""),
            ("", None, "/", ""),
            ("/a b\r\nX: y\u{e9}", None, "/a%20b%0D%0AX:%20y%C3%A9", "/a b\r\nX: y\u{e9}"),
        ] {
            assert_eq!((split(url).0, target(url).as_ref(), path(url)), (host, target_, path_), "{url}");
        }
    }

    #[test]
    fn parameters_are_decoded() {
        let found = parameters("/x?a=1&b=x+y%21&a=2&c&%zz=%4&&d=%F0%9F%98%80#e=f");
        let found: Vec<_> = found.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(found, [("a", "1"), ("b", "x y!"), ("c", ""), ("%zz", "%4"), ("d", "😀")]);
        assert!(parameters("/x").is_empty());
    }
}
