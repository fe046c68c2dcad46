//! How a runner is reached: with TLS where its address asks for it, and without only where nobody can listen in, or where that was said to be fine.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use stoker_runtime::net;
use stoker_runtime::tls::{Secured, Tls};
use tonic::transport::{Channel, Endpoint};

/// Pings of HTTP/2 notice what [`keepalive`](super::keepalive) does not ask: runners of a release that knows no such question, and connections that are not engaged yet.
const PING_AFTER: Duration = Duration::from_secs(10);
const UNANSWERED: Duration = Duration::from_secs(20);

/// How long they take to notice it.
pub const LONGEST: Duration = Duration::from_secs(30);

/// HTTP/2 windows. Credit per call bounds what is under way; these only must not be what limits it.
const STREAM_WINDOW: u32 = 8 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// See the module.
#[derive(Clone, Default)]
pub struct Dial {
    /// Shows who we are, and knows runners.
    pub tls: Option<Arc<Tls>>,
    /// Runners on other machines may be spoken to without TLS.
    pub insecure: bool,
}

impl Dial {
    /// A connection to the runner of this name at an address like `https://host:port`.
    pub async fn connect(&self, name: &str, address: &str) -> Result<Channel, String> {
        let uri: Uri = address.parse().map_err(|_| format!("`{address}` is not an address"))?;
        let tls = self.tls_for(&uri)?;
        let (host, port) = (uri.host().unwrap_or_default(), uri.port_u16().unwrap_or(80));
        let (host, name) = (host.trim_matches(['[', ']']).to_owned(), name.to_owned());
        // What is above TLS needs not know of it, and would refuse the other scheme.
        let plain = format!("http://{}", uri.authority().map_or("", |authority| authority.as_str()));
        let endpoint = Endpoint::from_shared(plain).map_err(|_| format!("`{address}` is not an address"))?;
        let connect = tower::service_fn(move |_| {
            let (tls, host, name) = (tls.clone(), host.clone(), name.clone());
            async move {
                let stream = net::connect(&host, port).await?;
                let stream = match tls {
                    Some(tls) => tls.connect_runner(&name, stream).await?,
                    None => Secured::plain(stream),
                };
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        });
        endpoint
            .connect_timeout(Duration::from_secs(3))
            .max_frame_size(stoker_proto::HTTP2_FRAME)
            .http2_keep_alive_interval(PING_AFTER)
            .keep_alive_timeout(UNANSWERED)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .connect_with_connector(connect)
            .await
            .map_err(|error| {
                let cause = std::error::Error::source(&error).map(|s| format!(": {s}")).unwrap_or_default();
                format!("cannot connect to {address}{cause}")
            })
    }

    fn tls_for(&self, uri: &Uri) -> Result<Option<Arc<Tls>>, String> {
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let here =
            host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback());
        match (uri.scheme_str(), &self.tls) {
            (Some("https"), Some(tls)) => Ok(Some(tls.clone())),
            (Some("https"), None) => Err(format!(
                "{uri} asks for TLS: give this balancer `tls.certificate`, `tls.key` and `tls.ca`"
            )),
            _ if here || self.insecure => Ok(None),
            _ => Err(format!(
                "{uri} is on another machine and without TLS: give the runner `tls.certificate`, `tls.key` and `tls.ca`, or this \
                 balancer `insecure: true`"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leaves_the_machine_in_the_clear_unless_that_was_said() {
        let said = |insecure, address: &str| {
            Dial { tls: None, insecure }.tls_for(&address.parse().unwrap()).err().unwrap_or_default()
        };
        for here in [
            "http://127.0.0.1:7170",
            "http://[::1]:7170",
            "http://localhost:1",
            "http://[::ffff:127.0.0.1]:1",
        ] {
            assert_eq!(said(false, here), "", "{here}");
        }
        for there in ["http://10.0.0.1:7170", "http://runner-1:7170", "http://[fd00::1]:7170"] {
            assert!(said(false, there).contains("without TLS"), "{there}");
            assert_eq!(said(true, there), "", "{there}");
        }
        assert!(said(true, "https://127.0.0.1:7170").contains("asks for TLS"));
    }
}
