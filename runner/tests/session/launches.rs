//! How containers come up, and what is said when they do not.

use stoker_core::function::{Network, Root};
use stoker_proto::runner::v1::{self as wire, engage_response as res};
use stoker_runner::Config;
use stoker_sandbox::select::Choice;

use crate::kit::{self, AMPLE, on_both_drivers, python, shell, warmth};

on_both_drivers!(launches_that_fail_are_precise, a_default_function_is_prepared_ahead);

async fn launches_that_fail_are_precise(choice: Choice) {
    let fleet = kit::fleet(choice, 512, 8).await;
    let mut session = fleet.session().await;
    let answer = session.call(&python("exit"), "", b"").await;
    assert_eq!(
        (answer.code(), answer.tail()),
        ("ERROR_CODE_FUNCTION_INIT_FAILED", "goodbye\n"),
        "{answer:?}"
    );
    assert!(answer.finished.error.unwrap().message.contains("status 3"));
    let mut never = python("never");
    never.init_timeout_ms = 300;
    assert_eq!(session.call(&never, "", b"").await.code(), "ERROR_CODE_FUNCTION_INIT_TIMEOUT");
    // A socket that nobody can connect to is its own mistake, told at once.
    let answer = session.call(&python("datagrams"), "", b"").await;
    assert_eq!(answer.code(), "ERROR_CODE_FUNCTION_INIT_FAILED", "{answer:?}");
    assert!(answer.finished.error.unwrap().message.contains("listen with SOCK_STREAM"));
    let mut large = python("");
    large.memory = 1 << 32;
    let answer = session.call(&large, "", b"").await;
    assert_eq!(answer.refusal(), Some(wire::RefusalReason::TooLarge));
    // Nothing of them is held.
    session.until("all is free", |c| c.free == c.total && c.in_flight == 0 && c.waiting == 0).await;
    fleet.end().await;
}

async fn a_default_function_is_prepared_ahead(choice: Choice) {
    let fleet = kit::fleet(choice, 512, 8).await;
    let mut session = fleet.session().await;
    let spec = shell("cat");
    let first = session.offer(&spec, "", b"", false, AMPLE).await;
    session.started(first).await;
    session.frame().await;
    session.until("another is there", |c| warmth(c, &spec).idle == 1).await;
    session.body(first, b"1", true).await;
    assert_eq!(session.outcome(first).await.body, b"1");
    let second = session.call(&spec, "", b"2").await;
    assert_eq!((&second.body[..], second.waited), (&b"2"[..], false), "{second:?}");
    fleet.end().await;
}

/// An image that does not come holds nothing that others could use; when it cannot be had, all who wait for it are told.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_under_way_takes_no_slot() {
    let state = tempfile::tempdir().unwrap();
    let fleet = kit::start(kit::config(Choice::Auto, 64, 1, state.path())).await;
    let mut session = fleet.session().await;
    // A registry that says nothing until it is told to go.
    let registry = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = registry.local_addr().unwrap();
    let mut image = shell("cat");
    let digest = "0".repeat(64);
    let name = format!("127.0.0.1:{}/silent@sha256:{digest}", address.port());
    image.root = Root::Image(stoker_core::ImageRef::parse(&name).unwrap());
    let first = session.offer(&image, "", b"", true, AMPLE).await;
    let second = session.offer(&image, "", b"", true, AMPLE).await;
    for _ in 0..2 {
        let frame = session.frame().await;
        assert!(matches!(frame, res::Frame::Accepted(_)), "{frame:?}");
    }
    let (connection, _) = tokio::time::timeout(kit::LIMIT, registry.accept()).await.unwrap().unwrap();
    session.until("both wait", |c| c.waiting == 2).await;
    assert_eq!(session.capacity.free, session.capacity.total, "the fetch holds something");
    // The one slot is somebody else's, meanwhile.
    let other = session.call(&shell("cat"), "", b"mine").await;
    assert_eq!((other.code(), &other.body[..]), ("OK", &b"mine"[..]), "{other:?}");
    // Whoever comes to it now is turned away, and in the end so is the fetch.
    drop((connection, registry));
    for (_, answer) in session.outcomes(vec![first, second]).await {
        assert!(answer.refused.is_some() || answer.code() != "OK", "{answer:?}");
    }
    session.until("nothing of it is held", |c| c.waiting == 0).await;
    fleet.end().await;
}

/// Nobody gets the host's network from a runner whose operator did not say so.
#[tokio::test(flavor = "multi_thread")]
async fn the_hosts_network_is_the_operators_to_give() {
    let state = tempfile::tempdir().unwrap();
    let mut spec = shell("cat");
    spec.network = Network::Host;
    let fleet = kit::start(kit::config(Choice::Auto, 64, 2, state.path())).await;
    let mut session = fleet.session().await;
    let answer = session.call(&spec, "", b"").await;
    assert_eq!(answer.refusal(), Some(wire::RefusalReason::TooLarge), "{answer:?}");
    assert!(answer.refused.unwrap().detail.contains("allow_host_network"));
    fleet.end().await;
    let config = Config { allow_host_network: true, ..kit::config(Choice::Auto, 64, 2, state.path()) };
    let fleet = kit::start(config).await;
    let mut session = fleet.session().await;
    let answer = session.call(&spec, "", b"out").await;
    assert_eq!((answer.code(), &answer.body[..]), ("OK", &b"out"[..]), "{answer:?}");
    fleet.end().await;
}

/// What this runner's sandboxes cannot do at all is said at once, by name, and never tried again and again.
#[tokio::test(flavor = "multi_thread")]
async fn what_no_sandbox_here_can_do_is_refused() {
    let mut image = shell("true");
    image.root = Root::Rootfs("/".into());
    let fleet = kit::fleet(Choice::Process, 512, 8).await;
    let mut session = fleet.session().await;
    let answer = session.call(&image, "", b"").await;
    assert_eq!(answer.refusal(), Some(wire::RefusalReason::TooLarge), "{answer:?}");
    let refused = answer.refused.unwrap();
    assert!(refused.detail.contains("as their root") && refused.retry_after.is_none(), "{refused:?}");
    session.until("nothing of it is held", |c| c.free == c.total && c.waiting == 0).await;
    fleet.end().await;
}

/// Nothing is left on disk by a runner that ends in order.
#[tokio::test(flavor = "multi_thread")]
async fn an_orderly_end_leaves_no_files() {
    for choice in [Choice::Auto, Choice::Process] {
        let state = tempfile::tempdir().unwrap();
        let fleet = kit::start(kit::config(choice, 512, 8, &state.path().join("runner"))).await;
        let mut session = fleet.session().await;
        assert_eq!(session.call(&python(""), "echo", b"x").await.code(), "OK");
        fleet.end().await;
        let left: Vec<_> = std::fs::read_dir(state.path()).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// A caller that leaves while its container starts: the container serves the next.
#[tokio::test(flavor = "multi_thread")]
async fn a_launch_that_its_cause_left_serves_the_next() {
    let fleet = kit::fleet(Choice::Auto, 64, 8).await;
    let mut session = fleet.session().await;
    let spec = python("");
    let first = session.offer(&spec, "pid", b"", true, AMPLE).await;
    assert!(matches!(session.frame().await, res::Frame::Accepted(_)));
    session.cancel(first, wire::CancelReason::CallerGone).await;
    let second = session.offer(&spec, "pid", b"", true, AMPLE).await;
    let mut answers = session.outcomes([first, second]).await;
    assert_eq!(answers.remove(&first).unwrap().refusal(), Some(wire::RefusalReason::Expired));
    let second = answers.remove(&second).unwrap();
    assert_eq!((second.code(), second.finished.timings.unwrap().cold), ("OK", false), "{second:?}");
    fleet.end().await;
}

/// A function that never comes up holds its own launches up, and nobody else's.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_never_comes_up_holds_nobody_up() {
    let fleet = kit::fleet(Choice::Auto, 512, 4).await;
    let mut session = fleet.session().await;
    let never = python("never");
    let stuck = session.offer(&never, "", b"", true, AMPLE).await;
    let other = session.offer(&python(""), "echo", b"x", true, AMPLE).await;
    session.cancel(stuck, wire::CancelReason::CallerGone).await;
    let answers = session.outcomes([stuck, other]).await;
    assert_eq!(answers[&other].body, b"x");
    // Stopping does not wait for it either.
    fleet.end().await;
}

/// The runner stops while a container starts: nothing is left, and the call is offered elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn stopping_ends_launches_and_gives_waiting_calls_away() {
    let fleet = kit::fleet(Choice::Auto, 512, 4).await;
    let mut session = fleet.session().await;
    let stuck = session.offer(&python("never"), "", b"", true, AMPLE).await;
    assert!(matches!(session.frame().await, res::Frame::Accepted(_)));
    let (answer, ()) = tokio::join!(session.outcome(stuck), fleet.end());
    assert_eq!(answer.refusal(), Some(wire::RefusalReason::Draining), "{answer:?}");
}

/// What was prepared for a call that never came goes at its idle timeout, and is not prepared again.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_prepared_in_vain_goes_for_good() {
    let fleet = kit::fleet(Choice::Auto, 512, 8).await;
    let mut session = fleet.session().await;
    let mut spec = shell("cat");
    spec.idle_timeout_ms = 1;
    assert_eq!(session.call(&spec, "", b"1").await.body, b"1");
    session.until("nothing of it is left", |c| c.functions.is_empty() && c.free == c.total).await;
    fleet.end().await;
}
