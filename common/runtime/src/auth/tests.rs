//! Who is known by what, and what they may.

use std::time::UNIX_EPOCH;

use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};

use super::*;

fn access(text: &str) -> Access {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    Access::read(file.path()).unwrap_or_else(|wrong| panic!("{wrong}"))
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

const NOW: u64 = 1_800_000_000;

#[test]
fn a_token_is_known_by_its_hash_until_its_time_has_passed() {
    let (token, hash) = new_token().unwrap();
    assert!(token.len() > 40 && new_token().unwrap().0 != token);
    let access = access(&format!(
        "tokens:\n  - {{name: ci, sha256: {hash}, expires: 2027-01-15T08:00:00Z, invoke: [shop, 'web-*'], observe: ['*']}}\n"
    ));
    let known = access.identify(Some(token.as_bytes()), None, at(NOW - 1)).unwrap();
    assert_eq!(known.name(), "ci");
    for (app, may) in
        [("shop", true), ("web-1", true), ("web-", true), ("shop2", false), ("web", false), ("", false)]
    {
        assert_eq!(known.may(Permission::Invoke, app), may, "{app}");
        assert!(!known.may(Permission::Manage, app) && known.may(Permission::Observe, app));
    }
    assert!(known.may_everywhere(Permission::Observe) && !known.may_everywhere(Permission::Invoke));
    assert_eq!(access.identify(Some(token.as_bytes()), None, at(NOW)), Err(Unknown::Over));
    for wrong in [&token[1..], &format!("{token}x"), &hash, "", &"x".repeat(100_000)] {
        assert_eq!(access.identify(Some(wrong.as_bytes()), None, at(0)), Err(Unknown::Wrong));
    }
    assert_eq!(access.identify(None, None, at(0)), Err(Unknown::Nothing));
    assert!(!format!("{access:?}").contains(&hash));
}

#[test]
fn a_certificate_is_known_by_a_name_and_a_wrong_token_is_not_made_good_by_it() {
    let access = access("certificates: [{name: alice, san: 'spiffe://stoker/client/alice', manage: [shop]}]");
    let peer = |name: &str| Peer { names: vec!["other".to_owned(), name.to_owned()] };
    let alice = peer("spiffe://stoker/client/alice");
    assert_eq!(access.identify(None, Some(&alice), at(0)).unwrap().name(), "alice");
    assert_eq!(access.identify(Some(b"x"), Some(&alice), at(0)), Err(Unknown::Wrong));
    assert_eq!(
        access.identify(None, Some(&peer("spiffe://stoker/client/alice2")), at(0)),
        Err(Unknown::Wrong)
    );
}

/// Signs tokens, and publishes its key.
struct Signer(EcdsaKeyPair);

impl Signer {
    fn new() -> Self {
        let random = SystemRandom::new();
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        Self(EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref(), &random).unwrap())
    }

    fn jwk(&self, id: &str) -> Value {
        let point = self.0.public_key().as_ref();
        json!({"kty": "EC", "crv": "P-256", "kid": id, "x": BASE64.encode(&point[1..33]), "y": BASE64.encode(&point[33..])})
    }

    fn sign(&self, head: &Value, claims: &Value) -> String {
        let signed = format!("{}.{}", BASE64.encode(head.to_string()), BASE64.encode(claims.to_string()));
        let sign = self.0.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", BASE64.encode(sign))
    }
}

fn with_issuer(keys: &Value) -> (tempfile::TempDir, Access) {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("keys.json"), json!({ "keys": keys }).to_string()).unwrap();
    let text = "jwt:\n  - issuer: https://login.example/\n    audience: stoker\n    jwks: keys.json\n    grants:\n      - {invoke: [public]}\n      - {when: {groups: dev}, manage: ['*']}\n      - {when: {scope: logs, admin: true}, observe: ['*']}\n";
    let path = directory.path().join("access.yaml");
    std::fs::write(&path, text).unwrap();
    let access = Access::read(&path).unwrap_or_else(|wrong| panic!("{wrong}"));
    (directory, access)
}

#[test]
fn a_token_of_an_issuer_is_good_for_what_its_claims_say() {
    let signer = Signer::new();
    let (_directory, access) = with_issuer(&json!([signer.jwk("k1"), {"kty": "oct", "k": "AAAA"}]));
    let head = json!({"alg": "ES256", "kid": "k1"});
    let claims = json!({
        "iss": "https://login.example/", "aud": ["other", "stoker"], "sub": "ada", "exp": NOW + 600, "nbf": NOW - 10,
        "groups": ["ops", "dev"], "scope": "calls logs",
    });
    let who = |token: &str| access.identify(Some(token.as_bytes()), None, at(NOW));
    let token = signer.sign(&head, &claims);
    for _ in 0..2 {
        let ada = who(&token).unwrap();
        assert_eq!(ada.name(), "ada");
        assert!(ada.may(Permission::Invoke, "public") && !ada.may(Permission::Invoke, "other"));
        assert!(ada.may_everywhere(Permission::Manage) && !ada.may(Permission::Observe, "public"));
    }
    assert_eq!(
        access.identify(Some(token.as_bytes()), None, at(NOW + 661)),
        Err(Unknown::Over),
        "also a remembered one"
    );

    let change = |key: &str, value: Value| {
        let mut claims = claims.clone();
        claims[key] = value;
        who(&signer.sign(&head, &claims)).err()
    };
    assert_eq!(change("aud", json!("other")), Some(Unknown::Wrong));
    assert_eq!(change("iss", json!("https://evil.example/")), Some(Unknown::Wrong));
    assert_eq!(change("exp", json!(NOW - 61)), Some(Unknown::Over));
    assert_eq!(change("exp", json!(NOW - 30)), None, "clocks differ");
    assert_eq!(change("exp", Value::Null), Some(Unknown::Wrong), "one that is good for ever is none");
    assert_eq!(change("nbf", json!(NOW + 120)), Some(Unknown::Wrong));
    assert_eq!(change("nbf", json!("soon")), Some(Unknown::Wrong));
    assert_eq!(change("sub", json!("")), Some(Unknown::Wrong));
}

#[test]
fn forged_tokens() {
    let (signer, other) = (Signer::new(), Signer::new());
    let (_directory, access) = with_issuer(&json!([signer.jwk("k1")]));
    let who = |token: &str| access.identify(Some(token.as_bytes()), None, at(NOW)).err();
    let claims = json!({"iss": "https://login.example/", "aud": "stoker", "sub": "ada", "exp": NOW + 600});
    let good = signer.sign(&json!({"alg": "ES256", "kid": "k1"}), &claims);
    assert_eq!(who(&good), None);
    for head in [
        json!({"alg": "none"}),
        json!({"alg": "HS256", "kid": "k1"}),
        json!({"alg": "ES384", "kid": "k1"}),
        json!({"alg": "RS256", "kid": "k1"}),
        json!({"alg": "ES256", "kid": "k1", "crit": ["b64"]}),
        json!({"kid": "k1"}),
    ] {
        assert_eq!(who(&signer.sign(&head, &claims)), Some(Unknown::Wrong), "{head}");
    }
    assert_eq!(who(&other.sign(&json!({"alg": "ES256", "kid": "k1"}), &claims)), Some(Unknown::Wrong));
    assert_eq!(who(&other.sign(&json!({"alg": "ES256", "kid": "k2"}), &claims)), Some(Unknown::KeyNotRead));
    let parts: Vec<&str> = good.split('.').collect();
    let richer = BASE64.encode(
        json!({"iss": "https://login.example/", "aud": "stoker", "sub": "root", "exp": NOW + 600})
            .to_string(),
    );
    for wrong in [
        format!("{}.{richer}.{}", parts[0], parts[2]),
        format!("{}.{}.", parts[0], parts[1]),
        format!("{}.{}", parts[0], parts[1]),
        format!("{good}."),
        "..".to_owned(),
        "\u{e9}.x.y".to_owned(),
    ] {
        assert_eq!(who(&wrong), Some(Unknown::Wrong), "{wrong}");
    }
}

#[test]
fn an_issuer_may_stand_there_for_several_audiences() {
    let signer = Signer::new();
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("keys.json"), json!({"keys": [signer.jwk("k")]}).to_string())
        .unwrap();
    let path = directory.path().join("access.yaml");
    let text = "jwt:\n  - {issuer: i, audience: people, jwks: keys.json, grants: [{observe: ['*']}]}\n  - {issuer: i, audience: robots, jwks: keys.json, grants: [{invoke: ['*']}]}\n";
    std::fs::write(&path, text).unwrap();
    let access = Access::read(&path).unwrap_or_else(|wrong| panic!("{wrong}"));
    assert_eq!(access.files(), [directory.path().join("keys.json"), directory.path().join("keys.json")]);
    let who = |audience: &str| {
        let claims = json!({"iss": "i", "aud": audience, "sub": "ada", "exp": NOW + 600});
        let token = signer.sign(&json!({"alg": "ES256", "kid": "k"}), &claims);
        let known = access.identify(Some(token.as_bytes()), None, at(NOW))?;
        Ok((known.may_everywhere(Permission::Observe), known.may_everywhere(Permission::Invoke)))
    };
    assert_eq!(who("people"), Ok((true, false)));
    assert_eq!(who("robots"), Ok((false, true)));
    assert_eq!(who("others"), Err(Unknown::Wrong));
}

#[test]
fn keys_of_several_kinds() {
    let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
    let pair = Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap();
    let key =
        json!({"kty": "OKP", "crv": "Ed25519", "use": "sig", "x": BASE64.encode(pair.public_key().as_ref())});
    let (_directory, access) = with_issuer(&json!([key]));
    let claims = json!({"iss": "https://login.example/", "aud": "stoker", "sub": "ada", "exp": NOW + 600});
    let signed = format!("{}.{}", BASE64.encode(r#"{"alg":"EdDSA"}"#), BASE64.encode(claims.to_string()));
    let token = format!("{signed}.{}", BASE64.encode(pair.sign(signed.as_bytes())));
    assert_eq!(access.identify(Some(token.as_bytes()), None, at(NOW)).unwrap().name(), "ada");
}

#[test]
fn access_keys_have_their_secrets_in_files_of_their_own() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("secret"), "wJalrXUtnFEMI/K7MDENG\n").unwrap();
    let path = directory.path().join("access.yaml");
    std::fs::write(&path, "access_keys: [{name: sdk, id: AKIA1, secret_file: secret, invoke: ['*']}]")
        .unwrap();
    let access = Access::read(&path).unwrap();
    let (secret, identity) = access.key("AKIA1").unwrap();
    assert_eq!((secret.reveal(), identity.name()), ("wJalrXUtnFEMI/K7MDENG", "sdk"));
    assert!(access.key("AKIA2").is_none() && access.has_keys());
    assert_eq!(format!("{secret:?}"), "a secret");
}

/// Serves what is in `keys` by TLS, and counts how often it was asked for.
async fn publish(
    listener: tokio::net::TcpListener,
    tls: Arc<crate::tls::Tls>,
    keys: Arc<Mutex<Value>>,
    asked: tokio::sync::watch::Sender<u32>,
) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = tls.accept(stream, crate::tls::Speaks::Http1).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        assert!(head.starts_with(b"GET /keys?v=1 HTTP/1.1\r\n"));
        let body = json!({ "keys": *keys.lock().unwrap() }).to_string();
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        asked.send_modify(|times| *times += 1);
    }
}

#[tokio::test]
async fn keys_come_from_a_url_and_a_key_that_is_not_known_is_asked_for() {
    let fleet = crate::tls::tests::Signer::new("login");
    let files = fleet.sign("login", &["localhost"]);
    let tls = crate::tls::Tls::load(files, crate::tls::Asks::Anybody).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (old, new) = (Signer::new(), Signer::new());
    let keys = Arc::new(Mutex::new(json!([old.jwk("old")])));
    let (asked, mut times) = tokio::sync::watch::channel(0);
    // Ends with the test's runtime.
    tokio::spawn(publish(listener, tls, keys.clone(), asked));
    let path = fleet.path("access.yaml");
    let text = format!(
        "jwt: [{{issuer: i, audience: stoker, jwks: 'https://localhost:{port}/keys?v=1', ca: ca.pem}}]"
    );
    std::fs::write(&path, &text).unwrap();
    let access = Access::read(&path).unwrap_or_else(|wrong| panic!("{wrong}"));
    let claims = json!({"iss": "i", "aud": "stoker", "sub": "ada", "exp": NOW + 600});
    let token = |signer: &Signer, id: &str| signer.sign(&json!({"alg": "ES256", "kid": id}), &claims);
    let who = |access: &Access, token: &str| access.identify(Some(token.as_bytes()), None, at(NOW)).err();
    let first = token(&old, "old");
    assert_eq!(who(&access, &first), Some(Unknown::KeyNotRead));
    let tasks = tokio_util::task::TaskTracker::new();
    let keeper = Keeper::start(access.issuers(), &tasks);
    access.issuers()[0].refresh(Duration::from_secs(60)).await;
    assert_eq!(who(&access, &first), None);
    // Another key: known once it was asked for, which is not done more often than it may be.
    *keys.lock().unwrap() = json!([new.jwk("new")]);
    let second = token(&new, "new");
    assert_eq!(who(&access, &second), Some(Unknown::KeyNotRead));
    let ada = access.identify(Some(first.as_bytes()), None, at(NOW)).unwrap();
    assert_eq!(ada.gone(at(NOW)), None);
    access.issuers()[0].refresh(Duration::from_secs(60)).await;
    assert_eq!(who(&access, &second), None);
    // What the withdrawn key has signed is worth nothing any more, whoever has shown it before and however long it says that it is good.
    assert_eq!(who(&access, &first), Some(Unknown::KeyNotRead));
    assert_eq!(ada.gone(at(NOW)), Some(Unknown::KeyNotRead));
    times.wait_for(|times| *times == 2).await.unwrap();
    // A file that is read again has the keys already.
    let again = Access::read(&path).unwrap();
    again.take_over(&access);
    assert_eq!(who(&again, &second), None);
    drop(keeper);
    tasks.close();
    tasks.wait().await;
}
