//! From where a request of the web came, for handlers that ask: the headers `X-Forwarded-…`, as AWS adds them, and the address that it calls `sourceIp`.
//!
//! What a client says of itself is not believed. A proxy that the operator trusts says who its client is, and how that came.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use http::header::HOST;
use http::request::Parts;
use http::uri::Authority;
use stoker_core::call::SOURCE_IP;
use stoker_core::cidr::Cidr;
use stoker_proto::v1;

use super::Lambda;
use crate::auth::Origin;

const FOR: &str = "x-forwarded-for";
const PROTO: &str = "x-forwarded-proto";
const PORT: &str = "x-forwarded-port";

/// Adds to the headers of a request that came from there what they do not say: from where, and for which host.
pub fn tell(lambda: &Lambda, origin: &Origin, parts: &Parts, headers: &mut Vec<v1::Header>) {
    let Some(peer) = origin.address else { return };
    let trusted = |address| lambda.trusted_proxies.iter().any(|proxies: &Cidr| proxies.holds(address));
    let said: Vec<_> = headers.iter().filter(|header| header.name == FOR).map(text).collect();
    let source = source(peer, &said.join(","), trusted);
    let (scheme, usual) = if origin.secure { ("https", 443) } else { ("http", 80) };
    let port = port(parts).unwrap_or(usual);
    headers.retain(|header| match header.name.as_str() {
        FOR | SOURCE_IP => false,
        PROTO | PORT => trusted(peer),
        _ => true,
    });
    let all: String = said.iter().map(|said| format!("{said}, ")).collect();
    for (name, value) in [
        (FOR, format!("{all}{peer}")),
        (PROTO, scheme.to_owned()),
        (PORT, port.to_string()),
        (SOURCE_IP, source.to_string()),
        // HTTP/2 has it in its URL, and handlers look for it among the headers.
        ("host", parts.uri.authority().map(ToString::to_string).unwrap_or_default()),
    ] {
        if !value.is_empty() && headers.iter().all(|header| header.name != name) {
            headers.push(v1::Header { name: name.to_owned(), value: Bytes::from(value) });
        }
    }
}

fn text(header: &v1::Header) -> String {
    String::from_utf8_lossy(&header.value).into_owned()
}

/// Whom the last one that is not trusted came from: each of those who are trusted named whom it had it from, at the end of what it was told.
fn source(peer: IpAddr, said: &str, trusted: impl Fn(IpAddr) -> bool) -> IpAddr {
    let mut source = peer;
    let mut before = said.rsplit(',').map(str::trim).map(address);
    while trusted(source)
        && let Some(Some(address)) = before.next()
    {
        source = address;
    }
    source
}

/// An address as proxies write it: some add a port.
fn address(text: &str) -> Option<IpAddr> {
    let with_port = || text.parse::<SocketAddr>().map(|address| address.ip());
    let address = text.trim_matches(['[', ']']).parse().or_else(|_| with_port());
    address.ok().map(|address: IpAddr| address.to_canonical())
}

/// The port that the client meant, where it said one.
fn port(parts: &Parts) -> Option<u16> {
    let named = || parts.headers.get(HOST).and_then(|host| Authority::try_from(host.as_bytes()).ok());
    parts.uri.authority().cloned().or_else(named)?.port_u16()
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    /// What a handler is told of a request with these headers that came from `peer`.
    fn told(trusted: &str, peer: &str, secure: bool, headers: &[(&str, &str)]) -> Vec<(String, String)> {
        told_at("/", trusted, peer, secure, headers)
    }

    fn told_at(
        uri: &'static str,
        trusted: &str,
        peer: &str,
        secure: bool,
        headers: &[(&str, &str)],
    ) -> Vec<(String, String)> {
        let trusted_proxies = trusted.split_whitespace().map(|text| text.parse().unwrap()).collect();
        let lambda = Lambda::new(Config { trusted_proxies, ..Config::default() });
        let origin = Origin { address: Some(peer.parse().unwrap()), secure, ..Origin::default() };
        let mut request = http::Request::new(());
        *request.uri_mut() = http::Uri::from_static(uri);
        for (name, value) in headers {
            request
                .headers_mut()
                .append(http::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        let (parts, ()) = request.into_parts();
        let mut headers = super::super::super::fields::request_headers(&parts.headers);
        tell(&lambda, &origin, &parts, &mut headers);
        headers.iter().map(|header| (header.name.clone(), text(header))).collect()
    }

    fn of(all: &[(String, String)], name: &str) -> String {
        all.iter().filter(|(is, _)| is == name).map(|(_, value)| value.as_str()).collect::<Vec<_>>().join("|")
    }

    #[test]
    fn a_client_is_who_came_whatever_it_says() {
        let said = [
            ("host", "fleet.example:7080"),
            ("x-forwarded-for", "198.51.100.1"),
            ("x-forwarded-for", "198.51.100.2"),
            ("x-forwarded-proto", "gopher"),
            ("x-forwarded-port", "1"),
            ("stoker-source-ip", "198.51.100.3"),
            ("x-other", "stays"),
        ];
        let told = told("10.0.0.0/8", "192.0.2.7", false, &said);
        assert_eq!(of(&told, SOURCE_IP), "192.0.2.7");
        assert_eq!(of(&told, FOR), "198.51.100.1, 198.51.100.2, 192.0.2.7");
        assert_eq!(
            (of(&told, PROTO), of(&told, PORT), of(&told, "x-other")),
            ("http".into(), "7080".into(), "stays".into())
        );
    }

    #[test]
    fn a_proxy_that_is_trusted_is_believed() {
        let said = |list| {
            [
                ("host", "h"),
                ("x-forwarded-for", list),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-port", "8443"),
            ]
        };
        let told = |list| told("10.0.0.0/8 fd00::/8", "10.1.1.1", false, &said(list));
        let all = told("198.51.100.1, 203.0.113.5");
        assert_eq!(
            (of(&all, SOURCE_IP), of(&all, FOR)),
            ("203.0.113.5".into(), "198.51.100.1, 203.0.113.5, 10.1.1.1".into())
        );
        assert_eq!((of(&all, PROTO), of(&all, PORT)), ("https".into(), "8443".into()));
        for (list, source) in [
            ("198.51.100.1, 203.0.113.5:4711, 10.2.2.2", "203.0.113.5"),
            ("2001:db8::1, [fd00::1]:80, [fd00::2]", "2001:db8::1"),
            ("10.3.3.3", "10.3.3.3"),
            ("203.0.113.5, unknown, 10.2.2.2", "10.2.2.2"),
            ("::ffff:203.0.113.5", "203.0.113.5"),
            ("", "10.1.1.1"),
        ] {
            assert_eq!(of(&told(list), SOURCE_IP), source, "{list}");
        }
    }

    #[test]
    fn what_nobody_says_is_the_usual() {
        let told = |secure| told("", "2001:db8::9", secure, &[]);
        let (plain, secure) = (told(false), told(true));
        assert_eq!(
            (of(&plain, FOR), of(&plain, PROTO), of(&plain, PORT)),
            ("2001:db8::9".into(), "http".into(), "80".into())
        );
        assert_eq!((of(&secure, PROTO), of(&secure, PORT)), ("https".into(), "443".into()));
    }
    #[test]
    fn the_host_is_a_header_however_it_came() {
        let host = |uri, headers: &[_]| of(&told_at(uri, "", "192.0.2.7", true, headers), "host");
        assert_eq!(host("https://fleet.example:8443/a", &[]), "fleet.example:8443");
        assert_eq!(host("/a", &[("host", "fleet.example")]), "fleet.example");
        assert_eq!(host("/a", &[]), "");
    }
}
