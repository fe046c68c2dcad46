//! The end of a session with a runner that goes: what both sides know of the calls that were on their way.

use stoker_proto::SESSION_VERSION;
use stoker_proto::runner::v1::{self as wire, engage_response as res};
use stoker_sandbox::select::Choice;

use crate::kit::{self, AMPLE, Fleet, LIMIT, Session, python};

async fn open(fleet: &Fleet) -> Session {
    Session::open_as(fleet.client().await, SESSION_VERSION).await
}

/// Ends a runner, and calls while it does; says what was the last that the runner has read. All that it has read has its outcome before that
/// word, whenever that comes.
async fn last_word(fleet: &Fleet, mut session: Session, settles: bool) -> (u64, u64) {
    let spec = python("");
    let running = session.offer(&spec, "echo", b"half", false, AMPLE).await;
    session.started(running).await;
    assert!(matches!(session.frame().await, res::Frame::Credit(_)));
    let calls = async {
        session.frame_of_draining().await;
        session.body(running, b" and half", true).await;
        assert_eq!(session.outcome(running).await.body, b"half and half");
        // Offers that were on their way when the runner said so.
        let mut open = Vec::new();
        for _ in 0..20 {
            open.push(session.offer(&spec, "echo", b"new", true, AMPLE).await);
        }
        let last = open.last().copied().unwrap();
        let mut closing = None;
        while let Ok(Some(message)) = tokio::time::timeout(LIMIT, session.receive.message()).await.unwrap() {
            assert_eq!(closing, None, "nothing follows the last word: {message:?}");
            match message.frame {
                Some(res::Frame::Refused(refused)) => {
                    assert_eq!(refused.reason(), wire::RefusalReason::Draining);
                    open.retain(|call| *call != refused.call);
                    if settles && open.is_empty() {
                        session.settle().await;
                    }
                }
                Some(res::Frame::Closing(word)) => closing = Some(word.last_offer),
                Some(res::Frame::Capacity(_)) | None => {}
                Some(other) => panic!("{other:?}"),
            }
        }
        let closing = closing.expect("a last word");
        assert!(
            open.iter().all(|call| *call > closing),
            "{open:?} were read, and have no outcome: {closing}"
        );
        (closing, last)
    };
    let ((), word) = tokio::join!(fleet.runner.stop(LIMIT), calls);
    word
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_hears_of_every_offer_before_it_goes() {
    let fleet = kit::fleet(Choice::Process, 512, 8).await;
    let session = open(&fleet).await;
    let (read, last) = last_word(&fleet, session, true).await;
    assert_eq!(read, last, "it waited for the balancer's word that nothing follows");
}

/// One that says nothing is not waited for for ever, and knows from the last word what became of its calls.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_balancer_does_not_hold_the_end() {
    let fleet = kit::fleet(Choice::Process, 512, 8).await;
    let session = open(&fleet).await;
    last_word(&fleet, session, false).await;
}

/// Who said that nothing follows does not offer: that would be a call of which nobody knows.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_of_a_drain_is_checked() {
    let fleet = kit::fleet(Choice::Process, 512, 8).await;
    let mut client = fleet.client().await;
    let (mut session, mut early) = (open(&fleet).await, open(&fleet).await);
    let ended = async |session: &mut Session| loop {
        match tokio::time::timeout(LIMIT, session.receive.message()).await.unwrap() {
            Ok(Some(message)) => assert!(matches!(message.frame, Some(res::Frame::Capacity(_)))),
            Ok(None) => panic!("it ended without a reason"),
            Err(status) => return status,
        }
    };
    early.settle().await;
    assert!(ended(&mut early).await.message().contains("no such Draining was said"));
    client.drain(wire::DrainRequest::default()).await.unwrap();
    session.frame_of_draining().await;
    session.settle().await;
    // Taken back, all begins anew.
    client.uncordon(wire::UncordonRequest {}).await.unwrap();
    session.until("it is ready", |c| c.state() == stoker_proto::v1::RunnerState::Ready).await;
    assert_eq!(session.call(&python(""), "echo", b"again").await.body, b"again");
    session.drains = false;
    client.drain(wire::DrainRequest::default()).await.unwrap();
    session.frame_of_draining().await;
    session.settle().await;
    session.offer(&python(""), "echo", b"late", true, AMPLE).await;
    assert!(ended(&mut session).await.message().contains("it was offered after Settled"));
    fleet.end().await;
}
