//! Secrets that are replaced while containers are warm.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Instant;

use stoker_core::function::FunctionSpec;
use stoker_core::secret::SecretName;
use stoker_runner::Config;
use stoker_sandbox::select::Choice;

use crate::kit::{self, AMPLE, LIMIT, Session, on_both_drivers, python};

on_both_drivers!(a_replaced_secret_reaches_containers_that_are_warm);

/// Swaps what a secret of Kubernetes has, as it does.
pub fn swap(secret: &Path, version: &str, value: &str) {
    std::fs::create_dir_all(secret.join(version)).unwrap();
    std::fs::write(secret.join(version).join("password"), value).unwrap();
    symlink(version, secret.join("..tmp")).unwrap();
    std::fs::rename(secret.join("..tmp"), secret.join("..data")).unwrap();
}

/// What its next call sees of its secret, and in which container.
pub async fn sees(session: &mut Session, spec: &FunctionSpec) -> (String, String) {
    let answer = session.call(spec, "env", b"PASSWORD").await;
    assert!(answer.code() == "OK" && answer.refused.is_none(), "{answer:?}");
    let container = answer.container().to_owned();
    (String::from_utf8(answer.body).unwrap(), container)
}

/// Calls until it sees this, and says in which container.
pub async fn until_it_sees(session: &mut Session, spec: &FunctionSpec, former: &str, value: &str) -> String {
    let begun = Instant::now();
    loop {
        match sees(session, spec).await {
            (seen, container) if seen == value => return container,
            (seen, _) => assert_eq!(seen, former),
        }
        assert!(begun.elapsed() < LIMIT, "calls never see {value}");
    }
}

async fn a_replaced_secret_reaches_containers_that_are_warm(choice: Choice) {
    let (state, secrets) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let secret = secrets.path().join("test/db");
    swap(&secret, "..1", "first");
    symlink("..data/password", secret.join("password")).unwrap();
    let directory = Some(secrets.path().to_owned());
    let fleet = kit::start(Config { secrets: directory, ..kit::config(choice, 512, 8, state.path()) }).await;
    let (mut session, mut other) = (fleet.session().await, fleet.session().await);
    let mut spec = python("");
    spec.concurrency = 4;
    spec.secrets.insert("PASSWORD".into(), SecretName::parse("db/password").unwrap());
    // One call is in the middle of it, and others come and go, in the same container.
    let long = other.offer(&spec, "env", b"", false, AMPLE).await;
    let container = other.started(long).await.container;
    assert_eq!(sees(&mut session, &spec).await, ("first".to_owned(), container.clone()));
    swap(&secret, "..2", "second");
    let second = until_it_sees(&mut session, &spec, "first", "second").await;
    assert_ne!(second, container);
    // From here on the new value is all that calls see, but for the one that was there.
    other.body(long, b"PASSWORD", true).await;
    let answer = other.outcome(long).await;
    assert_eq!((answer.code(), &answer.body[..], answer.container()), ("OK", &b"first"[..], &*container));
    assert_eq!(sees(&mut session, &spec).await, ("second".to_owned(), second.clone()));
    let one = |c: &stoker_proto::v1::Capacity| {
        c.in_flight == 0 && c.total.unwrap().slots - c.free.unwrap().slots == 1
    };
    session.until("it ends with its last call", one).await;
    // Idle ones go at once, and again.
    swap(&secret, "..3", "third");
    assert_ne!(until_it_sees(&mut session, &spec, "second", "third").await, second);
    session.until("one is left", one).await;
    fleet.end().await;
}
