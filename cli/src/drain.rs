//! `drain` and `uncordon`: taking a runner out of use without losing a call, and back.

use std::io::IsTerminal as _;
use std::time::Duration;

use serde_json::json;
use stoker_core::units::format_duration;
use stoker_core::{Code, Error};
use stoker_proto::v1::fleet_service_client::FleetServiceClient;
use stoker_proto::v1::{self, RunnerState};

use crate::args::{Common, Drain, Output, Uncordon};
use crate::client::{self, Connection};
use crate::failure::Failure;
use crate::output;

pub async fn drain(args: Drain, common: &Common) -> Result<(), Failure> {
    let mut client = client::fleet(&common.server).await?;
    let request = v1::DrainRunnerRequest { runner: args.runner.clone() };
    let told = client.drain_runner(request).await.map_err(refused)?.into_inner();
    let told = told.capacity.unwrap_or_default();
    if args.no_wait {
        return say(common, &args.runner, "draining");
    }
    let limit = args.timeout.unwrap_or(Duration::MAX);
    let end = tokio::time::timeout(limit, empty(&mut client, &args.runner, &told)).await;
    progress("");
    let Ok(end) = end else {
        let text = format!(
            "{} still has calls after {}; it stays drained, and they go on",
            args.runner,
            format_duration(limit)
        );
        let advice = "see `stoker runners`, and wait again with the same command";
        return Err(Failure::new(Error::new(Code::DeadlineExceeded, text), advice));
    };
    say(common, &args.runner, end?)
}

pub async fn uncordon(args: Uncordon, common: &Common) -> Result<(), Failure> {
    let mut client = client::fleet(&common.server).await?;
    let request = v1::UncordonRunnerRequest { runner: args.runner.clone() };
    client.uncordon_runner(request).await.map_err(refused)?;
    say(common, &args.runner, "ready")
}

/// What is not found is a runner here, and no function.
fn refused(status: tonic::Status) -> Failure {
    let error = stoker_proto::status::from_status(&status);
    match error.code {
        Code::NotFound => Failure::new(error, "see `stoker runners` for what there is"),
        _ => Failure::from(status),
    }
}

fn say(common: &Common, runner: &str, state: &str) -> Result<(), Failure> {
    match common.output {
        Output::Json => output::print_json(&json!({"runner": runner, "state": state})),
        Output::Table => output::print(&format!("{runner} {state}\n")),
    }
}

/// Rewrites a line while a person looks on.
fn progress(text: &str) {
    if std::io::stderr().is_terminal() {
        output::say(&format!("\r{text}\x1b[K"));
    }
}

/// How a runner that was told to drain stands.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    /// The record is from before it was told.
    Old,
    /// It still has this many calls.
    Busy(u32),
    Empty,
    Gone,
    /// Somebody uncordoned it.
    Ready,
}

/// Returns when nothing is in flight there, with what to say. The balancer tells of every change: nothing is asked twice.
async fn empty(
    client: &mut FleetServiceClient<Connection>,
    runner: &str,
    told: &v1::Capacity,
) -> Result<&'static str, Failure> {
    let mut fleet = client.watch_fleet(v1::WatchFleetRequest {}).await?.into_inner();
    // What it said when it was told may be the end already.
    let mut now = standing(told, Some(told));
    loop {
        match now {
            Standing::Old => {}
            Standing::Busy(calls) => progress(&format!("{runner} finishes {calls} calls")),
            Standing::Empty => return Ok("drained"),
            Standing::Gone => return Ok("gone"),
            Standing::Ready => {
                let error = Error::new(Code::Cancelled, format!("{runner} was uncordoned meanwhile"));
                return Err(Failure::new(
                    error,
                    "it takes calls again; drain it again if that was a mistake",
                ));
            }
        }
        let Some(view) = fleet.message().await? else {
            return Err(Failure::away(
                "the balancer stopped telling of the fleet",
                "the runner stays drained; ask another balancer with --server",
            ));
        };
        let records = view.runners.iter().filter_map(|description| description.capacity.as_ref());
        let of_runner = records.filter(|record| record.runner == runner);
        now = standing(told, of_runner.max_by_key(|record| (record.incarnation, record.sequence)));
    }
}

/// `told` is what the runner said when it was told to drain, `record` what is known of it now.
fn standing(told: &v1::Capacity, record: Option<&v1::Capacity>) -> Standing {
    // Another life of its name has none of the calls.
    let Some(record) = record.filter(|record| record.incarnation <= told.incarnation) else {
        return Standing::Gone;
    };
    match record.state() {
        _ if (record.incarnation, record.sequence) < (told.incarnation, told.sequence) => Standing::Old,
        RunnerState::Draining => match record.in_flight.saturating_add(record.waiting) {
            0 => Standing::Empty,
            calls => Standing::Busy(calls),
        },
        _ => Standing::Ready,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(incarnation: u64, sequence: u64, state: RunnerState, calls: (u32, u32)) -> v1::Capacity {
        v1::Capacity {
            incarnation,
            sequence,
            state: state.into(),
            in_flight: calls.0,
            waiting: calls.1,
            ..Default::default()
        }
    }

    #[test]
    fn a_runner_is_empty_when_it_says_so_itself() {
        let told = record(7, 10, RunnerState::Draining, (2, 1));
        let of = |record: v1::Capacity| standing(&told, Some(&record));
        assert_eq!(of(told.clone()), Standing::Busy(3));
        // What was known before it was told may well be without calls.
        assert_eq!(of(record(7, 9, RunnerState::Ready, (0, 0))), Standing::Old);
        assert_eq!(of(record(7, 9, RunnerState::Draining, (0, 0))), Standing::Old);
        assert_eq!(of(record(6, 99, RunnerState::Draining, (0, 0))), Standing::Old);
        assert_eq!(of(record(7, 11, RunnerState::Draining, (0, 3))), Standing::Busy(3));
        assert_eq!(of(record(7, 12, RunnerState::Draining, (0, 0))), Standing::Empty);
        assert_eq!(of(record(7, 13, RunnerState::Ready, (1, 0))), Standing::Ready);
        assert_eq!(of(record(8, 1, RunnerState::Ready, (1, 0))), Standing::Gone);
        assert_eq!(standing(&told, None), Standing::Gone);
    }
}
