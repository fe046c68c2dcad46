//! `application/vnd.amazon.eventstream`: an answer as it comes, and how it ended, in messages with checksums.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{BufMut as _, Bytes, BytesMut};
use serde_json::{Map, Value};
use stoker_core::error::{Blame, Error};

use super::invoke::report;

/// The type of such an answer.
pub const MEDIA_TYPE: &str = "application/vnd.amazon.eventstream";

/// The last lines of a call's log, once they are wanted.
pub type Log = Pin<Box<dyn Future<Output = String> + Send>>;

/// What goes out: pieces as they come, and one event at the end.
pub struct Events {
    ready: VecDeque<Bytes>,
    /// Why the call failed, if it did.
    failed: Option<Error>,
    /// What the last event says.
    outcome: Map<String, Value>,
    log: Option<Log>,
    /// The last event has been made.
    over: bool,
}

impl Events {
    /// `log`: asked for when the answer has ended.
    pub fn new(log: Option<Log>) -> Self {
        Self { ready: VecDeque::new(), failed: None, outcome: Map::new(), log, over: false }
    }

    /// The next frame, if one is there.
    pub fn next(&mut self) -> Option<Bytes> {
        self.ready.pop_front()
    }

    /// A piece of the answer.
    pub fn piece(&mut self, data: Bytes) {
        self.message("PayloadChunk", "application/octet-stream", data);
    }

    /// The call failed.
    pub fn fail(&mut self, error: &Error) {
        let code = if error.blame() == Blame::Function { "Unhandled" } else { "ServiceException" };
        let details = report(error);
        self.outcome.insert("ErrorCode".to_owned(), code.into());
        self.outcome.insert("ErrorDetails".to_owned(), String::from_utf8_lossy(&details.body).into());
        self.failed = Some(error.clone());
    }

    /// Why the call failed, if it did.
    pub fn failed(&self) -> Option<&Error> {
        self.failed.as_ref()
    }

    /// Makes the last event; `false` if it has been made.
    pub fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if self.over {
            return Poll::Ready(false);
        }
        if let Some(log) = &mut self.log {
            let log = std::task::ready!(log.as_mut().poll(cx));
            self.log = None;
            self.outcome.insert("LogResult".to_owned(), log.into());
        }
        self.over = true;
        let body = Value::Object(std::mem::take(&mut self.outcome)).to_string();
        self.message("InvokeComplete", "application/json", body.into());
        Poll::Ready(true)
    }

    /// Lengths and headers with a checksum, the payload as it is, and a checksum of everything.
    fn message(&mut self, kind: &str, content_type: &str, payload: Bytes) {
        let mut headers = BytesMut::new();
        for (name, value) in
            [(":message-type", "event"), (":event-type", kind), (":content-type", content_type)]
        {
            headers.put_u8(name.len() as u8);
            headers.put_slice(name.as_bytes());
            // A string.
            headers.put_u8(7);
            headers.put_u16(value.len() as u16);
            headers.put_slice(value.as_bytes());
        }
        let mut head = BytesMut::with_capacity(12 + headers.len());
        // Two lengths, two checksums of 4 bytes each.
        head.put_u32((16 + headers.len() + payload.len()) as u32);
        head.put_u32(headers.len() as u32);
        let checksum = crc32fast::hash(&head);
        head.put_u32(checksum);
        head.put_slice(&headers);
        let mut whole = crc32fast::Hasher::new();
        whole.update(&head);
        whole.update(&payload);
        self.ready.push_back(head.freeze());
        if !payload.is_empty() {
            self.ready.push_back(payload);
        }
        self.ready.push_back(Bytes::copy_from_slice(&whole.finalize().to_be_bytes()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use stoker_core::error::Code;

    fn end(events: &mut Events) -> bool {
        std::future::poll_fn(|cx| events.poll_end(cx)).now_or_never().expect("at once")
    }

    fn all(events: &mut Events) -> Vec<u8> {
        std::iter::from_fn(|| events.next()).flatten().collect()
    }

    #[test]
    fn a_message_is_what_aws_kits_read() {
        let mut events = Events::new(None);
        events.piece(Bytes::from_static(b"hi"));
        // Made with botocore's own reader in mind: 4 + 4 + 4 + 77 + 2 + 4.
        let bytes = all(&mut events);
        assert_eq!(bytes.len() as u32, u32::from_be_bytes(bytes[..4].try_into().unwrap()));
        let headers = u32::from_be_bytes(bytes[4..8].try_into().unwrap()) as usize;
        assert_eq!(crc32fast::hash(&bytes[..8]).to_be_bytes(), bytes[8..12]);
        let (rest, sum) = bytes.split_at(bytes.len() - 4);
        assert_eq!(crc32fast::hash(rest).to_be_bytes(), sum);
        assert_eq!(&rest[12 + headers..], b"hi");
        let first = b"\x0d:message-type\x07\0\x05event\x0b:event-type\x07\0\x0cPayloadChunk";
        assert_eq!(&bytes[12..12 + first.len()], first);
    }

    #[test]
    fn the_end_is_said_once_with_how_it_came() {
        let mut events = Events::new(Some(Box::pin(std::future::ready("bG9n".to_owned()))));
        assert!(end(&mut events) && !end(&mut events));
        let text = String::from_utf8_lossy(&all(&mut events)).into_owned();
        assert!(text.contains("InvokeComplete") && text.contains(r#"{"LogResult":"bG9n"}"#), "{text}");
        let mut events = Events::new(None);
        events.fail(&Error::new(Code::FunctionCrashed, "gone"));
        assert!(end(&mut events));
        let text = String::from_utf8_lossy(&all(&mut events)).into_owned();
        assert!(text.contains(r#""ErrorCode":"Unhandled""#) && text.contains("gone"), "{text}");
    }
}
