//! The first calls: each function of the files once cold and then warm, so that whoever starts a fleet sees it work.

use std::time::{Duration, Instant};

use stoker_core::FunctionSpec;
use stoker_proto::v1;
use stoker_proto::v1::call_service_client::CallServiceClient;

use super::{programs, tell};
use crate::args::Output;
use crate::client::{self, Connection};
use crate::failure::Failure;
use crate::output;

/// What every function is given.
const BODY: &str = "Ada";

/// Warm calls; the fastest is shown, since the machine has other things to do as well.
const WARM: usize = 10;

pub async fn run(server: &str, specs: &[FunctionSpec]) -> Result<(), Failure> {
    let style = output::Style::stdout();
    let mut calls = client::calls(Connection::open(server).await?);
    tell(output::print(&format!("\n{}\n\n", style.bold("First calls"))));
    let mut rows = Vec::new();
    let mut left_out = Vec::new();
    let mut failed = Vec::new();
    for spec in specs {
        if let Some(why) = programs::missing(spec) {
            left_out.push(format!("  {} was left out: {why}\n", spec.name));
            continue;
        }
        match one(&mut calls, spec).await {
            Ok(row) => rows.push(row),
            Err(failure) => failed.push((spec, failure)),
        }
    }
    if !rows.is_empty() {
        let table = output::table(&["FUNCTION", "COLD", "WARM", "ANSWER"], rows);
        tell(output::print(&table.lines().map(|line| format!("  {line}\n")).collect::<String>()));
    }
    tell(output::print(&left_out.concat()));
    for (spec, failure) in failed {
        output::say(&format!("\n{} failed.\n", spec.name));
        failure.print(Output::Table);
    }
    Ok(())
}

async fn one(calls: &mut CallServiceClient<Connection>, spec: &FunctionSpec) -> Result<Vec<String>, Failure> {
    let (cold, answer) = call(calls, spec).await?;
    let mut warm = Duration::MAX;
    for _ in 0..WARM {
        warm = warm.min(call(calls, spec).await?.0);
    }
    let text = String::from_utf8_lossy(&answer.body);
    let line: String =
        text.lines().next().unwrap_or_default().chars().filter(|c| !c.is_control()).take(60).collect();
    let us = |time: Duration| output::human_us(time.as_micros() as u64);
    Ok(vec![spec.name.to_string(), us(cold), us(warm), line])
}

async fn call(
    calls: &mut CallServiceClient<Connection>,
    spec: &FunctionSpec,
) -> Result<(Duration, v1::InvokeResponse), Failure> {
    let request = v1::InvokeRequest { function: spec.name.to_string(), head: None, body: BODY.into() };
    let mut request = tonic::Request::new(request);
    // A function that hangs ends by its own limits; this is for a fleet that does.
    request.set_timeout(spec.init_timeout() + spec.timeout() + Duration::from_secs(5));
    let began = Instant::now();
    let answer = calls.invoke(request).await?.into_inner();
    Ok((began.elapsed(), answer))
}
