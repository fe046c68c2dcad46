//! TLS on the ports of ours and on the way to others: certificates out of PEM files, taken up anew when the files change.
//!
//! Every certificate of a fleet is signed by the fleet's own authority and says in a URI what its holder is:
//! `spiffe://DOMAIN/balancer/NAME`, `spiffe://DOMAIN/runner/NAME`, `spiffe://DOMAIN/client/NAME`. A runner takes connections of balancers
//! alone, and a balancer goes to runners alone: any other certificate of the same authority, such as a client's, is refused in the
//! handshake. Between the two the host's name says nothing, so that runners may come and go at addresses that nobody has signed.
//! Without a name, `spiffe://DOMAIN/runner`, a certificate stands for all of a kind, for platforms that hand out one for all.
//!
//! New files are used by connections made after them; those that stand go on.

mod peer;
mod settings;
mod stream;
mod validity;
mod verify;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
pub use rustls::ClientConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{CertificateError, RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use webpki::{EndEntityCert, KeyUsage};

pub use self::peer::{Peer, Role};
pub use self::settings::{KEYS, Plan, exposed, open_to_others};
pub use self::stream::{Incoming, Secured};
pub use self::validity::LISTED;
use self::validity::Validity;

/// A handshake that takes longer is given up: who stands still in it holds a connection.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// PEM files of this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// Our certificate, with those between it and its authority behind it, and its key.
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Who signs the certificates of balancers and runners.
    pub ca: Option<PathBuf>,
    /// Who signs those of clients.
    pub client_ca: Option<PathBuf>,
}

/// Whom a port lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asks {
    /// Anybody; who shows a certificate must have one that is good.
    Anybody,
    /// Balancers of the fleet; at the admin port ([`Speaks::Http1`]) anybody, since kubelets and scrapers are none, and pages have their own [viewers](crate::admin::Viewers).
    Balancers,
}

/// What is spoken on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    Http1,
    Http2,
    Both,
}

const ALL: [Speaks; 3] = [Speaks::Http1, Speaks::Http2, Speaks::Both];

impl Speaks {
    fn protocols(self) -> Vec<Vec<u8>> {
        let names: &[&[u8]] = match self {
            Speaks::Http1 => &[b"http/1.1"],
            Speaks::Http2 => &[b"h2"],
            Speaks::Both => &[b"h2", b"http/1.1"],
        };
        names.iter().map(|name| name.to_vec()).collect()
    }
}

/// The certificates in use. Cheap to share.
pub struct Tls {
    files: Files,
    asks: Asks,
    now: ArcSwap<Configs>,
}

/// What the files come to.
struct Configs {
    /// In the order of [`ALL`].
    server: [Arc<ServerConfig>; ALL.len()],
    /// On the way to runners, where there is an authority for them.
    to_runners: Option<Arc<ClientConfig>>,
    validity: Option<Validity>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).field("asks", &self.asks).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// A sentence that names the file.
    pub fn load(files: Files, asks: Asks) -> Result<Arc<Self>, String> {
        let now = ArcSwap::from_pointee(Configs::read(&files, asks)?);
        Ok(Arc::new(Self { files, asks, now }))
    }

    /// Reads them again. What cannot be used changes nothing: half of a pair may have been written.
    ///
    /// # Errors
    /// A sentence that names the file.
    pub fn reload(&self) -> Result<(), String> {
        self.now.store(Arc::new(Configs::read(&self.files, self.asks)?));
        Ok(())
    }

    /// The files, for those who watch them.
    pub fn files(&self) -> impl Iterator<Item = PathBuf> {
        let Files { certificate, key, ca, client_ca } = &self.files;
        [Some(certificate), Some(key), ca.as_ref(), client_ca.as_ref()].into_iter().flatten().cloned()
    }

    /// Makes a connection that came in safe, and says who is there.
    ///
    /// # Errors
    /// Of the connection or the handshake.
    pub async fn accept(&self, stream: TcpStream, speaks: Speaks) -> io::Result<Secured> {
        let config = self.now.load().server[speaks as usize].clone();
        let stream = in_time(TlsAcceptor::from(config).accept(stream)).await?;
        let peer = stream.get_ref().1.peer_certificates().and_then(|chain| Peer::of(chain.first()?));
        Ok(Secured::accepted(stream, peer.map(Arc::new)))
    }

    /// Makes a connection to a runner safe: it is the runner of this name, or one whose certificate is for all of them.
    ///
    /// # Errors
    /// Of the connection or the handshake, or who is there instead.
    pub async fn connect_runner(&self, name: &str, stream: TcpStream) -> io::Result<Secured> {
        let config = self.now.load().to_runners.clone();
        let config = config.ok_or_else(|| io::Error::other("there is no `tls.ca` to know runners by"))?;
        // No name of a host is looked at: see the module.
        let nobody = ServerName::try_from("runner").map_err(io::Error::other)?;
        let stream = in_time(TlsConnector::from(config).connect(nobody, stream)).await.map_err(by_role)?;
        let peer = stream.get_ref().1.peer_certificates().and_then(|chain| Peer::of(chain.first()?));
        match peer.as_ref().and_then(|peer| peer.is(Role::Runner)) {
            Some("") => {}
            Some(other) if other == name => {}
            _ => return Err(io::Error::other(format!("its certificate is not that of runner {name}"))),
        }
        Ok(Secured::connected(stream))
    }
}

/// What a refusal by [`verify`] means, in words of ours.
fn by_role(error: io::Error) -> io::Error {
    let role = rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure);
    let refused = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) == Some(&role);
    if refused {
        io::Error::other("its certificate is of the fleet's authority, and is not that of a runner")
    } else {
        error
    }
}

async fn in_time<T>(handshake: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match tokio::time::timeout(HANDSHAKE, handshake).await {
        Ok(done) => done,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the TLS handshake took too long")),
    }
}

/// What a client says and whom it trusts: the authorities in `ca`, else those of the system; and shows `identity` where it is asked for one.
///
/// # Errors
/// A sentence that names the file.
pub fn client(
    ca: Option<&Path>,
    identity: Option<(&Path, &Path)>,
    speaks: Speaks,
) -> Result<ClientConfig, String> {
    let roots = match ca {
        Some(ca) => authorities(ca)?,
        None => {
            let mut roots = RootCertStore::empty();
            // Systems carry some that are older than the rules; one that cannot be used is no reason to trust none.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            roots
        }
    };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS cannot be used: {error}"))?
        .with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let (chain, secret) = pair(certificate, key)?;
            builder.with_client_auth_cert(chain, secret).map_err(|error| unfit(certificate, key, &error))?
        }
    };
    config.alpn_protocols = speaks.protocols();
    Ok(config)
}

/// Makes a connection to a server safe, which must have a certificate for `host`.
///
/// # Errors
/// Of the connection or the handshake.
pub async fn connect(config: Arc<ClientConfig>, host: &str, stream: TcpStream) -> io::Result<Secured> {
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| io::Error::other(format!("`{host}` is no name that a certificate can have")))?;
    Ok(Secured::connected(in_time(TlsConnector::from(config).connect(name, stream)).await?))
}

/// Whether a certificate is signed by one of the authorities in a file.
///
/// # Errors
/// It is not, or one of them is none.
pub fn is_signed_by(pem: &str, ca: &Path) -> Result<(), String> {
    let certificate =
        CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| format!("no certificate: {error}"))?;
    let parsed = EndEntityCert::try_from(&certificate).map_err(|error| format!("no certificate: {error}"))?;
    let roots = authorities(ca)?;
    let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms.all;
    // What it is for is for others to ask: one of the two is right.
    let good = [KeyUsage::client_auth(), KeyUsage::server_auth()].into_iter().any(|usage| {
        parsed.verify_for_usage(algorithms, &roots.roots, &[], UnixTime::now(), usage, None, None).is_ok()
    });
    if good { Ok(()) } else { Err(format!("the certificate is not signed by {}", ca.display())) }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

impl Configs {
    fn read(files: &Files, asks: Asks) -> Result<Self, String> {
        let (chain, key) = pair(&files.certificate, &files.key)?;
        let validity = chain.first().and_then(|own| Validity::of(own));
        let ca = files.ca.as_deref().map(authorities).transpose()?.map(Arc::new);
        let clients = match (&files.client_ca, asks) {
            (Some(own), Asks::Anybody) => Some(Arc::new(authorities(own)?)),
            _ => ca.clone(),
        };
        let broken = |error: rustls::Error| format!("TLS cannot be used: {error}");
        let unfit = |error| unfit(&files.certificate, &files.key, &error);
        let server = |speaks: Speaks| {
            let builder = ServerConfig::builder_with_provider(provider())
                .with_safe_default_protocol_versions()
                .map_err(broken)?;
            let builder = match clients.clone() {
                None => builder.with_no_client_auth(),
                Some(roots) => {
                    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
                    let unusable = |error: rustls::server::VerifierBuilderError| {
                        format!("`tls.ca` cannot be used: {error}")
                    };
                    let verifier: Arc<dyn ClientCertVerifier> = match (asks, speaks) {
                        (Asks::Anybody, _) | (_, Speaks::Http1) => {
                            verifier.allow_unauthenticated().build().map_err(unusable)?
                        }
                        (Asks::Balancers, _) => {
                            Arc::new(verify::Balancers(verifier.build().map_err(unusable)?))
                        }
                    };
                    builder.with_client_cert_verifier(verifier)
                }
            };
            let mut config = builder.with_single_cert(chain.clone(), key.clone_key()).map_err(unfit)?;
            config.alpn_protocols = speaks.protocols();
            Ok::<_, String>(Arc::new(config))
        };
        let [http1, http2, both] = ALL.map(server);
        let server = [http1?, http2?, both?];
        let to_runners = match ca {
            None => None,
            Some(roots) => {
                let builder = ClientConfig::builder_with_provider(provider())
                    .with_safe_default_protocol_versions()
                    .map_err(broken)?
                    .dangerous()
                    .with_custom_certificate_verifier(Arc::new(verify::Runners::new(roots, provider())));
                let mut config = builder.with_client_auth_cert(chain, key).map_err(unfit)?;
                config.alpn_protocols = Speaks::Http2.protocols();
                Some(Arc::new(config))
            }
        };
        Ok(Self { server, to_runners, validity })
    }
}

fn unfit(certificate: &Path, key: &Path, error: &rustls::Error) -> String {
    format!("{} and {} do not go together: {error}", certificate.display(), key.display())
}

fn unreadable(path: &Path, why: impl fmt::Display) -> String {
    format!("{} cannot be used: {why}", path.display())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(path).map_err(|error| unreadable(path, error))?;
    let all = read.collect::<Result<Vec<_>, _>>().map_err(|error| unreadable(path, error))?;
    if all.is_empty() { Err(unreadable(path, "there is no certificate in it")) } else { Ok(all) }
}

fn authorities(path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| unreadable(path, error))?;
    }
    Ok(roots)
}

fn pair(
    certificate: &Path,
    key: &Path,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), String> {
    // What a parser says of a key must not quote it: it names only what kind of thing is missing.
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable(key, error))?;
    Ok((certificates(certificate)?, secret))
}

#[cfg(test)]
pub(crate) mod tests;
