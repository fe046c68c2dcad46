//! `calls`, and `call --async`: calls that are made later, and what became of them.

use std::io::Read as _;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use stoker_core::{Code, Error};
use stoker_proto::v1::call_service_client::CallServiceClient;
use stoker_proto::v1::{self, CallState};
use stoker_proto::{MAX_MESSAGE, convert};

use crate::args::{Call, Calls, CallsCommand, Common, Output, State};
use crate::client::{self, Connection};
use crate::failure::Failure;
use crate::{call, output};

/// `call --async`: says the id once the call is kept.
pub async fn submit(args: Call, common: &Common) -> Result<(), Failure> {
    let mut body = Vec::new();
    // Nothing else is done meanwhile.
    call::open(&args.data)?.take(MAX_MESSAGE as u64 + 1).read_to_end(&mut body).map_err(|error| {
        Failure::usage(format!("the body cannot be read: {error}"), "check what --data names")
    })?;
    if body.len() > MAX_MESSAGE {
        let text = format!("the body has more than {}", output::human_size(MAX_MESSAGE as u64));
        return Err(Failure::usage(
            text,
            "send it by HTTP: POST /invoke/APP/FN with Fn-Invoke-Type: detached",
        ));
    }
    let mut calls = client::calls(Connection::open(&common.server).await?);
    let head = v1::RequestHead { headers: call::headers(&args), ..Default::default() };
    let mut request = tonic::Request::new(v1::SubmitRequest {
        function: args.function.clone(),
        head: Some(head),
        body: Bytes::from(body),
        idempotency_key: args.key.clone(),
        when: args.delay.map(|delay| v1::submit_request::When::Delay(convert::to_duration(delay))),
    });
    if let Some(timeout) = args.timeout {
        request.set_timeout(timeout);
    }
    let kept = calls.submit(request).await?.into_inner();
    match common.output {
        Output::Json => output::print_json(&json!({"call_id": kept.call_id, "repeated": kept.repeated})),
        Output::Table => output::print(&format!("{}\n", kept.call_id)),
    }
}

pub async fn run(args: Calls, common: &Common) -> Result<(), Failure> {
    match args.command {
        None => list(args, common).await,
        Some(CallsCommand::Get { id }) => get(id, common).await,
        Some(CallsCommand::Wait { id, timeout }) => wait(id, timeout, common).await,
        Some(CallsCommand::Cancel { id }) => cancel(id, common).await,
        Some(CallsCommand::Redrive { ids, function }) => redrive(ids, function, common).await,
    }
}

async fn list(args: Calls, common: &Common) -> Result<(), Failure> {
    let mut calls = client::calls(Connection::open(&common.server).await?);
    let state = match args.state {
        None => CallState::Unspecified,
        Some(State::Queued) => CallState::Queued,
        Some(State::Running) => CallState::Running,
        Some(State::Done) => CallState::Done,
        Some(State::Dead) => CallState::Dead,
        Some(State::Cancelled) => CallState::Cancelled,
    };
    let mut request =
        v1::ListCallsRequest { function: args.function.clone(), state: state.into(), ..Default::default() };
    let (mut all, mut more) = (Vec::new(), true);
    while more && all.len() < args.limit as usize {
        request.limit = PAGE.min(args.limit - all.len() as u32);
        let page = calls.list_calls(request.clone()).await.map_err(refused)?.into_inner();
        all.extend(page.calls);
        (request.after, more) = (page.next, page.more);
    }
    if common.output == Output::Json {
        let calls: Vec<_> = all.iter().map(record).collect();
        return output::print_json(&json!({"calls": calls, "more": more}));
    }
    if all.is_empty() {
        output::say("There are no such calls. `stoker call APP/FN --async` makes one.\n");
        return Ok(());
    }
    let header = ["CALL", "FUNCTION", "STATE", "SUBMITTED", "ATTEMPTS", "WHY"];
    output::print(&output::table(&header, all.iter().map(row).collect()))?;
    if more {
        output::say("There are more: --limit shows them.\n");
    }
    Ok(())
}

async fn get(id: String, common: &Common) -> Result<(), Failure> {
    let mut calls = client::calls(Connection::open(&common.server).await?);
    let found = calls.get_call(v1::GetCallRequest { call_id: id }).await.map_err(refused)?.into_inner();
    let call = found.call.unwrap_or_default();
    if common.output == Output::Json {
        let mut record = record(&call);
        answer(&mut record, found.head.as_ref(), &found.body, found.body_dropped);
        record["timings"] = output::timings(found.timings.as_ref());
        return output::print_json(&record);
    }
    output::print(&describe(&call))?;
    if found.body_dropped {
        output::say("The answer was too large to be kept.\n");
    }
    if call.state() == CallState::Done && !found.body.is_empty() {
        output::print("\n")?;
        output::write(&found.body)?;
    }
    Ok(())
}

/// Body to STDOUT, like `call`.
async fn wait(id: String, timeout: Option<Duration>, common: &Common) -> Result<(), Failure> {
    let mut calls = client::calls(Connection::open(&common.server).await?);
    let mut request = tonic::Request::new(v1::WaitCallRequest { call_id: id });
    if let Some(timeout) = timeout {
        request.set_timeout(timeout);
    }
    let found = calls.wait_call(request).await.map_err(refused)?.into_inner();
    let call = found.call.unwrap_or_default();
    if call.state() != CallState::Done {
        let error = match call.error.clone() {
            Some(error) => convert::call_error(error),
            None => Error::new(Code::Cancelled, "the call was cancelled"),
        };
        return Err(Failure::of(error));
    }
    match common.output {
        Output::Json => {
            let mut record = record(&call);
            answer(&mut record, found.head.as_ref(), &found.body, found.body_dropped);
            output::print_json(&record)
        }
        Output::Table => output::write(&found.body),
    }
}

async fn cancel(id: String, common: &Common) -> Result<(), Failure> {
    let mut calls = client::calls(Connection::open(&common.server).await?);
    let request = v1::CancelCallRequest { call_id: id };
    let call = calls.cancel_call(request).await.map_err(refused)?.into_inner().call.unwrap_or_default();
    match common.output {
        Output::Json => output::print_json(&record(&call)),
        Output::Table => output::print(&format!("{} {}\n", call.call_id, state(&call))),
    }
}

/// Calls of which one request tells.
const PAGE: u32 = 1000;

/// Calls that are made again at once.
const AT_ONCE: usize = 32;

async fn redrive(ids: Vec<String>, function: String, common: &Common) -> Result<(), Failure> {
    let mut calls = client::calls(Connection::open(&common.server).await?);
    let mut told = again(&calls, ids, common).await?;
    let mut request =
        v1::ListCallsRequest { function, state: CallState::Dead.into(), limit: PAGE, ..Default::default() };
    let mut more = !request.function.is_empty();
    while more {
        // What is given up once more meanwhile is newer than what the next page begins with.
        let page = calls.list_calls(request.clone()).await.map_err(refused)?.into_inner();
        let ids = page.calls.into_iter().map(|call| call.call_id).collect();
        told.extend(again(&calls, ids, common).await?);
        (request.after, more) = (page.next, page.more);
    }
    match common.output {
        Output::Json => output::print_json(&json!({"calls": told})),
        Output::Table if told.is_empty() => {
            output::say("No call of this function was given up.\n");
            Ok(())
        }
        Output::Table => Ok(()),
    }
}

/// Makes these again, says of each what became of it, and gives all of it as JSON.
async fn again(
    calls: &CallServiceClient<Connection>,
    ids: Vec<String>,
    common: &Common,
) -> Result<Vec<Value>, Failure> {
    let redrives = ids.into_iter().map(|id| {
        let mut calls = calls.clone();
        async move { calls.redrive_call(v1::RedriveCallRequest { call_id: id }).await }
    });
    let mut redrives = futures_util::stream::iter(redrives).buffered(AT_ONCE);
    let mut told = Vec::new();
    while let Some(done) = redrives.next().await {
        let v1::RedriveCallResponse { call, redriven } = done.map_err(refused)?.into_inner();
        let call = call.unwrap_or_default();
        if common.output == Output::Table {
            let what = if redriven { "waits again" } else { "was not given up: it is" };
            let is = if redriven { "" } else { state(&call) };
            output::print(format!("{} {what} {is}", call.call_id).trim_end())?;
            output::print("\n")?;
        }
        let mut record = record(&call);
        record["redriven"] = redriven.into();
        told.push(record);
    }
    Ok(told)
}

/// What is not found is a call here, and no function.
fn refused(status: tonic::Status) -> Failure {
    let error = stoker_proto::status::from_status(&status);
    match error.code {
        Code::NotFound => Failure::new(error, "see `stoker calls` for what there is"),
        _ => Failure::from(status),
    }
}

fn state(call: &v1::CallDescription) -> &'static str {
    match call.state() {
        CallState::Queued => "queued",
        CallState::Running => "running",
        CallState::Done => "done",
        CallState::Dead => "dead",
        CallState::Cancelled => "cancelled",
        CallState::Unspecified => "unknown",
    }
}

fn ms(time: Option<&prost_types::Timestamp>) -> Option<u64> {
    time.map(|time| time.seconds.max(0) as u64 * 1000 + time.nanos.max(0) as u64 / 1_000_000)
}

/// Like `2026-03-01 12:00:05 UTC`.
fn when(time: Option<&prost_types::Timestamp>) -> String {
    let Some(time) = time else { return String::new() };
    let whole = prost_types::Timestamp { seconds: time.seconds, nanos: 0 };
    whole.to_string().replace('T', " ").replace('Z', " UTC")
}

/// The last thing that is to be said of it.
fn why(call: &v1::CallDescription) -> String {
    let last = call.attempts.last();
    let error = call.error.as_ref().or(last.and_then(|attempt| attempt.error.as_ref()));
    match error {
        Some(error) => output::printable(&error.message),
        None if last.is_some_and(|attempt| attempt.interrupted) => "interrupted".to_owned(),
        None => String::new(),
    }
}

fn row(call: &v1::CallDescription) -> Vec<String> {
    vec![
        call.call_id.clone(),
        call.function.clone(),
        state(call).to_owned(),
        when(call.submitted.as_ref()),
        call.attempts.len().to_string(),
        why(call),
    ]
}

fn describe(call: &v1::CallDescription) -> String {
    let mut rows = vec![
        ("call", call.call_id.clone()),
        ("function", call.function.clone()),
        ("state", state(call).to_owned()),
        ("submitted", when(call.submitted.as_ref())),
        ("due", when(call.due.as_ref())),
        ("ended", when(call.ended.as_ref())),
        ("kept until", when(call.kept_until.as_ref())),
        ("body", output::human_size(call.body_bytes)),
        ("key", call.idempotency_key.clone()),
        ("made by", call.origin.clone()),
        ("dead letter", call.dead_letter.clone()),
        ("made again", if call.redrives == 0 { String::new() } else { format!("{} times", call.redrives) }),
    ];
    for attempt in &call.attempts {
        let outcome = match (&attempt.error, attempt.interrupted, &attempt.ended) {
            (Some(error), ..) => output::printable(&error.message),
            (None, true, _) => "interrupted: it may have run".to_owned(),
            (None, false, None) => "runs".to_owned(),
            // Only of one that succeeded it is known where it ran.
            (None, false, Some(_)) if attempt.runner.is_empty() => "cancelled: it may have run".to_owned(),
            (None, false, Some(_)) => format!("succeeded on {}", attempt.runner),
        };
        let revision = match attempt.revision {
            0 => String::new(),
            revision => format!("revision {revision}: "),
        };
        rows.push(("attempt", format!("{}  {revision}{outcome}", when(attempt.started.as_ref()))));
    }
    if let Some(error) = &call.error {
        rows.push(("given up", output::printable(&error.message)));
    }
    let shown = rows.iter().filter(|(_, value)| !value.is_empty());
    shown.map(|(key, value)| format!("{key:<12} {value}\n")).collect()
}

fn error(error: &v1::CallError) -> Value {
    let error = convert::call_error(error.clone());
    json!({
        "code": stoker_proto::status::row(error.code).reason, "message": error.message,
        "blame": error.blame().as_str(), "may_have_started": error.may_have_started, "log_tail": error.log_tail,
    })
}

fn record(call: &v1::CallDescription) -> Value {
    let attempts = call.attempts.iter().map(|attempt| {
        json!({
            "started_ms": ms(attempt.started.as_ref()), "ended_ms": ms(attempt.ended.as_ref()),
            "runner": attempt.runner, "revision": attempt.revision, "interrupted": attempt.interrupted,
            "error": attempt.error.as_ref().map(error),
        })
    });
    json!({
        "call_id": call.call_id, "function": call.function, "state": state(call),
        "submitted_ms": ms(call.submitted.as_ref()), "due_ms": ms(call.due.as_ref()),
        "ended_ms": ms(call.ended.as_ref()), "kept_until_ms": ms(call.kept_until.as_ref()),
        "attempts": attempts.collect::<Vec<_>>(), "error": call.error.as_ref().map(error),
        "request_body_bytes": call.body_bytes, "idempotency_key": call.idempotency_key,
        "origin": call.origin, "dead_letter": call.dead_letter, "redrives": call.redrives,
    })
}

fn answer(record: &mut Value, head: Option<&v1::ResponseHead>, body: &Bytes, dropped: bool) {
    let Some(head) = head else { return };
    let headers = head.headers.iter().map(|h| json!([h.name, String::from_utf8_lossy(&h.value)]));
    record["status"] = head.status.into();
    record["headers"] = headers.collect();
    record["body"] = String::from_utf8_lossy(body).into();
    record["body_bytes"] = body.len().into();
    record["body_dropped"] = dropped.into();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_became_of_a_call_is_told() {
        let time = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        let failed = v1::CallError { message: "it fell".into(), ..Default::default() };
        let mut call = v1::CallDescription {
            call_id: "1".into(),
            function: "a/b".into(),
            submitted: time(0),
            attempts: vec![
                v1::CallAttempt { started: time(1), interrupted: true, ended: time(2), ..Default::default() },
                v1::CallAttempt {
                    started: time(3),
                    ended: time(4),
                    error: Some(failed.clone()),
                    revision: 7,
                    ..Default::default()
                },
            ],
            error: Some(failed),
            ..Default::default()
        };
        call.set_state(CallState::Dead);
        let text = describe(&call);
        for part in
            ["state        dead", "1970-01-01 00:00:01 UTC  interrupted", "revision 7: it fell", "given up"]
        {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains("key"), "what is empty is left out: {text}");
        assert_eq!(record(&call)["attempts"][0]["interrupted"], true);
    }
}
