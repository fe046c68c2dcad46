//! HTTP/1.1 to registries: connections, their reuse, TLS, where a redirection may lead.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ::http::header::{HOST, HeaderMap, HeaderValue, USER_AGENT};
use ::http::{Method, Request, Response, Uri};
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::Config;
use crate::error::{Error, Result};

const CONNECT: Duration = Duration::from_secs(10);
/// Until the head of an answer is there.
const ANSWER: Duration = Duration::from_secs(30);
/// Connections to one host that are kept for the next request.
const IDLE: usize = 8;
const AGENT: &str = concat!("stoker/", env!("CARGO_PKG_VERSION"));

/// What went wrong, and whether it may go away by itself.
pub(super) enum RequestError {
    Final(Error),
    /// And how long to wait, where that was said.
    Passing(Error, Option<Duration>),
}

/// Scheme, host and port: what credentials belong to.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Origin {
    tls: bool,
    /// IPv6 addresses without brackets.
    host: String,
    port: u16,
}

impl Origin {
    /// As it is written in images and in `Host`.
    fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let usual = if self.tls { 443 } else { 80 };
        if self.port == usual { host } else { format!("{host}:{}", self.port) }
    }

    fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.authority())
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

pub(super) struct Http {
    without_tls: Vec<String>,
    tls: tls::Tls,
    idle: Mutex<HashMap<Origin, Vec<SendRequest<Full<Bytes>>>>>,
}

impl Http {
    /// Blocking: reads certificates.
    pub fn new(config: &Config) -> Result<Self> {
        Ok(Self {
            without_tls: config.without_tls.clone(),
            tls: tls::Tls::new(config.ca.as_deref())?,
            idle: Mutex::default(),
        })
    }

    /// That of a registry, as images name it.
    pub fn origin(&self, registry: &str) -> Result<Origin> {
        let bad = || Error::image(format!("{registry} is no registry"));
        let uri: Uri = format!("https://{registry}/").parse().map_err(|_| bad())?;
        let mut origin = origin(&uri).ok_or_else(bad)?;
        if origin.is_loopback() || self.without_tls.iter().any(|host| host == registry) {
            origin.tls = false;
            origin.port = uri.port_u16().unwrap_or(80);
        }
        Ok(origin)
    }

    /// Reads an address that a registry gave. Without TLS only where that is allowed.
    fn absolute(&self, text: &str) -> std::result::Result<(Origin, String), RequestError> {
        let bad = || RequestError::Final(Error::registry("a registry leads to an address that is none"));
        let uri: Uri = text.parse().map_err(|_| bad())?;
        let origin = origin(&uri).ok_or_else(bad)?;
        let listed = |host: &String| *host == origin.authority() || *host == origin.host;
        if !origin.tls && !origin.is_loopback() && !self.without_tls.iter().any(listed) {
            return Err(RequestError::Final(Error::registry(format!(
                "a registry leads to {origin} without TLS, and that host is not one that may be asked so"
            ))));
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Ok((origin, path))
    }

    /// Where a redirection leads. Never from TLS to none.
    pub fn follow(
        &self,
        from: &Origin,
        location: Option<&HeaderValue>,
    ) -> std::result::Result<(Origin, String), RequestError> {
        let bad = || RequestError::Final(Error::registry(format!("{from} leads to an address that is none")));
        let location = location.and_then(|value| value.to_str().ok()).ok_or_else(bad)?;
        if location.starts_with('/') && !location.starts_with("//") {
            return Ok((from.clone(), location.to_owned()));
        }
        let (to, path) = self.absolute(location)?;
        if from.tls && !to.tls {
            return Err(RequestError::Final(Error::registry(format!("{from} leads to {to} without TLS"))));
        }
        Ok((to, path))
    }

    /// Sends a request and waits for the head of its answer.
    pub async fn send(
        &self,
        to: &Origin,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> std::result::Result<Response<Incoming>, RequestError> {
        let bad = |_| {
            RequestError::Final(Error::registry(format!("{to} leads to an address that cannot be asked")))
        };
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().map_err(bad)?;
        *request.headers_mut() = headers;
        let host = HeaderValue::from_str(&to.authority())
            .map_err(|_| RequestError::Final(Error::registry("a registry's name cannot be sent")))?;
        request.headers_mut().insert(HOST, host);
        request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(AGENT));

        if let Some(mut connection) = self.idle(to) {
            match within(to, connection.send_request(request.clone())).await? {
                Ok(answer) => return Ok(self.keep(to, connection, answer)),
                // It was closed while it was idle: nothing was answered, and what we ask may be asked twice.
                Err(error) => tracing::trace!(%to, %error, "a kept connection was gone"),
            }
        }
        let mut connection = self.connect(to).await?;
        match within(to, connection.send_request(request)).await? {
            Ok(answer) => Ok(self.keep(to, connection, answer)),
            Err(error) => Err(RequestError::Passing(
                Error::registry(format!("{to} broke off before it had answered: {}", why(&error))),
                None,
            )),
        }
    }

    fn idle(&self, to: &Origin) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let connections = idle.get_mut(to)?;
        connections.retain(|connection| !connection.is_closed());
        let at = connections.iter().position(SendRequest::is_ready)?;
        Some(connections.swap_remove(at))
    }

    /// It becomes ready for the next request by itself, once this answer was read to its end.
    fn keep(
        &self,
        to: &Origin,
        connection: SendRequest<Full<Bytes>>,
        answer: Response<Incoming>,
    ) -> Response<Incoming> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|_, connections| {
            connections.retain(|connection| !connection.is_closed());
            !connections.is_empty()
        });
        let connections = idle.entry(to.clone()).or_default();
        if connections.len() < IDLE {
            connections.push(connection);
        }
        answer
    }

    async fn connect(&self, to: &Origin) -> std::result::Result<SendRequest<Full<Bytes>>, RequestError> {
        let unreachable = |why: String| {
            RequestError::Passing(Error::registry(format!("{to} cannot be reached: {why}")), None)
        };
        let connect = async {
            let stream = TcpStream::connect((to.host.as_str(), to.port))
                .await
                .map_err(|e| unreachable(e.to_string()))?;
            // Requests are small and each is waited for.
            stream.set_nodelay(true).map_err(|e| unreachable(e.to_string()))?;
            if to.tls { self.tls.connect(to, stream).await } else { handshake(to, stream).await }
        };
        tokio::time::timeout(CONNECT, connect).await.unwrap_or_else(|_| {
            Err(unreachable(format!("there was no connection within {} s", CONNECT.as_secs())))
        })
    }
}

/// The task ends with its connection: when the other side closes it, or when nobody has it any more and no answer is being read.
async fn handshake<S>(to: &Origin, stream: S) -> std::result::Result<SendRequest<Full<Bytes>>, RequestError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (send, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| {
        RequestError::Passing(Error::registry(format!("{to} speaks no HTTP: {}", why(&error))), None)
    })?;
    let name = to.clone();
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::trace!(registry = %name, %error, "a connection ended");
        }
    });
    Ok(send)
}

async fn within<T>(to: &Origin, answer: impl Future<Output = T>) -> std::result::Result<T, RequestError> {
    tokio::time::timeout(ANSWER, answer).await.map_err(|_| {
        RequestError::Passing(
            Error::registry(format!("{to} did not answer within {} s", ANSWER.as_secs())),
            None,
        )
    })
}

/// An answer of at most so many bytes.
pub(super) async fn whole(mut body: Incoming, most: u64) -> std::result::Result<Bytes, RequestError> {
    let passing = |why: String| {
        RequestError::Passing(Error::registry(format!("the registry broke off its answer: {why}")), None)
    };
    let mut bytes = BytesMut::new();
    loop {
        let frame = tokio::time::timeout(super::SILENCE, body.frame()).await;
        match frame.map_err(|_| passing("it fell silent".to_owned()))? {
            None => return Ok(bytes.freeze()),
            Some(frame) => {
                let frame = frame.map_err(|error| passing(why(&error)))?;
                if let Ok(data) = frame.into_data() {
                    if (bytes.len() + data.len()) as u64 > most {
                        return Err(RequestError::Final(Error::registry(format!(
                            "the registry's answer is longer than {most} bytes"
                        ))));
                    }
                    bytes.extend_from_slice(&data);
                }
            }
        }
    }
}

/// The last cause says the most.
pub(super) fn why(error: &hyper::Error) -> String {
    let mut why: &dyn std::error::Error = error;
    while let Some(source) = why.source() {
        why = source;
    }
    why.to_string()
}

fn origin(uri: &Uri) -> Option<Origin> {
    let tls = match uri.scheme_str()? {
        "https" => true,
        "http" => false,
        _ => return None,
    };
    // A user in an address is no part of who is asked.
    if uri.authority()?.as_str().contains('@') {
        return None;
    }
    let host = uri.host()?.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
    (!host.is_empty()).then_some(Origin { tls, host, port })
}

mod tls {
    use std::path::Path;
    use std::sync::Arc;

    use bytes::Bytes;
    use http_body_util::Full;
    use hyper::client::conn::http1::SendRequest;
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, ServerName};
    use tokio::net::TcpStream;
    use tokio_rustls::TlsConnector;

    use super::{Origin, RequestError, handshake};
    use crate::error::{Error, Result};

    pub struct Tls(TlsConnector);

    impl Tls {
        /// Trusts the system's authorities, and those in this file.
        pub fn new(ca: Option<&Path>) -> Result<Self> {
            let mut roots = rustls::RootCertStore::empty();
            let system = rustls_native_certs::load_native_certs();
            for error in &system.errors {
                tracing::warn!(%error, "certificates of the system cannot be read");
            }
            // Systems carry some that are older than the rules; one that cannot be used is no reason to trust none.
            roots.add_parsable_certificates(system.certs);
            if let Some(path) = ca {
                let bad = |why: &dyn std::fmt::Display| Error::store(format!("{}: {why}", path.display()));
                for certificate in CertificateDer::pem_file_iter(path).map_err(|error| bad(&error))? {
                    roots.add(certificate.map_err(|error| bad(&error))?).map_err(|error| bad(&error))?;
                }
            }
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = rustls::ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .map_err(|error| Error::store(format!("TLS cannot be used: {error}")))?
                .with_root_certificates(roots)
                .with_no_client_auth();
            Ok(Self(TlsConnector::from(Arc::new(config))))
        }

        pub async fn connect(
            &self,
            to: &Origin,
            stream: TcpStream,
        ) -> std::result::Result<SendRequest<Full<Bytes>>, RequestError> {
            let name = ServerName::try_from(to.host.clone()).map_err(|_| {
                RequestError::Final(Error::image(format!("{to} is no name that a certificate can have")))
            })?;
            let stream = self.0.connect(name, stream).await.map_err(|error| {
                match error.get_ref().and_then(|cause| cause.downcast_ref()) {
                    Some(rustls::Error::InvalidMessage(_)) => RequestError::Final(Error::registry(format!(
                        "{to} does not speak TLS: where it is to be asked without, the operator lists it in `registry_without_tls`"
                    ))),
                    // What TLS itself objects to, it will object to again.
                    Some(cause) => {
                        RequestError::Final(Error::registry(format!("{to} cannot be trusted: {cause}")))
                    }
                    None => RequestError::Passing(Error::registry(format!("{to} cannot be reached: {error}")), None),
                }
            })?;
            handshake(to, stream).await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http() -> Http {
        Http::new(&Config {
            without_tls: vec!["plain.example".into(), "other.example:5000".into()],
            ..Config::default()
        })
        .unwrap_or_else(|error| panic!("{error}"))
    }

    fn lead(http: &Http, from: &str, to: &str) -> std::result::Result<String, String> {
        let from = http.origin(from).unwrap_or_else(|error| panic!("{error}"));
        let location = HeaderValue::from_str(to).unwrap();
        match http.follow(&from, Some(&location)) {
            Ok((origin, path)) => {
                Ok(format!("{}{origin}{path}", if origin.tls { "https://" } else { "http://" }))
            }
            Err(RequestError::Final(error) | RequestError::Passing(error, _)) => Err(error.message),
        }
    }

    #[test]
    fn tls_is_left_out_only_where_that_is_said() {
        let http = http();
        let cases = [
            ("registry.example", true, 443),
            ("registry.example:5000", true, 5000),
            ("127.0.0.1:5000", false, 5000),
            ("[::1]:5000", false, 5000),
            ("localhost:5000", false, 5000),
            ("localhost.example:5000", true, 5000),
            ("plain.example", false, 80),
            ("plain.example:5000", true, 5000),
            ("other.example:5000", false, 5000),
            ("0.0.0.0:5000", true, 5000),
        ];
        for (registry, tls, port) in cases {
            let origin = http.origin(registry).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!((origin.tls, origin.port), (tls, port), "{registry}");
        }
    }

    #[test]
    fn redirections_lead_to_nothing_weaker() {
        let http = http();
        assert_eq!(lead(&http, "r.example", "/v2/x?y"), Ok("https://r.example/v2/x?y".into()));
        assert_eq!(lead(&http, "r.example", "https://cdn.example/x"), Ok("https://cdn.example/x".into()));
        assert_eq!(lead(&http, "plain.example", "https://cdn.example/x"), Ok("https://cdn.example/x".into()));
        assert_eq!(
            lead(&http, "plain.example", "http://plain.example/x"),
            Ok("http://plain.example/x".into())
        );
        for (from, to) in [
            ("r.example", "http://plain.example/x"),
            ("r.example", "http://127.0.0.1/x"),
            ("plain.example", "http://unlisted.example/x"),
            ("plain.example", "http://169.254.169.254/latest"),
            ("r.example", "//cdn.example/x"),
            ("r.example", "file:///etc/passwd"),
            ("r.example", "https://user:secret@cdn.example/x"),
            ("r.example", ""),
        ] {
            let error = lead(&http, from, to).unwrap_err();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
