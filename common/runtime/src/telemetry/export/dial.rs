//! A connection to the collector, with TLS where its address asks for it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use http::Uri;
use http::uri::{Authority, PathAndQuery};

use super::super::settings::{Config, Protocol};
use crate::net;
use crate::tls::{self, Secured, Speaks};

/// Where the collector is, and whom we take for it.
#[derive(Debug, Clone)]
pub(super) struct Dial {
    pub authority: Authority,
    pub path: PathAndQuery,
    host: String,
    port: u16,
    /// With TLS.
    tls: Option<Trusted>,
}

#[derive(Debug, Clone)]
struct Trusted {
    ca: Option<PathBuf>,
    identity: Option<(PathBuf, PathBuf)>,
    speaks: Speaks,
}

impl Dial {
    /// # Errors
    /// The endpoint or a certificate cannot be used.
    pub fn new(to: &str, config: &Config) -> Result<Self, String> {
        let wrong = || format!("`{to}` is not an endpoint: write it like http://collector:4317");
        let uri: Uri = to.parse().map_err(|_| wrong())?;
        let authority = uri.authority().ok_or_else(wrong)?.clone();
        let (usual, speaks) = match config.protocol {
            Protocol::Grpc => (4317, Speaks::Http2),
            Protocol::HttpProtobuf => (4318, Speaks::Http1),
        };
        let trust = &config.trust;
        let identity = match (&trust.certificate, &trust.key) {
            (Some(certificate), Some(key)) => Some((certificate.clone(), key.clone())),
            (None, None) => None,
            _ => return Err("`telemetry.certificate` and `telemetry.key` go together: give both".to_owned()),
        };
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let tls = match uri.scheme_str() {
            Some("https") => {
                let trusted = Trusted { ca: trust.ca.clone(), identity, speaks };
                // What cannot be used is said at the start.
                trusted.config()?;
                Some(trusted)
            }
            _ => {
                if !config.headers.is_empty() && !is_here(&host) {
                    tracing::warn!(
                        to,
                        "the headers for the collector, such as a token, travel where others can read them: use https://"
                    );
                }
                None
            }
        };
        let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        Ok(Self { port: authority.port_u16().unwrap_or(usual), authority, path, host, tls })
    }

    pub async fn connect(&self) -> io::Result<Secured> {
        let stream = net::connect(&self.host, self.port).await?;
        match &self.tls {
            None => Ok(Secured::plain(stream)),
            Some(trusted) => {
                // Read again for each connection: certificates are renewed while we run.
                let config = trusted.config().map_err(io::Error::other)?;
                tls::connect(Arc::new(config), &self.host, stream).await
            }
        }
    }
}

impl Trusted {
    fn config(&self) -> Result<rustls::ClientConfig, String> {
        let identity =
            self.identity.as_ref().map(|(certificate, key)| (certificate.as_path(), key.as_path()));
        tls::client(self.ca.as_deref(), identity, self.speaks)
    }
}

fn is_here(host: &str) -> bool {
    host == "localhost"
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}
