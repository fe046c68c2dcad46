//! What follows from the end of a call for later: its dead letter, and reports to whom its function names.
//!
//! Each is a call for later of its own, or a message, with an id derived from the call's: a balancer that dies between sending it
//! and the end of the call makes no second one.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use stoker_core::later::{Later as Policy, Target};
use stoker_proto::{convert, v1};
use stoker_queue::{Answer, Call, End, Follow, INLINE, Progress, State, derived_id, now_ms};

use super::worker::Maker;

/// Letters about letters about letters: further than this they do not go.
const HOPS: u32 = 8;

/// Of the text of a header.
const HEADER: usize = 8 << 10;

/// The body of an answer in a report.
const REPORTED: usize = INLINE / 2;

/// The end of a call that succeeded.
pub async fn after_success(
    maker: &Maker,
    call: &Call,
    progress: Progress,
    answer: Answer,
    policy: &Policy,
) -> End {
    let mut then = Vec::new();
    if let Some(target) = &policy.on_success {
        then.extend(report(maker, call, &progress, Some(&answer), target));
    }
    End { progress, answer: Some(answer), then }
}

/// The end of a call that was given up.
pub async fn after_failure(maker: &Maker, call: &Call, mut progress: Progress, policy: &Policy) -> End {
    let mut then = Vec::new();
    if let Some(target) = &policy.dead_letter {
        match letter(maker, call, &progress, target).await {
            Ok(letter) => {
                progress.dead_letter = target.to_string();
                then.push(letter);
            }
            Err(why) => progress.dead_letter = format!("not sent: {why}"),
        }
    }
    if let Some(target) = &policy.on_failure {
        then.extend(report(maker, call, &progress, None, target));
    }
    End { progress, answer: None, then }
}

/// The call itself, with what is to be said of its end in headers.
async fn letter(maker: &Maker, call: &Call, progress: &Progress, target: &Target) -> Result<Follow, String> {
    if call.hops >= HOPS {
        return Err(format!("it is the {HOPS}th in a row"));
    }
    let id = derived_id("dead letter", &target.to_string(), &life(call, progress));
    let function = match target {
        Target::Function(function) => function,
        Target::Subject(subject) => {
            let body = body(maker, call).await?;
            let mut record = record(call, progress, None);
            record["request"] = text_or_bytes(&body);
            return Ok(message(subject, id, &record));
        }
    };
    let error = progress.error.clone().unwrap_or_default();
    let reason = convert::call_error(error.clone());
    let mut head = call.head.clone().unwrap_or_default();
    let fresh = [
        ("stoker-dead-letter-function", call.function.clone()),
        ("stoker-dead-letter-call", call.id.clone()),
        ("stoker-dead-letter-reason", stoker_proto::status::row(reason.code).reason.to_owned()),
        ("stoker-dead-letter-message", plain(&error.message)),
        ("stoker-dead-letter-attempts", plain(&attempts(progress).to_string())),
    ];
    head.headers.retain(|header| !header.name.to_ascii_lowercase().starts_with("stoker-dead-letter-"));
    head.headers.extend(
        fresh.map(|(name, value)| v1::Header {
            name: name.to_owned(),
            value: Bytes::from(value.into_bytes()),
        }),
    );
    let (mut inline, mut aside) = (call.body.clone(), false);
    if call.aside {
        let pieces = maker.queue.body(&call.id).await.map_err(|error| error.to_string())?;
        maker.queue.put_body(&id, pieces).await.map_err(|error| error.to_string())?;
        (inline, aside) = (Bytes::new(), true);
    }
    let now = now_ms();
    Ok(Follow::Call(Call {
        id,
        function: function.as_str().to_owned(),
        qualifier: String::new(),
        head: Some(head),
        body: inline,
        aside,
        submitted_ms: now,
        due_ms: now,
        key: String::new(),
        origin: format!("dead letter of {}", call.id),
        hops: call.hops + 1,
        redrives: 0,
        ..call.clone()
    }))
}

/// The call, and each time that it was made again: every end has letters of its own.
fn life(call: &Call, progress: &Progress) -> String {
    match progress.redrives {
        0 => call.id.clone(),
        times => format!("{}-{times}", call.id),
    }
}

/// What became of a call, in JSON.
fn report(
    _: &Maker,
    call: &Call,
    progress: &Progress,
    answer: Option<&Answer>,
    target: &Target,
) -> Option<Follow> {
    if call.hops >= HOPS {
        tracing::warn!(call_id = call.id, "no report is made of it: it is the {HOPS}th in a row");
        return None;
    }
    let id = derived_id("report", &target.to_string(), &life(call, progress));
    let record = record(call, progress, answer);
    let function = match target {
        Target::Subject(subject) => return Some(message(subject, id, &record)),
        Target::Function(function) => function,
    };
    let kind = v1::Header { name: "content-type".into(), value: Bytes::from_static(b"application/json") };
    let body = Bytes::from(record.to_string());
    let now = now_ms();
    Some(Follow::Call(Call {
        id,
        function: function.as_str().to_owned(),
        head: Some(v1::RequestHead { method: "POST".into(), headers: vec![kind], ..Default::default() }),
        body_bytes: body.len() as u64,
        body,
        submitted_ms: now,
        due_ms: now,
        origin: format!("report on {}", call.id),
        trace_parent: call.trace_parent.clone(),
        trace_state: call.trace_state.clone(),
        hops: call.hops + 1,
        ..Call::default()
    }))
}

fn message(subject: &str, id: String, record: &Value) -> Follow {
    Follow::Message { subject: subject.to_owned(), id, body: Bytes::from(record.to_string()) }
}

async fn body(maker: &Maker, call: &Call) -> Result<Bytes, String> {
    if !call.aside {
        return Ok(call.body.clone());
    }
    // A message has the size of a message; who needs the whole body names a function.
    let mut pieces = maker.queue.body(&call.id).await.map_err(|error| error.to_string())?;
    let mut body = bytes::BytesMut::new();
    while let Some(piece) = pieces.next().await {
        body.extend_from_slice(&piece.map_err(|error| error.to_string())?);
        if body.len() > INLINE {
            return Err(format!("its body has more than {INLINE} bytes, which no message takes"));
        }
    }
    Ok(body.freeze())
}

fn error_of(error: &v1::CallError) -> Value {
    let error = convert::call_error(error.clone());
    json!({
        "code": stoker_proto::status::row(error.code).reason, "message": error.message,
        "blame": error.blame().as_str(), "may_have_started": error.may_have_started, "log_tail": error.log_tail,
    })
}

fn attempts(progress: &Progress) -> Value {
    let of = |attempt: &stoker_queue::Attempt| {
        json!({
            "started_ms": attempt.started_ms, "ended_ms": attempt.ended_ms, "runner": attempt.runner,
            "interrupted": attempt.interrupted, "error": attempt.error.as_ref().map(error_of),
        })
    };
    progress.attempts.iter().map(of).collect()
}

fn record(call: &Call, progress: &Progress, answer: Option<&Answer>) -> Value {
    let state = match progress.is() {
        State::Done => "done",
        _ => "dead",
    };
    let mut record = json!({
        "call_id": call.id, "function": call.function, "state": state, "idempotency_key": call.key,
        "submitted_ms": call.submitted_ms, "due_ms": call.due_ms, "ended_ms": progress.ended_ms,
        "attempts": attempts(progress), "error": progress.error.as_ref().map(error_of),
    });
    if let Some(answer) = answer {
        let head = answer.head.clone().unwrap_or_default();
        let headers = head.headers.iter().map(|h| json!([h.name, String::from_utf8_lossy(&h.value)]));
        record["response"] = json!({
            "status": head.status, "headers": headers.collect::<Vec<_>>(), "body_bytes": answer.body_bytes,
        });
        if answer.body.len() <= REPORTED && answer.body.len() as u64 == answer.body_bytes {
            record["response"]["body"] = text_or_bytes(&answer.body);
        }
    }
    record
}

/// Text as it is; else base64, which then stands in an object.
fn text_or_bytes(body: &Bytes) -> Value {
    match std::str::from_utf8(body) {
        Ok(text) => text.into(),
        Err(_) => json!({"base64": BASE64_STANDARD.encode(body)}),
    }
}

/// As a header's value can have it.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii() && !c.is_ascii_control() { c } else { '?' }).take(HEADER).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_says_all_of_a_call() {
        let call = Call { id: "1".into(), function: "a/b".into(), key: "k".into(), ..Call::default() };
        let mut progress = Progress::new(&call);
        progress.begin(5);
        progress.begin(9);
        progress.set_state(State::Done);
        let answer = Answer { body: vec![0xff].into(), body_bytes: 1, ..Answer::default() };
        let record = record(&call, &progress, Some(&answer));
        assert_eq!(record["state"], "done");
        assert_eq!(record["attempts"][0]["interrupted"], true);
        assert_eq!(record["response"]["body"]["base64"], "/w==");
        assert_eq!(plain("a\r\nbé"), "a??b?");
    }
}
