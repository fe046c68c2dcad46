//! What follows from the end of a call for later: its dead letter, and reports to whom its function names.
//!
//! Each is a call for later of its own, or a message, with an id derived from the call's: a balancer that dies between sending it
//! and the end of the call makes no second one.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};
use stoker_core::error::{Code, Error};
use stoker_core::later::{Later as Policy, Target};
use stoker_core::moment::now_ms;
use stoker_proto::{convert, v1};
use stoker_queue::{Answer, Call, End, Follow, INLINE, Progress, State, derived_id};

use super::worker::Maker;

/// Letters about letters about letters: further than this they do not go.
const HOPS: u32 = 8;

/// Without a place that dead letters go to, this is where they are found.
pub const DEAD_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// Of the text of a header.
const HEADER: usize = 8 << 10;

/// The body of an answer in a report.
const REPORTED: usize = INLINE / 2;

/// The end of a call that succeeded.
pub fn after_success(call: &Call, progress: Progress, answer: Answer, policy: &Policy) -> End {
    let mut then = Vec::new();
    if let Some(target) = &policy.on_success {
        then.extend(report(call, &progress, Some(&answer), target));
    }
    End { progress, answer: Some(answer), then }
}

/// The end of a call that was given up.
///
/// # Errors
/// The queue does not give or take what a letter needs: it may when it is asked again.
pub async fn after_failure(
    maker: &Maker,
    call: &Call,
    mut progress: Progress,
    policy: &Policy,
) -> Result<End, Error> {
    let mut then = Vec::new();
    if let Some(target) = &policy.dead_letter {
        match letter(maker, call, &progress, target).await {
            Ok(letter) => {
                progress.dead_letter = target.to_string();
                then.push(letter);
            }
            Err(Unsent::Never(why)) => unsent(&mut progress, &why),
            Err(Unsent::NotYet(error)) => return Err(error),
        }
    }
    if let Some(target) = &policy.on_failure {
        then.extend(report(call, &progress, None, target));
    }
    Ok(End { progress, answer: None, then })
}

/// Notes why a letter or a report is not sent: then the call itself is what there is of it, and one that was given up is kept as long as without a
/// place for letters.
pub fn unsent(progress: &mut Progress, why: &str) {
    progress.dead_letter = format!("not sent: {why}");
    if progress.is() == State::Dead {
        progress.keep_until_ms = progress.keep_until_ms.max(dead_until());
    }
}

/// Until when a call is kept that was given up now and went nowhere.
pub fn dead_until() -> u64 {
    now_ms().saturating_add(DEAD_KEPT.as_millis() as u64)
}

/// Why a dead letter is not sent.
enum Unsent {
    Never(String),
    /// Because of the queue, as it is now.
    NotYet(Error),
}

impl From<Error> for Unsent {
    fn from(error: Error) -> Self {
        match error.code {
            Code::Unavailable | Code::Overloaded => Unsent::NotYet(error),
            _ => Unsent::Never(error.message),
        }
    }
}

impl From<stoker_queue::Error> for Unsent {
    fn from(error: stoker_queue::Error) -> Self {
        Error::from(&error).into()
    }
}

/// The call itself, with what is to be said of its end in headers.
async fn letter(maker: &Maker, call: &Call, progress: &Progress, target: &Target) -> Result<Follow, Unsent> {
    if call.hops >= HOPS {
        return Err(Unsent::Never(format!("it is the {HOPS}th in a row")));
    }
    let id = derived_id("dead letter", &target.to_string(), &life(call, progress));
    let function = match target {
        Target::Function(function) => function,
        Target::Subject(subject) => {
            let body = body(call)?;
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
    if let Some(name) = call.body_name() {
        let pieces = maker.queue.body(name).await?;
        maker.queue.put_body(&id, pieces).await?;
    }
    let now = now_ms();
    Ok(Follow::Call(Call {
        id,
        function: function.as_str().to_owned(),
        qualifier: String::new(),
        head: Some(head),
        body_name: String::new(),
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
fn report(call: &Call, progress: &Progress, answer: Option<&Answer>, target: &Target) -> Option<Follow> {
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

/// The body for a message.
fn body(call: &Call) -> Result<Bytes, Unsent> {
    match call.body_name() {
        None => Ok(call.body.clone()),
        // A message has the size of a message; who needs the whole body names a function.
        Some(_) => {
            let (has, most) = (call.body_bytes, INLINE);
            Err(Unsent::Never(format!("its body has {has} bytes, and a message takes {most} at most")))
        }
    }
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
            "revision": attempt.revision, "interrupted": attempt.interrupted, "error": attempt.error.as_ref().map(error_of),
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
