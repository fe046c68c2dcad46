use super::*;
use futures_util::{FutureExt as _, StreamExt as _};
use proptest::prelude::*;
use stoker_core::call::{CHUNK, Deadline, PIECE, REFILL, WINDOW, longest_piece};
use stoker_core::function::{FunctionName, FunctionSpec};
use stoker_core::ids::CallId;
use stoker_proto::SESSION_VERSION;
use wire::engage_response::Frame as F;

use crate::admission::Admission;
use crate::auth::Caller;
use crate::link::outbox::outbox;

fn call() -> Call {
    let name = FunctionName::new("a", "f").expect("a name");
    let spec = FunctionSpec::new(name, vec!["/bin/true".into()], "/".into());
    Call {
        id: CallId::new(),
        function: Known::alone(spec),
        head: v1::RequestHead::default(),
        deadline: Deadline::after(Duration::from_secs(60)),
        patience: None,
        admitted: Admission::new(1).enter(&Caller::default()).unwrap_or_else(|error| panic!("{error}")),
    }
}

fn offered(session: &Arc<Session>) -> LinkCall {
    let body = Bytes::from_static(b"x");
    let trace = TraceContext::default();
    session
        .offer(&call(), &Input::whole(body), How::default(), trace, InFlight::default())
        .expect("the session stands")
}

fn any_frame() -> impl Strategy<Value = F> {
    let size = prop_oneof![Just(0usize), 1usize..100, Just(CHUNK), Just(CHUNK + 1)];
    (0u8..8, 0u64..6, size).prop_map(|(kind, call, size)| {
        let data = Bytes::from(vec![0; size]);
        match kind {
            0 => F::Refused(Box::new(wire::Refused { call, ..Default::default() })),
            1 => F::Accepted(wire::Accepted { call, expected_wait: None }),
            2 => F::Ready(wire::Ready { call }),
            3 => F::Started(wire::Started { call, container: String::new() }),
            4 => F::Head(wire::Head { call, head: None, length: None }),
            5 => F::Body(wire::Body { call, data, last: false, ..Default::default() }),
            6 => F::Credit(wire::Credit { call, bytes: u32::MAX }),
            _ => F::Finished(Box::new(wire::Finished { call, body: data, ..Default::default() })),
        }
    })
}

proptest! {
    /// Whatever a runner sends, each call has exactly one end, which comes last, and no body beyond its window.
    #[test]
    fn one_end_for_every_call(
        frames in prop::collection::vec(any_frame(), 0..60), dropped in 0usize..5, starts in any::<bool>(),
    ) {
        let (out, _outgoing) = outbox();
        let session = Session::new(out, SESSION_VERSION, MAX_DEFINED);
        let mut calls: Vec<_> = (0..4).map(|_| Some(offered(&session))).collect();
        if let Some(call) = calls.get_mut(dropped) {
            *call = None;
        }
        for frame in frames {
            if session.receive(frame).is_err() {
                break;
            }
            if starts {
                calls.iter().flatten().for_each(LinkCall::start);
            }
        }
        session.lost("over");
        for mut call in calls.into_iter().flatten() {
            let (mut ends, mut bytes) = (0, 0);
            while let Some(event) = call.next().now_or_never() {
                prop_assert_eq!(ends, 0, "{:?} after the end", event);
                match event {
                    Event::Refused { .. } | Event::Lost { .. } => ends += 1,
                    Event::Finished(finished) => {
                        ends += 1;
                        bytes += finished.body.len();
                    }
                    Event::Body(piece) => bytes += piece.len(),
                    _ => {}
                }
            }
            prop_assert_eq!(ends, 1);
            prop_assert!(bytes <= WINDOW as usize);
        }
        prop_assert!(session.table().calls.is_empty());
        let trace = TraceContext::default();
        prop_assert!(session.offer(&call(), &Input::whole(Bytes::new()), How::default(), trace, InFlight::default()).is_none());
    }
}

/// What happens on a session that is asked to drain.
#[derive(Debug, Clone, Copy)]
enum Turn {
    Offer,
    /// One of the calls that are open has its outcome.
    End(usize),
    Drain,
    Resume,
}

fn any_turn() -> impl Strategy<Value = Turn> {
    prop_oneof![
        3 => Just(Turn::Offer),
        3 => any::<usize>().prop_map(Turn::End),
        1 => Just(Turn::Drain),
        1 => Just(Turn::Resume),
    ]
}

fn ready() -> F {
    let capacity = v1::Capacity { state: v1::RunnerState::Ready.into(), ..Default::default() };
    F::Capacity(Box::new(wire::CapacityChanged { capacity: Some(capacity) }))
}

proptest! {
    /// `Settled` is said once for a `Draining`, exactly when every call has its outcome, and no offer comes between it and the word that
    /// offers are taken again.
    #[test]
    fn a_runner_that_drains_is_told_when_nothing_follows(turns in prop::collection::vec(any_turn(), 0..60)) {
        let (out, mut outgoing) = outbox();
        let session = Session::new(out, SESSION_VERSION, MAX_DEFINED);
        let (mut links, mut open, mut offers) = (Vec::new(), Vec::new(), 0);
        // The number of the last `Draining`, whether it holds, and whether it was answered.
        let (mut number, mut drains, mut settled) = (0, false, false);
        for turn in turns {
            match turn {
                Turn::Offer => {
                    let trace = TraceContext::default();
                    let link = session.offer(&call(), &Input::whole(Bytes::new()), How::default(), trace, InFlight::default());
                    prop_assert_eq!(link.is_some(), !drains);
                    if let Some(link) = link {
                        offers += 1;
                        links.push(link);
                        open.push(offers);
                    }
                }
                Turn::End(which) if !open.is_empty() => {
                    let call = open.swap_remove(which % open.len());
                    let over = wire::Finished { call, ..Default::default() };
                    prop_assert!(session.receive(F::Finished(Box::new(over))).is_ok());
                }
                Turn::End(_) => {}
                Turn::Drain => {
                    number += 1;
                    (drains, settled) = (true, false);
                    let draining = wire::Draining { reason: String::new(), number };
                    prop_assert!(session.receive(F::Draining(draining)).is_ok());
                }
                Turn::Resume => {
                    drains = false;
                    prop_assert!(session.receive(ready()).is_ok());
                }
            }
            while let Some(Some(sent)) = outgoing.next().now_or_never() {
                match sent.frame {
                    Some(wire::engage_request::Frame::Settled(said)) => {
                        prop_assert!(drains && !settled && open.is_empty());
                        prop_assert_eq!(said.draining, number);
                        settled = true;
                    }
                    Some(wire::engage_request::Frame::Offer(_)) => prop_assert!(!settled || !drains),
                    _ => {}
                }
            }
            prop_assert_eq!(settled && drains, drains && open.is_empty());
        }
    }
}

/// What a runner says that it has not read goes elsewhere; of what it has read only it knows.
#[test]
fn a_last_word_tells_which_offers_were_not_read() {
    let (out, _outgoing) = outbox();
    let session = Session::new(out, SESSION_VERSION, MAX_DEFINED);
    let mut calls: Vec<_> = (0..3).map(|_| offered(&session)).collect();
    assert!(!session.said_last_word());
    session.receive(F::Closing(wire::Closing { last_offer: 2 })).unwrap_or_else(|v| panic!("{}", v.0));
    session.lost("it has gone");
    assert!(session.said_last_word());
    for (call, expected) in calls.iter_mut().zip([true, true, false]) {
        let last = std::iter::from_fn(|| call.next().now_or_never()).last();
        let Some(Event::Lost { may_have_started, .. }) = last else { panic!("{last:?}") };
        assert_eq!(may_have_started, expected);
    }
}

#[test]
fn a_loss_says_who_may_have_started() {
    let (out, _outgoing) = outbox();
    let session = Session::new(out, SESSION_VERSION, MAX_DEFINED);
    let mut calls: Vec<_> = (0..4).map(|_| offered(&session)).collect();
    let say = |frame| session.receive(frame).unwrap_or_else(|violation| panic!("{}", violation.0));
    for call in 2..=4 {
        say(F::Accepted(wire::Accepted { call, expected_wait: None }));
    }
    (3..=4).for_each(|call| say(F::Ready(wire::Ready { call })));
    calls[3].start();
    session.lost("gone");
    // Offered and silent, waiting, held, told to start.
    for (call, expected) in calls.iter_mut().zip([true, false, false, true]) {
        let last = std::iter::from_fn(|| call.next().now_or_never()).last();
        let Some(Event::Lost { may_have_started, .. }) = last else { panic!("{last:?}") };
        assert_eq!(may_have_started, expected);
    }
}

#[test]
fn an_answer_keeps_to_its_window() {
    // A runner of an earlier release gives shorter pieces, and less of them.
    for version in [2, SESSION_VERSION] {
        let (out, _outgoing) = outbox();
        let session = Session::new(out, version, MAX_DEFINED);
        let mut call = offered(&session);
        let window = stoker_proto::window(version);
        let piece = longest_piece(window);
        assert_eq!(call.upload().longest_piece(), piece);
        let body = |length| {
            F::Body(wire::Body { call: 1, data: vec![0; length].into(), last: false, ..Default::default() })
        };
        assert!(session.receive(F::Head(wire::Head { call: 1, head: None, length: None })).is_ok());
        assert_eq!(window as usize % piece, 0, "no piece is cut in two");
        for _ in 0..window as usize / piece {
            assert!(session.receive(body(piece)).is_ok());
        }
        let due = (REFILL as usize).div_ceil(piece);
        (0..due).for_each(|_| call.consumed(piece));
        for _ in 0..due {
            assert!(session.receive(body(piece)).is_ok(), "what was read was given back");
        }
        let violation = session.receive(body(1)).expect_err("over the window");
        assert!(violation.0.contains("0 are allowed"), "{}", violation.0);
        let violation = session.receive(body(PIECE + 1)).expect_err("too long");
        assert!(violation.0.contains("at most 130048 are allowed"), "{}", violation.0);
    }
}
