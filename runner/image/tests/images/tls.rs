//! Registries over https: those whose certificate can be trusted, and no others.

use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::{PrivateKeyDer, pem::PemObject as _};
use stoker_image::Fault;
use tokio_rustls::TlsAcceptor;

use crate::kit::{Made, Place, file};
use crate::registry::{Act, Gate, Registry, answer, empty, pull};

/// This machine under a name that is not loopback's: those are asked without TLS.
const HERE: &str = "0.0.0.0";

/// A server's side of TLS, and the authority to trust, in a file.
fn certificates(directory: &Path, name: &str) -> (TlsAcceptor, std::path::PathBuf) {
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate().unwrap();
    let root = authority.self_signed(&key).unwrap();
    let authority = Issuer::new(authority, key);
    let own = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new([name.to_owned()]).unwrap().signed_by(&own, &authority).unwrap();
    let ca = directory.join(format!("{name}.pem"));
    std::fs::write(&ca, root.pem()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(own.serialize_pem().as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    (TlsAcceptor::from(Arc::new(config)), ca)
}

#[tokio::test]
async fn only_whom_the_authorities_know_is_trusted() {
    let Some(registry) = Registry::start() else { return };
    registry.push("app", "1", &Made::new(&[&[file("x", "y")]]));
    let directory = tempfile::tempdir().unwrap();
    let (server, ca) = certificates(directory.path(), HERE);
    let gate = Gate::open_at(&format!("{HERE}:0"), registry.address, |_| Act::Pass, Some(server)).await;

    let trusting = Place::with(|config| config.registries.ca = Some(ca.clone()));
    let prepared = pull(&trusting.store, &gate.image("app:1"), None).await.unwrap();
    assert_eq!(std::fs::read_to_string(prepared.root.join("x")).unwrap(), "y");

    let error = pull(&Place::new().store, &gate.image("app:1"), None).await.err().unwrap();
    assert!(error.fault == Fault::Registry && error.message.contains("cannot be trusted"), "{error}");

    let (other, _) = certificates(directory.path(), "registry.example");
    let gate = Gate::open_at(&format!("{HERE}:0"), registry.address, |_| Act::Pass, Some(other)).await;
    let error = pull(&trusting.store, &gate.image("app:1"), None).await.err().unwrap();
    assert!(error.message.contains("cannot be trusted"), "another's certificate: {error}");

    let plain = Gate::open_at(&format!("{HERE}:0"), registry.address, |_| Act::Pass, None).await;
    let error = pull(&trusting.store, &plain.image("app:1"), None).await.err().unwrap();
    assert!(error.fault == Fault::Registry && error.message.contains("`registry_without_tls`"), "{error}");
}

#[tokio::test]
async fn nothing_leads_from_tls_to_none() {
    let Some(registry) = Registry::start() else { return };
    registry.push("app", "1", &Made::new(&[&[file("x", "y")]]));
    let directory = tempfile::tempdir().unwrap();
    let (server, ca) = certificates(directory.path(), HERE);
    let plain = registry.address;
    let rule = move |asked: &crate::registry::Asked| match asked.path.contains("/blobs/") {
        true => empty(answer(307).header("location", format!("http://{plain}{}", asked.path))),
        false => Act::Pass,
    };
    let gate = Gate::open_at(&format!("{HERE}:0"), registry.address, rule, Some(server)).await;
    let place = Place::with(|config| config.registries.ca = Some(ca));
    let error = pull(&place.store, &gate.image("app:1"), None).await.err().unwrap();
    assert!(error.fault == Fault::Registry && error.message.contains("without TLS"), "{error}");

    // And no password is asked for from there.
    let rule = move |_: &crate::registry::Asked| {
        empty(answer(401).header("www-authenticate", format!("Bearer realm=\"http://{plain}/token\"")))
    };
    let (server, ca) = certificates(directory.path(), HERE);
    let gate = Gate::open_at(&format!("{HERE}:0"), registry.address, rule, Some(server)).await;
    let place = Place::with(|config| config.registries.ca = Some(ca));
    let error = pull(&place.store, &gate.image("app:1"), None).await.err().unwrap();
    assert!(error.fault == Fault::Registry && error.message.contains("without TLS"), "{error}");
}
