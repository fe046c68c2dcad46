//! A call's story as it goes over the wire: what is known of it, its steps, and the [`findings`].

use std::time::{Instant, SystemTime};

use stoker_core::error::Refusal;
use stoker_policy::board;
use stoker_proto::{convert, v1};

use super::findings::findings;
use super::{Census, Record, Step, What, Why};

/// The whole of it, but for who tells.
pub fn story(record: &Record) -> v1::CallStory {
    let function = record.story.function.as_ref();
    let error = record.failed.as_ref().map(|(code, message)| v1::CallError {
        message: message.clone(),
        ..convert::to_call_error(&stoker_core::error::Error::new(*code, String::new()))
    });
    v1::CallStory {
        call_id: record.id.to_string(),
        function: function.map(|known| known.spec.name.to_string()).unwrap_or_default(),
        digest: function.map(|known| known.digest.to_string()).unwrap_or_default(),
        door: record.door.to_owned(),
        balancer: String::new(),
        began: Some(wall(record.began)),
        took: Some(convert::to_duration(record.took)),
        error,
        timings: record.story.timings().copied(),
        trace_id: record.trace.map(|trace| trace.to_string()).unwrap_or_default(),
        steps: record.story.steps().map(|one| step(one, record.began)).collect(),
        left_out: record.story.left_out,
        findings: findings(record),
    }
}

fn wall(at: Instant) -> prost_types::Timestamp {
    (SystemTime::now() - at.elapsed()).into()
}

fn census(of: Option<Census>) -> Option<v1::FleetCensus> {
    let Census { runners, open, idle, busy, waiting } = of?;
    Some(v1::FleetCensus { runners, open, idle, busy, waiting })
}

fn reason(of: Refusal) -> &'static str {
    match of {
        Refusal::Full => "full",
        Refusal::Draining => "draining",
        Refusal::TooLarge => "too_large",
        Refusal::Expired => "expired",
        Refusal::LaunchFailed => "launch_failed",
        Refusal::NoneIdle => "none_idle",
    }
}

fn step(step: &Step, began: Instant) -> v1::CallStep {
    use v1::CallStepKind as Kind;
    let mut told = v1::CallStep {
        at: Some(convert::to_duration(step.at.saturating_duration_since(began))),
        ..Default::default()
    };
    let (kind, runner) = match &step.what {
        What::Offered { runner, why } => {
            told.choice = choice(*why).into();
            match why {
                Why::Planned(board::Why::Warm { idle, age }) => {
                    (told.idle, told.hint_age) = (*idle, Some(convert::to_duration(*age)));
                }
                Why::Planned(board::Why::Line { busy, waiting, age }) => {
                    (told.busy, told.waiting) = (*busy, *waiting);
                    told.hint_age = Some(convert::to_duration(*age));
                }
                _ => {}
            }
            (Kind::Offered, Some(runner))
        }
        What::Refused { runner, reason: why, detail } => {
            (told.reason, told.detail) = (reason(*why).to_owned(), detail.clone());
            (Kind::Refused, Some(runner))
        }
        What::Accepted { runner, expected, census: of } => {
            told.expected_wait = expected.map(convert::to_duration);
            told.census = census(*of);
            (Kind::Accepted, Some(runner))
        }
        What::Started { runner } => (Kind::Started, Some(runner)),
        What::Lost { runner, reason, may_have_started } => {
            (told.detail, told.may_have_started) = (reason.clone(), *may_have_started);
            (Kind::Lost, Some(runner))
        }
        What::Left { runner } => (Kind::Left, Some(runner)),
        What::Waits { behind, census: of } => {
            (told.behind_others, told.census) = (*behind, census(*of));
            (Kind::Waits, None)
        }
    };
    told.kind = kind.into();
    told.runner = runner.map(|runner| runner.title().into_owned()).unwrap_or_default();
    told
}

fn choice(why: Why) -> v1::CallChoice {
    match why {
        Why::Planned(board::Why::Warm { .. }) => v1::CallChoice::Warm,
        Why::Planned(board::Why::Line { .. }) => v1::CallChoice::Line,
        Why::Planned(board::Why::Rank) => v1::CallChoice::Rank,
        Why::Planned(board::Why::Young) => v1::CallChoice::Young,
        Why::Planned(board::Why::Spill) => v1::CallChoice::Spill,
        Why::Turn => v1::CallChoice::Turn,
        Why::Idle => v1::CallChoice::Idle,
    }
}
