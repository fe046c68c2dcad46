//! Who may have an image, and who gets to see a password.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http_body_util::Full;
use serde_json::json;
use stoker_image::Fault;

use crate::kit::{Made, Place, file};
use crate::registry::{Act, Asked, Gate, PASSWORD, Registry, USER, answer, credentials, empty, pull};

fn place() -> Place {
    Place::with(|config| config.registries.credentials = Some(config.directory.with_file_name("credentials")))
}

fn image() -> Made {
    Made::new(&[&[file("secret", "sauce")]])
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
}

#[tokio::test]
async fn a_password_opens_a_registry() {
    let Some(registry) = Registry::with_password() else { return };
    registry.push("app", "1", &image());
    let place = place();
    let (directory, host) = (place.path("credentials"), registry.address.to_string());
    credentials(
        &directory,
        "right",
        &host,
        json!({"auth": BASE64_STANDARD.encode(format!("{USER}:{PASSWORD}"))}),
    );
    credentials(&directory, "plain", &host, json!({"username": USER, "password": PASSWORD}));
    credentials(&directory, "wrong", &host, json!({"username": USER, "password": "wrong-battery"}));
    credentials(&directory, "token", &host, json!({"identitytoken": "wrong-battery"}));
    credentials(
        &directory,
        "elsewhere",
        "other.example",
        json!({"username": USER, "password": "wrong-battery"}),
    );
    std::fs::write(directory.join("broken"), "{\"auths\": {\"x\": wrong-battery").unwrap();

    let tag = registry.image("app:1");
    let cases = [
        (None, Fault::Denied, "name `credentials`"),
        (Some("wrong"), Fault::Denied, "does not take the credentials `wrong`"),
        (Some("token"), Fault::Image, "are a token"),
        (Some("elsewhere"), Fault::Image, "have none for"),
        (Some("missing"), Fault::Image, "no credentials `missing`"),
        (Some("../../etc/passwd"), Fault::Image, "not a name"),
        (Some("broken"), Fault::Store, "not like Docker's"),
    ];
    for (name, fault, says) in cases {
        let error =
            pull(&place.store, &tag, name).await.err().unwrap_or_else(|| panic!("{name:?}: it was given"));
        assert!(error.fault == fault && error.message.contains(says), "{name:?}: {error}");
        assert!(!format!("{error} {error:?}").contains("battery"), "{error:?}");
    }
    for name in ["right", "plain"] {
        let prepared = pull(&place.store, &tag, Some(name)).await.unwrap();
        assert_eq!(std::fs::read_to_string(prepared.root.join("secret")).unwrap(), "sauce");
    }
    let without = Place::new();
    let error = pull(&without.store, &tag, Some("right")).await.err().unwrap();
    assert!(error.message.contains("no directory of credentials"), "{error}");
}

/// Docker's helpers are programs: found where this process finds programs, so the test goes on in one that finds its own.
#[tokio::test]
async fn a_helper_opens_a_registry() {
    let place = place();
    let directory = place.path("credentials");
    if std::env::var_os("STOKER_TEST_HELPERS").is_none() {
        let programs = place.path("programs");
        std::fs::create_dir_all(&programs).unwrap();
        let answer = json!({"ServerURL": "", "Username": USER, "Secret": PASSWORD});
        for (name, script) in [
            // It is asked for the registry that it is to be used at.
            ("good", format!("read host; case \"$1 $host\" in \"get 127.0.0.1:\"*) echo '{answer}' ;; esac")),
            ("refusing", "echo hidden-battery; exit 1".to_owned()),
            ("babbling", "echo hidden-battery".to_owned()),
            ("endless", "cat /dev/zero".to_owned()),
        ] {
            let path = programs.join(format!("docker-credential-{name}"));
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
        let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "auth::a_helper_opens_a_registry", "--nocapture"])
            .env("STOKER_TEST_HELPERS", "1")
            .env("PATH", path)
            .status();
        assert!(status.unwrap().success());
        return;
    }
    let Some(registry) = Registry::with_password() else { return };
    registry.push("app", "1", &image());
    let (tag, host) = (registry.image("app:1"), registry.address.to_string());
    std::fs::create_dir_all(&directory).unwrap();
    let write = |name: &str, content: serde_json::Value| {
        std::fs::write(directory.join(name), content.to_string()).unwrap();
    };
    let wrong = json!({"username": USER, "password": "wrong-battery"});
    // The program of a registry comes first, then what is written here, then the program for all others.
    write(
        "by-registry",
        json!({"auths": {&host: wrong}, "credHelpers": {&host: "good"}, "credsStore": "refusing"}),
    );
    write("for-all", json!({"auths": {&host: {}}, "credsStore": "good"}));
    for name in ["by-registry", "for-all"] {
        pull(&place.store, &tag, Some(name)).await.unwrap();
    }
    for (name, says) in [
        ("refusing", "has none for"),
        ("babbling", "as a helper does"),
        ("endless", "has none for"),
        ("missing", "cannot be run"),
        ("../sh", "cannot be one's name"),
    ] {
        write("bad", json!({"credsStore": name}));
        let error = pull(&place.store, &tag, Some("bad")).await.err().unwrap();
        assert!(error.fault == Fault::Store && error.message.contains(says), "{name}: {error}");
        assert!(!format!("{error} {error:?}").contains("battery"), "{error:?}");
    }
}

/// A registry that wants tokens, and the server that gives them: each token is good for a few requests.
async fn token_gate(registry: &Registry, identity: Option<&'static str>) -> (Gate, Arc<AtomicUsize>) {
    let given = Arc::new(AtomicUsize::new(0));
    let (tokens, address) = (Arc::clone(&given), Arc::new(Mutex::new(String::new())));
    let (uses, realm) = (AtomicUsize::new(0), Arc::clone(&address));
    let rule = move |asked: &Asked| {
        if asked.path.starts_with("/token") {
            let scope = "scope=repository%3Aapp%3Apull";
            let fine = match identity {
                None => asked.authorization.as_deref() == Some(&basic(USER, PASSWORD)),
                Some(identity) => {
                    asked.method == "POST" && asked.path.contains(&format!("refresh_token={identity}"))
                }
            };
            if !fine || !asked.path.contains(scope) || !asked.path.contains("service=the%20registry") {
                return empty(answer(401));
            }
            let n = tokens.fetch_add(1, Ordering::Relaxed) + 1;
            uses.store(0, Ordering::Relaxed);
            let key = if n % 2 == 0 { "token" } else { "access_token" };
            return Act::Answer(
                answer(200).body(Full::from(json!({key: format!("t{n}")}).to_string())).unwrap(),
            );
        }
        let now = format!("Bearer t{}", tokens.load(Ordering::Relaxed));
        if asked.authorization.as_deref() == Some(&now) && uses.fetch_add(1, Ordering::Relaxed) < 2 {
            return Act::Pass;
        }
        let realm = realm.lock().unwrap();
        empty(answer(401).header(
            "www-authenticate",
            format!(
                r#"Bearer realm="http://{realm}/token",service="the registry",scope="repository:app:pull""#
            ),
        ))
    };
    let gate = Gate::open(registry.address, rule).await;
    *address.lock().unwrap() = gate.address.to_string();
    (gate, given)
}

#[tokio::test]
async fn tokens_are_asked_for_and_asked_for_again() {
    let Some(registry) = Registry::start() else { return };
    registry.push("app", "1", &image());
    let (gate, given) = token_gate(&registry, None).await;
    let place = place();
    let (directory, host) = (place.path("credentials"), gate.address.to_string());
    credentials(&directory, "right", &host, json!({"username": USER, "password": PASSWORD}));
    credentials(&directory, "wrong", &host, json!({"username": USER, "password": "wrong-battery"}));
    for (name, says) in
        [(None, "gives no token to those without"), (Some("wrong"), "does not take the credentials `wrong`")]
    {
        let error = pull(&place.store, &gate.image("app:1"), name).await.err().unwrap();
        assert!(error.fault == Fault::Denied && error.message.contains(says), "{error}");
        assert!(!error.message.contains("battery"), "{error}");
    }
    let prepared = pull(&place.store, &gate.image("app:1"), Some("right")).await.unwrap();
    assert_eq!(std::fs::read_to_string(prepared.root.join("secret")).unwrap(), "sauce");
    assert!(given.load(Ordering::Relaxed) >= 2, "one ran out on the way");
    for asked in gate.seen().iter().filter(|asked| asked.path.starts_with("/v2/")) {
        let sent = asked.authorization.as_deref().unwrap_or("Bearer");
        assert!(sent.starts_with("Bearer"), "the password is for the token server alone: {asked:?}");
    }
}

#[tokio::test]
async fn a_registry_that_repeats_a_secret_is_not_repeated() {
    let Some(registry) = Registry::start() else { return };
    for whole in [true, false] {
        let gate = Gate::open(registry.address, move |asked| {
            let Some(sent) = &asked.authorization else {
                return empty(answer(401).header("www-authenticate", "Basic realm=\"here\""));
            };
            let told = if whole { sent } else { PASSWORD };
            let said = json!({"errors": [{"code": "DENIED", "message": format!("not with {told}")}]});
            Act::Answer(answer(403).body(Full::from(said.to_string())).unwrap())
        })
        .await;
        let place = place();
        let auth = json!({"username": USER, "password": PASSWORD});
        credentials(&place.path("credentials"), "told", &gate.address.to_string(), auth);
        let error = pull(&place.store, &gate.image("app:1"), Some("told")).await.err().unwrap();
        assert!(error.fault == Fault::Denied && error.message.ends_with("(403 Forbidden)"), "{error}");
    }
}

#[tokio::test]
async fn identity_tokens_give_tokens() {
    let Some(registry) = Registry::start() else { return };
    registry.push("app", "1", &image());
    let (gate, _) = token_gate(&registry, Some("an-identity")).await;
    let place = place();
    credentials(
        &place.path("credentials"),
        "id",
        &gate.address.to_string(),
        json!({"identitytoken": "an-identity"}),
    );
    pull(&place.store, &gate.image("app:1"), Some("id")).await.unwrap();
}

#[tokio::test]
async fn a_password_is_not_taken_along_to_another_host() {
    let Some(registry) = Registry::with_password() else { return };
    registry.push("app", "1", &image());
    // The other host knows the way in by itself, as the addresses that are signed for a storage do.
    let other = Registry::start().unwrap();
    other.push("app", "1", &image());
    let storage = Gate::open_at("127.0.0.2:0", other.address, |_| Act::Pass, None).await;
    let to = storage.address;
    let gate = Gate::open(registry.address, move |asked| {
        if asked.path.contains("/blobs/") && asked.authorization.is_some() {
            return empty(
                answer(307).header("location", format!("http://{to}{}?signature=wrong-battery", asked.path)),
            );
        }
        Act::Pass
    })
    .await;
    let place = place();
    let auth = json!({"username": USER, "password": PASSWORD});
    credentials(&place.path("credentials"), "right", &gate.address.to_string(), auth);
    pull(&place.store, &gate.image("app:1"), Some("right")).await.unwrap();
    let seen = storage.seen();
    assert!(!seen.is_empty() && seen.iter().all(|asked| asked.authorization.is_none()), "{seen:#?}");
    assert!(gate.seen().iter().any(|asked| asked.authorization.as_deref() == Some(&basic(USER, PASSWORD))));

    // Where it leads nowhere, what was signed is not shown.
    drop(storage);
    let fresh = self::place();
    let auth = json!({"username": USER, "password": PASSWORD});
    credentials(&fresh.path("credentials"), "right", &gate.address.to_string(), auth);
    let error = pull(&fresh.store, &gate.image("app:1"), Some("right")).await.err().unwrap();
    assert!(error.fault == Fault::Registry && !error.message.contains("battery"), "{error}");
}

#[tokio::test]
async fn the_failure_of_one_is_not_that_of_another() {
    let Some(registry) = Registry::with_password() else { return };
    registry.push("app", "1", &image());
    let place = place();
    let host = registry.address.to_string();
    credentials(&place.path("credentials"), "right", &host, json!({"username": USER, "password": PASSWORD}));
    credentials(
        &place.path("credentials"),
        "wrong",
        &host,
        json!({"username": USER, "password": "wrong-battery"}),
    );
    let image = place.store.resolve(&registry.image("app:1"), Some("right")).await.unwrap();
    let ask = |name: &str| {
        let source =
            stoker_image::Source::Registry { image: image.clone(), credentials: Some(name.to_owned()) };
        let store = place.store.clone();
        async move { store.prepare(&source).await }
    };
    let (wrong, right, again) = tokio::join!(ask("wrong"), ask("right"), ask("wrong"));
    assert!(right.is_ok(), "{:?}", right.err());
    // Whether they came before it was there, or after, is the clock's.
    for error in [wrong, again].into_iter().filter_map(Result::err) {
        assert_eq!(error.fault, Fault::Denied);
    }
}
