//! Runs a column of the table through a real fleet: a balancer, a runner, containers.

use std::fmt::Debug;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use stoker_core::FunctionSpec;
use stoker_core::error::{Blame, Code, Error, Retry};
use stoker_tests::calls::{Answer, Call, Door};
use stoker_tests::fleet::{Fleet, Plan, sandbox};
use stoker_tests::functions::{Change as _, Gate};
use stoker_tests::left::{self, Ending};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::columns::{Column, Driver};
use crate::rows::rows;
use crate::table::{Body, Content, Flow, Needs, Next, Outcome, PLAIN, Row};

/// Rows that run at once.
const AT_ONCE: usize = 16;

/// Every row in this column, on this driver.
pub async fn column(column: Column, driver: Driver, test: &str) {
    if driver == Driver::Rootless && rustix::process::geteuid().is_root() {
        as_ordinary_user(test);
        return;
    }
    let can = match sandbox(driver.choice()).await {
        Ok(can) => can,
        Err(error) => {
            println!("left out: {driver:?} does not work here: {error}");
            return;
        }
    };
    let fleet = Plan::default().room(512).sandbox(driver.choice()).start([]).await;
    let fleet = Arc::new(fleet);
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let mut running = JoinSet::new();
    let mut rows: Vec<_> = rows().collect();
    // Those that wait for their time to be over first: the others run meanwhile.
    rows.sort_by_key(|row| row.setting.timeout_ms);
    for row in rows {
        let lacks = match row.setting.needs {
            Needs::Nothing => false,
            Needs::MemoryLimit => !can.limits_memory,
            Needs::Isolation => !can.isolates,
        };
        if lacks {
            println!("left out: {}: the sandbox cannot: {}", row.id, can.why);
            continue;
        }
        if row.cell(column).is_none() {
            continue;
        }
        let (fleet, room) = (fleet.clone(), room.clone());
        running.spawn(async move {
            let _place = room.acquire_owned().await.unwrap();
            let done = tokio::spawn(async move { run(&fleet, row, column, driver).await }).await;
            let done = done.unwrap_or_else(|panic| {
                let panic = panic.into_panic();
                Err(panic.downcast::<String>().map_or_else(|_| "it panicked".to_owned(), |text| *text))
            });
            done.map_err(|why| format!("row {} × {} × {driver:?}: {why}", row.id, column.name()))
        });
    }
    let failed: Vec<_> = running.join_all().await.into_iter().filter_map(Result::err).collect();
    assert!(failed.is_empty(), "{} rows failed:\n{}", failed.len(), failed.join("\n"));
    Arc::into_inner(fleet).expect("all rows have ended").end().await;
}

/// The same test as a user who is nobody, where that is possible.
fn as_ordinary_user(test: &str) {
    let own = std::env::current_exe().unwrap();
    let as_user = |program: &Path| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program);
        command.env("HOME", "/").current_dir("/");
        command
    };
    if !as_user(&own).arg("--list").output().is_ok_and(|output| output.status.success()) {
        println!("left out: setpriv is missing, or an ordinary user cannot reach {}", own.display());
        return;
    }
    let status = as_user(&own).args(["--exact", test, "--nocapture"]).status().unwrap();
    assert!(status.success(), "as an ordinary user: {status}");
}

/// One row: its calls, and the one after them.
async fn run(fleet: &Fleet, row: &Row, column: Column, driver: Driver) -> Result<(), String> {
    let name = row.id.replace('.', "-");
    let gate = matches!(row.flow, Flow::Late).then(Gate::new);
    let spec = function(row, column, &name, gate.as_ref());
    fleet.apply(spec.clone()).await;
    let cell = row.cell(column).expect("only rows that have it are run");
    let this = Running { fleet, row, column, spec, name };
    let mut before = 0;
    match row.flow {
        Flow::Many(times) => {
            for n in 0..times {
                this.echo(n).await?;
            }
            return this.next(Next::Same, times).await.map(drop);
        }
        Flow::AtOnce(times) => {
            let echoes = (0..times).map(|n| {
                let (clients, call) = (fleet.clients.clone(), this.marked(n));
                (n, tokio::spawn(async move { clients.call(Door::Invoke, call).await }))
            });
            for (n, echo) in echoes.collect::<Vec<_>>() {
                this.is_echo(n, echo.await.unwrap())?;
            }
            return Ok(());
        }
        Flow::Abandoned => {
            let mut log = fleet.log(&this.spec).await;
            let (clients, call) = (fleet.clients.clone(), this.call());
            let abandoned = tokio::spawn(async move { clients.call(Door::Invoke, call).await });
            log.until("hanging").await;
            abandoned.abort();
            return this.next(Next::New, 0).await.map(drop);
        }
        _ => {}
    }
    // Where a call has little time, coming up is no part of it.
    let little = row.setting.timeout_ms < PLAIN.timeout_ms || matches!(row.flow, Flow::Deadline);
    if little && row.setting.start.is_empty() && row.setting.always.is_empty() {
        before = this.next(Next::Untouched, 1).await?;
    }
    let doors: &[Door] = match (&cell.outcome, row.flow) {
        (_, Flow::Deadline) => &[Door::Session],
        (Outcome::Error(..), Flow::Half | Flow::Leaves) => &[Door::Invoke],
        // What is large goes in a stream, as clients must.
        (Outcome::Answer(_, Content::About(_)), _) => &[Door::Stream],
        (Outcome::Error(Code::FunctionTimeout, _), _) => &[Door::Http],
        // No door knows the driver: one driver is enough for both.
        (Outcome::Error(..) | Outcome::Either(..), _) if driver == Driver::Native => {
            &[Door::Invoke, Door::Http]
        }
        _ if matches!(row.ask.body, Body::Large(_)) => &[Door::Stream],
        _ => &[Door::Invoke],
    };
    let mut late = match row.flow {
        Flow::Late => Some(fleet.log(&this.spec).await),
        _ => None,
    };
    for &door in doors {
        let said = |why: String| format!("{door:?}: {why}");
        let outcome = match row.flow {
            Flow::Trigger => this.trigger().await,
            Flow::Deadline => fleet.clients.call(door, this.call().timeout(Duration::from_secs(3))).await,
            _ => fleet.clients.call(door, this.call()).await,
        };
        this.check(&cell.outcome, outcome).map_err(said)?;
        match row.flow {
            Flow::Alone => continue,
            Flow::Late => {
                let gate = gate.as_ref().expect("there is one");
                let process = Ending::of_processes(&left::with_variable("TEST_GATE", gate.path()));
                gate.open(1);
                // It said so, or it was ended before it could.
                tokio::select! {
                    () = process.wait() => {}
                    () = late.as_mut().expect("there is one").until("late output") => {}
                }
            }
            Flow::SpoilsTheNext => {
                let spoilt = fleet.clients.call(Door::Invoke, this.plain("calls")).await;
                this.check(&Outcome::Error(Code::FunctionInvalidResponse, ""), spoilt)
                    .map_err(|why| format!("the next: {why}"))?;
            }
            Flow::Leaves => match fleet.clients.call(Door::Invoke, this.plain("calls")).await {
                Ok(answer) => {
                    this.content(&Content::Json("{\"calls\":1}"), &answer).map_err(said)?;
                    if !column.is_cold() {
                        before = this.next(Next::Same, 1).await.map_err(said)?;
                        continue;
                    }
                }
                Err(error) => this.error(Code::FunctionCrashed, "", &error).map_err(said)?,
            },
            _ => {}
        }
        before = this.next(cell.next, before + 1).await.map_err(said)?;
    }
    Ok(())
}

fn function(row: &Row, column: Column, name: &str, gate: Option<&Gate>) -> FunctionSpec {
    let mut spec = column
        .function(name)
        .with_env("MyEnv", "4=4")
        .with_memory(row.setting.memory)
        .with_timeout(Duration::from_millis(row.setting.timeout_ms))
        .with_init_timeout(Duration::from_millis(row.setting.init_timeout_ms))
        .with_trigger(&format!("/{name}"));
    for (key, value) in [("TEST_START", row.setting.start), ("TEST_DO", row.setting.always)] {
        if !value.is_empty() {
            spec = spec.with_env(key, value);
        }
    }
    spec.format_options.cloudevents_by_content_type = row.setting.by_content_type;
    // A container of Lambda's that is reset stays: a second one, launched meanwhile, would take the call after it.
    if column == Column::Lambda && !matches!(row.flow, Flow::AtOnce(_)) {
        spec.max_containers = 1;
    }
    match gate {
        Some(gate) => spec.with_env("TEST_GATE", gate.path()).with_workdir(gate.directory()),
        None => spec,
    }
}

struct Running<'a> {
    fleet: &'a Fleet,
    row: &'a Row,
    column: Column,
    spec: FunctionSpec,
    name: String,
}

impl Running<'_> {
    /// The call of the row.
    fn call(&self) -> Call {
        let mut call = Call::of(&self.name).body(self.row.ask.bytes());
        if !self.row.ask.content_type.is_empty() {
            call = call.header("Content-Type", self.row.ask.content_type);
        }
        for (name, value) in self.row.ask.headers {
            call = call.header(name, value);
        }
        call
    }

    /// An ordinary one.
    fn plain(&self, orders: &str) -> Call {
        let body = format!("{{\"do\":\"{orders}\"}}");
        Call::of(&self.name).header("Content-Type", "application/json").body(body)
    }

    /// One with a text of its own.
    fn marked(&self, n: u32) -> Call {
        Call::of(&self.name).header("Content-Type", "application/json").body(format!("{{\"call\":{n}}}"))
    }

    async fn echo(&self, n: u32) -> Result<(), String> {
        self.is_echo(n, self.fleet.clients.call(Door::Invoke, self.marked(n)).await)
    }

    fn is_echo(&self, n: u32, outcome: Result<Answer, Error>) -> Result<(), String> {
        let answer = outcome.map_err(|error| format!("{error:?}"))?;
        equal(&answer.text(), &format!("{{\"call\":{n}}}"))
    }

    /// The call, as an HTTP client makes it.
    async fn trigger(&self) -> Result<Answer, Error> {
        let path = format!("/t/t/{}?name=Ada", self.name);
        let call = self.call();
        let page = self.fleet.clients.page("PUT", &path, &call.headers, call.body).await;
        let headers = page.headers.iter();
        Ok(Answer {
            call_id: page.header("fn-call-id").to_owned(),
            status: page.status,
            headers: headers.map(|(n, v)| (n.to_string(), Bytes::copy_from_slice(v.as_bytes()))).collect(),
            body: page.body,
            timings: None,
            runner: String::new(),
        })
    }

    fn check(&self, expected: &Outcome, outcome: Result<Answer, Error>) -> Result<(), String> {
        match (expected, outcome) {
            (Outcome::Answer(status, content), Ok(answer)) => {
                let shown = || format!("{} {:?} {:.300}", answer.status, answer.headers, answer.text());
                equal(&answer.status, status)
                    .and_then(|()| self.content(content, &answer))
                    .map_err(|why| format!("{why}, in {}", shown()))
            }
            (Outcome::Error(code, says), Err(error)) => {
                self.error(*code, says, &error).map_err(|why| format!("{why}, in {error:?}"))
            }
            (Outcome::Either(one, other), Err(error)) => {
                let code = if error.code == *other { other } else { one };
                self.error(*code, "", &error).map_err(|why| format!("{why}, in {error:?}"))
            }
            (Outcome::Answer(..), Err(error)) => Err(format!("no answer but {error:?}")),
            (Outcome::Error(code, _) | Outcome::Either(code, _), Ok(answer)) => {
                Err(format!("no {code:?} but {} {:.300}", answer.status, answer.text()))
            }
        }
    }

    fn content(&self, content: &Content, answer: &Answer) -> Result<(), String> {
        match content {
            Content::Any => Ok(()),
            Content::Json(json) => {
                let expected: serde_json::Value = serde_json::from_str(json).expect("the table has JSON");
                equal(&serde_json::from_slice(&answer.body).ok(), &Some(expected))
            }
            Content::Bytes(bytes) => equal(&&answer.body[..], bytes),
            Content::Echo => equal(&&answer.body[..], &&self.row.ask.bytes()[..]),
            Content::About(length) => {
                let is = answer.body.len();
                if (*length..length + length / 10).contains(&is) {
                    Ok(())
                } else {
                    Err(format!("{is} bytes"))
                }
            }
            Content::Is(check) => check(answer, self.column),
        }
    }

    /// Everything that an error says.
    fn error(&self, code: Code, says: &str, error: &Error) -> Result<(), String> {
        equal(&error.code, &code)?;
        equal(&error.retry, &Retry::Never)?;
        let started =
            !matches!(code, Code::FunctionInitFailed | Code::FunctionInitTimeout | Code::InvalidRequest);
        equal(&error.may_have_started, &started).map_err(|why| format!("may have started: {why}"))?;
        let blame = match code {
            Code::InvalidRequest | Code::DeadlineExceeded => Blame::Caller,
            _ => Blame::Function,
        };
        equal(&error.blame(), &blame)?;
        let message = !error.message.is_empty() && error.message.contains(says);
        if !message {
            return Err(format!("the message has no {says:?}"));
        }
        let tail = self.row.setting.tail;
        if error.log_tail.contains(tail) { Ok(()) } else { Err(format!("the log has no {tail:?}")) }
    }

    /// The call after it: answered at once, by the process that should. Returns how many calls that has seen.
    async fn next(&self, next: Next, seen: u32) -> Result<u32, String> {
        // A process that serves events takes other calls as its own format does.
        if self.row.setting.by_content_type {
            return Ok(0);
        }
        let answer = self.fleet.clients.call(Door::Invoke, self.plain("report")).await;
        let answer = answer.map_err(|error| format!("the next call: {error:?}"))?;
        let report = answer.json();
        let calls = report["calls"].as_u64().unwrap_or_default() as u32;
        let expected = match next {
            _ if self.column.is_cold() => 1,
            Next::Same => seen + 1,
            Next::New => 1,
            Next::Untouched => seen,
        };
        let by = "the next call was served by another process than it should, by its count";
        equal(&calls, &expected).map_err(|why| format!("{by}: {why}"))?;
        if let Some(file) = self.row.setting.file {
            equal(&report["tmp"].to_string().as_str(), &file).map_err(|why| format!("the file: {why}"))?;
        }
        Ok(calls)
    }
}

fn equal<T: PartialEq + Debug>(is: &T, should: &T) -> Result<(), String> {
    if is == should {
        Ok(())
    } else {
        Err(format!("{:.200} instead of {:.200}", format!("{is:?}"), format!("{should:?}")))
    }
}
