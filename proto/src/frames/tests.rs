use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, BufMut as _, Bytes};
use futures_util::{FutureExt as _, StreamExt as _};
use http::HeaderMap;
use http_body::{Body, Frame};
use proptest::prelude::*;
use prost::Message as _;
use tonic::Status;

use super::*;
use crate::runner::v1::engage_request::Frame as Ask;
use crate::runner::v1::{self as wire, EngageRequest, EngageResponse, engage_response::Frame as Tell};
use crate::v1::session_request::Frame as FromClient;
use crate::v1::session_response::Frame as ToClient;
use crate::v1::{
    self, InvokeRequest, InvokeResponse, InvokeStreamResponse, SessionRequest, SessionResponse,
    invoke_stream_response,
};

/// A body in given frames.
struct Cut(VecDeque<Frame<Bytes>>);

impl Body for Cut {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Poll::Ready(self.0.pop_front().map(Ok))
    }
}

/// What a body sends.
fn sent(mut body: impl Body<Data = Bytes, Error = Status> + Unpin) -> (Vec<Bytes>, Option<HeaderMap>) {
    let (mut data, mut trailers) = (Vec::new(), None);
    while let Some(frame) =
        std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).now_or_never().expect("it is there")
    {
        match frame.expect("no error").into_data() {
            Ok(frame) => data.push(frame),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    (data, trailers)
}

fn frames<M: Carries>(messages: Vec<Result<M, Status>>, answer: bool) -> (Vec<Bytes>, Option<HeaderMap>) {
    let messages = futures_util::stream::iter(messages);
    sent(if answer { Encoded::answer(messages) } else { Encoded::request(messages) })
}

/// The same bytes, cut every `every` bytes.
fn cut(frames: &[Bytes], every: usize, trailers: Option<HeaderMap>) -> Cut {
    let all: Bytes = frames.concat().into();
    let cuts = (0..all.len().div_ceil(every))
        .map(|n| Frame::data(all.slice(n * every..all.len().min((n + 1) * every))));
    Cut(cuts.chain(trailers.map(Frame::trailers)).collect())
}

fn read<M: Carries>(body: Cut, answer: bool) -> Vec<Result<M, Status>> {
    let decoded = if answer { Decoded::answer(body, 1 << 20) } else { Decoded::request(body, 1 << 20) };
    decoded.collect::<Vec<_>>().now_or_never().expect("all is there")
}

fn data() -> impl Strategy<Value = Bytes> {
    let length = prop_oneof![0usize..50, LONG - 2..LONG + 2, Just(64 << 10)];
    (any::<u8>(), length).prop_map(|(byte, length)| Bytes::from(vec![byte; length]))
}

/// Whatever is sent comes out, however it is cut; and the generated decoder reads it as well.
fn round<M: Carries + Clone + PartialEq>(messages: Vec<M>, every: usize) {
    for answer in [false, true] {
        let (sent, trailers) = frames(messages.iter().cloned().map(Ok).collect(), answer);
        assert_eq!(trailers.is_some(), answer);
        for body in [
            cut(&sent, every, trailers.clone()),
            Cut(sent.iter().cloned().map(Frame::data).chain(trailers.clone().map(Frame::trailers)).collect()),
        ] {
            let got: Vec<M> = read(body, answer).into_iter().map(|m| m.expect("a message")).collect();
            assert!(got == messages);
        }
        let all = sent.concat();
        let mut rest = &all[..];
        for message in &messages {
            assert_eq!(rest.get_u8(), 0);
            let length = rest.get_u32() as usize;
            assert!(M::decode(&rest[..length]).expect("a message") == *message);
            rest.advance(length);
        }
        assert!(rest.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn messages_survive_the_way(data in prop::collection::vec(data(), 0..6), every in 1usize..100_000, call in any::<u64>()) {
        let every = every.max(7);
        let text = || "text".to_owned();
        round(data.iter().flat_map(|data| [
            EngageRequest { frame: Some(Ask::Body(wire::Body { call, data: data.clone(), last: true, ..Default::default() })) },
            EngageRequest { frame: Some(Ask::Offer(wire::Offer { call, body: data.clone(), complete: true, traceparent: text(), ..Default::default() })) },
            EngageRequest { frame: Some(Ask::Credit(wire::Credit { call, bytes: 1 })) },
        ]).collect(), every);
        round(data.iter().flat_map(|data| [
            EngageResponse { frame: Some(Tell::Body(wire::Body { call, data: data.clone(), last: false, ..Default::default() })) },
            EngageResponse { frame: Some(Tell::Finished(Box::new(wire::Finished { call, body: data.clone(), container: text(), ..Default::default() }))) },
            EngageResponse { frame: None },
        ]).collect(), every);
        round(data.iter().flat_map(|data| [
            SessionRequest { call, frame: Some(FromClient::Start(v1::SessionStart { function: text(), body: data.clone(), timeout_ms: 7, ..Default::default() })) },
            SessionRequest { call, frame: Some(FromClient::Body(v1::SessionBody { data: data.clone(), last: true })) },
        ]).collect(), every);
        round(data.iter().flat_map(|data| [
            SessionResponse { call, frame: Some(ToClient::Body(v1::SessionBody { data: data.clone(), last: true })) },
            SessionResponse { call, frame: Some(ToClient::Finished(Box::new(v1::SessionFinished { runner: text(), body: data.clone(), ..Default::default() }))) },
        ]).collect(), every);
        round(data.iter().map(|data| InvokeStreamResponse {
            frame: Some(invoke_stream_response::Frame::Body(data.clone())),
        }).collect(), every);
    }

    /// Whatever comes ends in messages, in an error, or in the end; and nothing after that.
    #[test]
    fn no_bytes_break_it(bytes in prop::collection::vec(any::<u8>(), 0..400), every in 1usize..50) {
        for answer in [false, true] {
            let got = read::<SessionRequest>(cut(&[bytes.clone().into()], every, None), answer);
            let failed = got.iter().position(Result::is_err);
            prop_assert!(failed.is_none_or(|at| at + 1 == got.len()));
            prop_assert!(!answer || failed.is_some(), "an answer without a status is not complete");
        }
    }
}

#[test]
fn what_is_long_is_neither_copied_when_sent_nor_when_received() {
    let data = Bytes::from(vec![7; 64 << 10]);
    let message = |data: &Bytes| EngageRequest {
        frame: Some(Ask::Body(wire::Body { call: 1, data: data.clone(), last: true, ..Default::default() })),
    };
    let (sent, _) = frames(vec![Ok(message(&data))], false);
    assert_eq!(sent.len(), 2);
    assert_eq!(sent[1].as_ptr(), data.as_ptr());
    let body = Cut(sent.into_iter().map(Frame::data).collect());
    let Some(Ask::Body(got)) = read::<EngageRequest>(body, false).remove(0).expect("a message").frame else {
        panic!("another frame")
    };
    assert_eq!(got.data.as_ptr(), data.as_ptr());
    // A short one does not hold on to what it came in.
    let short = Bytes::from(vec![7; 100]);
    let (sent, _) = frames(vec![Ok(message(&short)), Ok(message(&short))], false);
    assert_eq!(sent.len(), 1, "those that are there go out together");
    let whole = sent[0].clone();
    let got = read::<EngageRequest>(Cut([Frame::data(whole.clone())].into()), false);
    assert!(got.len() == 2 && sent.len() == 1);
    drop(sent);
    assert!(whole.is_unique());
}

#[test]
fn an_answer_ends_as_it_was_ended() {
    let one = SessionResponse { call: 1, frame: None };
    let (sent, trailers) = frames(vec![Ok(one), Err(Status::aborted("a \u{e9}"))], true);
    let got = read::<SessionResponse>(cut(&sent, 3, trailers), true);
    let error = got[1].as_ref().expect_err("it was aborted");
    assert_eq!((got.len(), error.code(), error.message()), (2, tonic::Code::Aborted, "a \u{e9}"));
    // Cut off in the middle, compressed, too large.
    let whole =
        frames::<SessionResponse>(vec![Ok(SessionResponse { call: 300, frame: None })], false).0.concat();
    for (bytes, code) in [
        (&whole[..whole.len() - 1], None),
        (&whole[..3], None),
        (&[1, 0, 0, 0, 0], Some(tonic::Code::Unimplemented)),
        (&[0, 1, 0, 0, 0], Some(tonic::Code::OutOfRange)),
        (&[0, 0, 0, 0, 2, 0xff, 0xff], None),
    ] {
        for (is_answer, whose) in [(true, tonic::Code::Internal), (false, tonic::Code::InvalidArgument)] {
            let ended = is_answer.then(|| super::trailers(&Status::ok("")));
            let body = cut(&[Bytes::copy_from_slice(bytes)], 2, ended);
            let got = read::<SessionRequest>(body, is_answer);
            let error = got[0].as_ref().expect_err("not whole");
            assert_eq!(error.code(), code.unwrap_or(whose), "{bytes:?}");
        }
    }
}

#[test]
fn a_message_may_have_its_body_in_pieces() {
    let pieces = vec![Bytes::from(vec![1; LONG]), Bytes::from(vec![2; 5]), Bytes::from(vec![3; LONG])];
    let message = InvokeResponse { call_id: "id".into(), runner: "r".into(), ..Default::default() };
    let (sent, trailers) = sent(Whole::answer(message.clone(), pieces.clone()));
    assert_eq!(sent[1].as_ptr(), pieces[0].as_ptr());
    let expected = InvokeResponse { body: pieces.concat().into(), ..message.clone() };
    assert_eq!(InvokeResponse::decode(&sent.concat()[PREFIX..]), Ok(expected));
    for every in [1, 1000, LONG, 1 << 20] {
        let read = invoke_response(cut(&sent, every, trailers.clone()), 1 << 20);
        let (got, body) = read.now_or_never().expect("all is there").expect("an answer");
        assert_eq!((got, body.concat()), (message.clone(), pieces.concat()));
    }
    // Without a status it is none; and a status alone is one.
    for (frames, trailers, code) in [
        (&sent[..], None, tonic::Code::Unknown),
        (&[], trailers, tonic::Code::Internal),
        (&sent, Some(super::trailers(&Status::aborted("no"))), tonic::Code::Aborted),
        (&[], Some(super::trailers(&Status::aborted("no"))), tonic::Code::Aborted),
    ] {
        let read = invoke_response(cut(frames, 1000, trailers), 1 << 20).now_or_never();
        assert_eq!(read.expect("all is there").expect_err("no answer").code(), code);
    }
    let mut received = Received::default();
    sent.iter().cloned().for_each(|frame| received.push(frame));
    received.advance(sent[0].len());
    let got = received.pieces(LONG + 3);
    assert_eq!((got.len(), got[0].as_ptr(), &got[1][..]), (2, pieces[0].as_ptr(), &[2u8, 2, 2][..]));
    assert_eq!(received.remaining(), LONG + 2);
    assert_eq!(received.copy_to_bytes(3), [2u8, 2, 3][..]);
}

#[test]
fn an_invocation_is_read_in_the_pieces_in_which_it_came() {
    let head = v1::RequestHead { method: "PUT".into(), ..Default::default() };
    let body = Bytes::from((0..200_000u32).map(|n| n as u8).collect::<Vec<_>>());
    let message = InvokeRequest { function: "a/f".into(), head: Some(head), body, ..Default::default() };
    let mut bytes = vec![0];
    bytes.put_u32(message.encoded_len() as u32);
    message.encode(&mut bytes).expect("a vector grows");
    let bytes = Bytes::from(bytes);
    let (whole, trailers) = sent(Whole::request(message.clone(), vec![message.body.clone()]));
    assert!(whole.concat() == bytes && trailers.is_none());
    let read = |bytes: &[u8], every| {
        let body = cut(&[Bytes::copy_from_slice(bytes)], every, None);
        let Invoked { call, length, mut begun, rest } =
            invoke_request(body, 1 << 20).now_or_never().expect("all is there")?;
        for piece in
            rest.into_iter().flat_map(|rest| rest.collect::<Vec<_>>().now_or_never().expect("all is there"))
        {
            begun.push(piece?);
        }
        assert_eq!(begun.iter().map(Bytes::len).sum::<usize>(), length);
        Ok::<_, Status>((call, begun))
    };
    for every in [1, 100, 16 << 10, 128 << 10, 1 << 20] {
        let (got, pieces) = read(&bytes, every).expect("a message");
        assert!(pieces.concat() == message.body && pieces.len() <= 200_000usize.div_ceil(every) + 1);
        assert_eq!(got, InvokeRequest { body: Bytes::new(), ..message.clone() });
    }
    for wrong in [
        &bytes[..0],
        &bytes[..100],
        // The body is longer than the message, or there are fields of another kind in its place.
        &[0, 0, 0, 0, 3, 0x1a, 9, 1],
        &[0, 0, 0, 0, 2, 0x18, 9],
        &[0, 0, 0, 0, 3, 0x0a, 9, 1],
    ] {
        assert_eq!(read(wrong, 1).expect_err("wrong").code(), tonic::Code::InvalidArgument, "{wrong:?}");
    }
    // Unknown fields are passed over, and of several bodies the last counts, in short messages and in long ones.
    for text in [0, 20_000] {
        let message = |end: &[u8]| {
            let function = InvokeRequest { function: "f".repeat(text), ..Default::default() };
            let mut bytes = vec![0];
            bytes.put_u32((function.encoded_len() + end.len()) as u32);
            function.encode(&mut bytes).expect("a vector grows");
            bytes.extend_from_slice(end);
            bytes
        };
        let odd = message(&[0x1a, 1, 1, 0x1a, 1, 2, 0x78, 1]);
        let (request, body) = read(&odd, 1000).expect("a message");
        assert_eq!((body, request.function.len()), (vec![Bytes::from_static(&[2])], text));
        let long = read(&message(&[0x1a, 9, 1]), 1000).expect_err("the body ends behind its message");
        assert_eq!(long.code(), tonic::Code::InvalidArgument);
    }
}

/// The bytes of a message.
fn message(parts: &[&[u8]]) -> Bytes {
    let all = parts.concat();
    let mut bytes = vec![0];
    bytes.put_u32(all.len() as u32);
    bytes.extend_from_slice(&all);
    bytes.into()
}

#[test]
fn a_long_invocation_is_a_call_before_all_of_it_is_there() {
    let body = vec![7; 300_000];
    let before = InvokeRequest { function: "a/f".into(), ..Default::default() }.encode_to_vec();
    let field = InvokeRequest { body: body.clone().into(), ..Default::default() }.encode_to_vec();
    let whole = message(&[&before, &field]);
    let begin = |bytes: &Bytes, there: usize| {
        let body = cut(&[bytes.slice(..there)], 16 << 10, None);
        invoke_request(body, 1 << 20).now_or_never().expect("nothing more comes")
    };
    let invoked = begin(&whole, 200_000).expect("a call");
    let begun: usize = invoked.begun.iter().map(Bytes::len).sum();
    assert_eq!((invoked.call.function.as_str(), invoked.length), ("a/f", 300_000));
    assert!(begun < 150_000, "what is there is enough, and no more is read: {begun}");
    let rest: Vec<_> =
        invoked.rest.expect("more").collect::<Vec<_>>().now_or_never().expect("all that comes");
    let came: usize = rest.iter().flatten().map(Bytes::len).sum();
    assert!(begun + came + (whole.len() - 300_000) == 200_000 && rest.last().is_some_and(Result::is_err));
    // All of it, and then nothing.
    let rest = begin(&whole, whole.len()).expect("a call").rest.expect("more");
    let rest: Vec<_> = rest.collect::<Vec<_>>().now_or_never().expect("all of it");
    assert_eq!(begun + rest.into_iter().map(|piece| piece.expect("a piece").len()).sum::<usize>(), 300_000);
    // What has something behind its body, two bodies, or a long head, is read whole.
    let behind = message(&[&field, &before]);
    let twice = message(&[&field, &field]);
    let headed = InvokeRequest { function: "f".repeat(200_000), ..Default::default() }.encode_to_vec();
    let headed = message(&[&headed, &field]);
    for odd in [behind, twice, headed] {
        assert!(begin(&odd, 200_000).is_err());
        let invoked = begin(&odd, odd.len()).expect("a call");
        assert!(invoked.rest.is_none() && invoked.begun.concat() == body);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// However it is cut, what comes is what was sent.
    #[test]
    fn an_invocation_in_pieces_is_the_one_that_was_sent(
        length in prop_oneof![0usize..1000, 120_000usize..400_000], head in 0usize..140_000, every in 500usize..200_000,
    ) {
        let body: Bytes = (0..length).map(|n| n as u8).collect::<Vec<_>>().into();
        let call = InvokeRequest { function: "f".repeat(head), ..Default::default() };
        let (sent, _) = sent(Whole::request(call.clone(), vec![body.clone()]));
        let invoked = invoke_request(cut(&sent, every, None), 1 << 20).now_or_never().expect("all is there").expect("a call");
        let rest = invoked.rest.map(|rest| rest.map(|piece| piece.expect("a piece")).collect::<Vec<_>>());
        let rest = rest.map(|rest| rest.now_or_never().expect("all is there")).unwrap_or_default();
        prop_assert_eq!((invoked.call, invoked.length), (call, length));
        prop_assert!([invoked.begun, rest].concat().concat() == body);
    }
}
