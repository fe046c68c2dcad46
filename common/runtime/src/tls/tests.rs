//! Who gets in with which certificate, and what happens when certificates are replaced.

use std::path::Path;

use futures_util::StreamExt as _;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

/// An authority and what it signs, as files.
pub(crate) struct Signer {
    directory: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Signer {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { directory, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A certificate with these names, URIs and hosts, in files of this name.
    pub(crate) fn sign(&self, file: &str, names: &[&str]) -> Files {
        let mut params = CertificateParams::default();
        for name in names {
            params.subject_alt_names.push(match name.contains("://") {
                true => SanType::URI((*name).try_into().unwrap()),
                false => SanType::DnsName((*name).try_into().unwrap()),
            });
        }
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let (path, key_path) = (self.path(&format!("{file}.pem")), self.path(&format!("{file}.key")));
        std::fs::write(&path, certificate.pem()).unwrap();
        std::fs::write(&key_path, key.serialize_pem()).unwrap();
        Files { certificate: path, key: key_path, ca: Some(self.path("ca.pem")), client_ca: None }
    }
}

/// What one who connects to `server` and who is served there see: the first byte, or why there is none.
async fn meet(
    server: &Tls,
    speaks: Speaks,
    connect: impl AsyncFnOnce(TcpStream) -> io::Result<Secured>,
) -> (io::Result<Option<Arc<Peer>>>, io::Result<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serve = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = server.accept(stream, speaks).await?;
        stream.write_all(b"x").await?;
        stream.flush().await?;
        let peer = stream.peer().cloned();
        // Until the other side has it.
        stream.read_to_end(&mut Vec::new()).await.ok();
        Ok(peer)
    };
    let ask = async {
        let mut stream = connect(TcpStream::connect(address).await.unwrap()).await?;
        // With TLS 1.3 a client that is not let in learns it when it reads.
        stream.read_exact(&mut [0]).await.map(drop)
    };
    tokio::join!(serve, ask)
}

#[tokio::test]
async fn a_runner_takes_balancers_of_its_fleet_alone() {
    let (fleet, other) = (Signer::new("fleet"), Signer::new("other"));
    let runner = Tls::load(fleet.sign("r", &["spiffe://stoker/runner/r1"]), Asks::Balancers).unwrap();
    let of = |signer: &Signer, names: &[&str]| {
        let mut files = signer.sign("b", names);
        files.ca = Some(fleet.path("ca.pem"));
        Tls::load(files, Asks::Anybody).unwrap()
    };
    let balancer = of(&fleet, &["spiffe://stoker/balancer/b1"]);
    let (served, asked) =
        meet(&runner, Speaks::Http2, async |stream| balancer.connect_runner("r1", stream).await).await;
    asked.unwrap();
    assert_eq!(served.unwrap().unwrap().is(Role::Balancer), Some("b1"));

    let client = of(&fleet, &["spiffe://stoker/client/balancer"]);
    let runner_too = of(&fleet, &["spiffe://stoker/runner/r2"]);
    let nobody = of(&fleet, &["balancer.example"]);
    let stranger = of(&other, &["spiffe://stoker/balancer/b1"]);
    for (who, tls) in
        [("a client", client), ("a runner", runner_too), ("no role", nobody), ("a stranger", stranger)]
    {
        let (served, asked) =
            meet(&runner, Speaks::Http2, async |stream| tls.connect_runner("r1", stream).await).await;
        assert!(served.is_err() && asked.is_err(), "{who}: {served:?} {asked:?}");
    }
    // Nor anybody without a certificate.
    let config = Arc::new(client_config(&fleet.path("ca.pem")));
    let (served, asked) =
        meet(&runner, Speaks::Http2, async |stream| connect(config, "r1", stream).await).await;
    assert!(served.is_err() && asked.is_err());
    // But at the admin port: a kubelet has none, and a scraper has a token.
    let config = Arc::new(super::client(Some(&fleet.path("ca.pem")), None, Speaks::Http1).unwrap());
    let runner = Tls::load(fleet.sign("admin", &["r1.example"]), Asks::Balancers).unwrap();
    let (served, asked) =
        meet(&runner, Speaks::Http1, async |stream| connect(config, "r1.example", stream).await).await;
    asked.unwrap();
    assert!(served.unwrap().is_none(), "nobody in particular");
}

fn client_config(ca: &Path) -> ClientConfig {
    client(Some(ca), None, Speaks::Http2).unwrap()
}

#[tokio::test]
async fn a_balancer_goes_to_the_runner_that_it_means() {
    let (fleet, other) = (Signer::new("fleet"), Signer::new("other"));
    let balancer = Tls::load(fleet.sign("b", &["spiffe://stoker/balancer"]), Asks::Anybody).unwrap();
    let serves = |signer: &Signer, names: &[&str]| {
        let mut files = signer.sign("r", names);
        files.ca = Some(fleet.path("ca.pem"));
        Tls::load(files, Asks::Anybody).unwrap()
    };
    for (names, good) in [
        (&["spiffe://stoker/runner/r1"][..], true),
        (&["spiffe://stoker/runner"], true),
        (&["spiffe://stoker/runner/r2"], false),
        (&["spiffe://stoker/balancer/r1"], false),
        (&["spiffe://stoker/client/r1"], false),
        (&["r1", "runner"], false),
    ] {
        let runner = serves(&fleet, names);
        let (_, asked) =
            meet(&runner, Speaks::Http2, async |stream| balancer.connect_runner("r1", stream).await).await;
        assert_eq!(asked.is_ok(), good, "{names:?}: {asked:?}");
        let says = asked.map_err(|error| error.to_string()).err().unwrap_or_default();
        assert!(good || says.contains("is not that of"), "{says}");
    }
    let stranger = serves(&other, &["spiffe://stoker/runner/r1"]);
    let (_, asked) =
        meet(&stranger, Speaks::Http2, async |stream| balancer.connect_runner("r1", stream).await).await;
    assert!(asked.is_err());
}

#[tokio::test]
async fn a_client_looks_at_the_host_and_may_show_a_certificate() {
    let fleet = Signer::new("fleet");
    let mut files = fleet.sign("b", &["lb.example", "spiffe://stoker/balancer"]);
    let stranger = Signer::new("other");
    files.client_ca = Some(fleet.path("ca.pem"));
    let balancer = Tls::load(files, Asks::Anybody).unwrap();
    let plain = Arc::new(client_config(&fleet.path("ca.pem")));
    let ask = async |config: &Arc<ClientConfig>, host: &'static str| {
        let config = config.clone();
        meet(&balancer, Speaks::Both, async move |stream| connect(config, host, stream).await).await
    };
    let (served, asked) = ask(&plain, "lb.example").await;
    assert!(asked.is_ok() && served.unwrap().is_none(), "one without a certificate is nobody yet");
    let (_, asked) = ask(&plain, "other.example").await;
    assert!(asked.is_err(), "the certificate is another host's");
    for (signer, good) in [(&fleet, true), (&stranger, false)] {
        let Files { certificate, key, .. } = signer.sign("c", &["spiffe://stoker/client/alice"]);
        let ca = fleet.path("ca.pem");
        let config = Arc::new(client(Some(&ca), Some((&certificate, &key)), Speaks::Http2).unwrap());
        let (served, asked) = ask(&config, "lb.example").await;
        assert_eq!(asked.is_ok(), good);
        let name = served.ok().flatten().and_then(|peer| peer.is(Role::Client).map(str::to_owned));
        assert_eq!(name.as_deref(), good.then_some("alice"), "a certificate that is not good lets nobody in");
    }
}

#[tokio::test]
async fn new_files_are_used_and_half_of_a_pair_is_not() {
    let fleet = Signer::new("fleet");
    let files = fleet.sign("b", &["one.example"]);
    let balancer = Tls::load(files.clone(), Asks::Anybody).unwrap();
    let config = Arc::new(client_config(&fleet.path("ca.pem")));
    let reaches = async |host: &'static str| {
        let config = config.clone();
        meet(&balancer, Speaks::Both, async move |stream| connect(config, host, stream).await).await.1.is_ok()
    };
    assert!(reaches("one.example").await);
    fleet.sign("new", &["two.example"]);
    std::fs::copy(fleet.path("new.pem"), &files.certificate).unwrap();
    let why = balancer.reload().unwrap_err();
    assert!(why.contains("do not go together"), "{why}");
    assert!(reaches("one.example").await, "what was read before stays");
    std::fs::copy(fleet.path("new.key"), &files.key).unwrap();
    balancer.reload().unwrap();
    assert!(reaches("two.example").await && !reaches("one.example").await);
}

#[test]
fn files_that_cannot_be_used_are_named_and_a_key_is_not_quoted() {
    let fleet = Signer::new("fleet");
    let files = fleet.sign("b", &["one.example"]);
    let wrong = |files: Files| Tls::load(files, Asks::Anybody).err().unwrap();
    assert!(wrong(Files { ca: Some("/nowhere/ca.pem".into()), ..files.clone() }).contains("/nowhere/ca.pem"));
    std::fs::write(&files.key, "secret words").unwrap();
    let why = wrong(files.clone());
    assert!(why.contains("b.key") && !why.contains("secret words"), "{why}");
    let swapped = Files { certificate: files.key.clone(), key: files.certificate.clone(), ..files };
    assert!(!wrong(swapped).is_empty());
}

#[tokio::test]
async fn a_handshake_that_stands_still_holds_up_nobody() {
    let fleet = Signer::new("fleet");
    let balancer = Tls::load(fleet.sign("b", &["one.example"]), Asks::Anybody).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut incoming = Incoming::new(listener, Some(balancer), Speaks::Both);
    let mut silent = Vec::new();
    // More than there are places for.
    for _ in 0..20 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let config = Arc::new(client_config(&fleet.path("ca.pem")));
    let stream = TcpStream::connect(address).await.unwrap();
    let (served, asked) = tokio::join!(incoming.next(), connect(config, "one.example", stream));
    assert!(asked.is_ok() && served.unwrap().unwrap().is_tls());
    // Those that came first had to go for it.
    let (mut gone, mut byte) = (silent.remove(0), [0]);
    tokio::select! {
        end = gone.read(&mut byte) => assert_eq!(end.unwrap(), 0),
        _ = incoming.next() => panic!("nobody else is done"),
    }
}

/// A port that is to end knows by this whether somebody stands in its queue of whom nobody has heard yet.
#[tokio::test]
async fn who_was_let_in_by_the_system_is_expected() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut incoming = Incoming::new(listener, None, Speaks::Both);
    assert!(!incoming.is_expecting());
    let _client = std::net::TcpStream::connect(address).unwrap();
    assert!(incoming.is_expecting());
    incoming.next().await.unwrap().unwrap();
    assert!(!incoming.is_expecting());
}
