//! What this command shows of whoever uses it: a token, a certificate, and whom it trusts in turn.
//!
//! One command is one person's: what was said on its line holds for every connection that it makes.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use http::HeaderValue;
use stoker_runtime::tls::{self, ClientConfig, Secured, Speaks};
use tokio::net::TcpStream;

use crate::args::Common;
use crate::failure::Failure;

/// The longest file that is taken for a token's.
const LONGEST: usize = 8 << 10;

#[derive(Debug, Default)]
struct Credentials {
    /// `Bearer …`, marked as what is not to be shown.
    token: Option<HeaderValue>,
    ca: Option<PathBuf>,
    identity: Option<(PathBuf, PathBuf)>,
    insecure: bool,
}

static SHOWN: OnceLock<Credentials> = OnceLock::new();

/// Keeps what was said on the command line.
///
/// # Errors
/// A file cannot be read, or its text is no token.
pub fn show(common: &Common) -> Result<(), Failure> {
    let text = match (&common.token, &common.token_file) {
        (Some(token), _) => Some(token.clone()),
        (None, Some(file)) => Some(fs::read_to_string(file).map_err(|error| {
            Failure::usage(
                format!("{}: {error}", file.display()),
                "give the file of a token with --token-file",
            )
        })?),
        (None, None) => None,
    };
    let token = text.map(|text| bearer(&text)).transpose()?;
    let identity = match (&common.cert, &common.cert_key) {
        (Some(certificate), Some(key)) => Some((certificate.clone(), key.clone())),
        (None, None) => None,
        _ => {
            return Err(Failure::usage(
                "a certificate without its key shows nobody",
                "give --cert and --cert-key",
            ));
        }
    };
    let shown = Credentials { token, ca: common.ca.clone(), identity, insecure: common.insecure };
    // Said once: by the one command line.
    SHOWN.set(shown).ok();
    Ok(())
}

fn bearer(text: &str) -> Result<HeaderValue, Failure> {
    let token = text.trim();
    let good = !token.is_empty() && token.len() <= LONGEST && token.bytes().all(|b| b.is_ascii_graphic());
    let wrong = || {
        Failure::usage("what was given as a token is none", "write it as `stoker token` shows it: one word")
    };
    if !good {
        return Err(wrong());
    }
    let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| wrong())?;
    value.set_sensitive(true);
    Ok(value)
}

fn shown() -> &'static Credentials {
    SHOWN.get_or_init(Credentials::default)
}

/// What goes with every request to `server`. A token is not told to other machines in the clear.
///
/// # Errors
/// It would be.
pub fn authorization(server: &http::Uri) -> Result<Option<HeaderValue>, Failure> {
    let Credentials { token, insecure, .. } = shown();
    let host = server.host().unwrap_or_default().trim_matches(['[', ']']);
    let here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback());
    let secret = here || server.scheme_str() == Some("https") || *insecure;
    if token.is_some() && !secret {
        return Err(Failure::usage(
            format!("a token would go to {server} in the clear: nothing was sent"),
            "write https://, or --insecure where nobody on the way can listen in",
        ));
    }
    Ok(token.clone())
}

/// What a connection to `server` takes to be secure; `None` where its scheme promises nothing.
///
/// # Errors
/// A file of ours cannot be used.
pub fn tls(server: &http::Uri, speaks: Speaks) -> Result<Option<Arc<ClientConfig>>, Failure> {
    if server.scheme_str() != Some("https") {
        return Ok(None);
    }
    let Credentials { ca, identity, .. } = shown();
    let identity = identity.as_ref().map(|(certificate, key)| (certificate.as_path(), key.as_path()));
    let config = tls::client(ca.as_deref(), identity, speaks);
    let config =
        config.map_err(|why| Failure::usage(why, "give files of PEM with --ca, --cert and --cert-key"))?;
    Ok(Some(Arc::new(config)))
}

/// Makes a connection what the scheme of `server` promises. The error is why it cannot be.
pub async fn secured(
    tls: Option<Arc<ClientConfig>>,
    server: &http::Uri,
    stream: TcpStream,
) -> Result<Secured, String> {
    let Some(config) = tls else { return Ok(Secured::plain(stream)) };
    let host = server.host().unwrap_or_default().trim_matches(['[', ']']);
    tls::connect(config, host, stream).await.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_word_and_not_shown() {
        let value = bearer(" stk_abc\n").unwrap();
        assert_eq!(value.as_bytes(), b"Bearer stk_abc");
        assert!(!format!("{value:?}").contains("stk_abc"));
        for wrong in ["", " \n", "two words", "Bearer x", "é"] {
            let failure = bearer(wrong).unwrap_err();
            assert!(wrong.trim().is_empty() || !failure.what().contains(wrong), "{}", failure.what());
        }
    }
}
