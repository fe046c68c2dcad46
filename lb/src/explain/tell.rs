//! A call's story as it is told: its steps, and the reasons in sentences.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use stoker_core::FunctionSpec;
use stoker_core::error::Refusal;
use stoker_core::units::format_duration;
use stoker_policy::board;
use stoker_proto::{convert, v1};

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
    let at = SystemTime::now() - at.elapsed();
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    prost_types::Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: since.subsec_nanos() as i32,
    }
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
    told.runner = runner.map(|runner| runner.name.clone()).unwrap_or_default();
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

/// Why it was as it was, and what would have helped.
fn findings(record: &Record) -> Vec<String> {
    let mut found = Vec::new();
    waited(record, &mut found);
    cold(record, &mut found);
    if let Some((code, message)) = &record.failed {
        found.push(format!("It failed with {}: {message}", stoker_proto::status::row(*code).reason));
    }
    if found.is_empty() {
        found.push(match record.story.steps().next() {
            Some(_) => "It found a container ready at the first runner that was asked.".to_owned(),
            None => "It was not offered to any runner.".to_owned(),
        });
    }
    found
}

/// A time for people.
fn time(time: Duration) -> String {
    match time.as_micros() {
        us @ 0..1_000 => format!("{us} µs"),
        us @ 1_000..10_000 => format!("{:.1} ms", us as f64 / 1e3),
        us => format_duration(Duration::from_millis((us / 1000) as u64)),
    }
}

fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// What it waited for, here and there.
fn waited(record: &Record, found: &mut Vec<String>) {
    let steps: Vec<&Step> = record.story.steps().collect();
    // What waits in one line is asked for elsewhere now and then, and where nobody is idle that changes nothing.
    let refused =
        |step: &&Step| matches!(step.what, What::Refused { reason, .. } if reason != Refusal::NoneIdle);
    if let Some(at) = steps.iter().position(|step| matches!(step.what, What::Waits { .. })) {
        let What::Waits { behind, census } = &steps[at].what else { return };
        let end = steps[at..].iter().find(|step| matches!(step.what, What::Offered { why: Why::Turn, .. }));
        let until = end.map_or(record.began + record.took, |step| step.at);
        let time = time(until.saturating_duration_since(steps[at].at));
        let tried = steps[..at].iter().copied().filter(|step| refused(step)).count();
        let why = match (behind, census) {
            (true, _) => "behind other calls of its function".to_owned(),
            (false, Some(Census { open: 0, runners, .. })) => {
                format!("no runner could be asked, of {}", count(*runners as usize, "runner"))
            }
            (false, Some(census)) => {
                format!("{tried} of {} that could be asked refused it", count(census.open as usize, "runner"))
            }
            (false, None) => format!("{} refused it", count(tried, "runner")),
        };
        let others = census.map_or_else(String::new, |census| {
            let busy = count(census.busy as usize, "call");
            format!("; {busy} of its function ran and {} waited on runners", census.waiting)
        });
        found.push(format!(
            "It waited {time} in the balancer for a runner with room: {why}{others}. More runners, or more memory on them, would have helped."
        ));
    } else {
        let refusals = steps.iter().copied().filter(|step| refused(step)).count();
        if refusals > 0 {
            found.push(format!(
                "{} refused it before it was taken; no byte of it had reached a function.",
                count(refusals, "runner")
            ));
        }
    }
    if let Some(left) = steps.iter().find_map(|step| match &step.what {
        What::Left { runner } => Some(&runner.name),
        _ => None,
    }) {
        found.push(format!(
            "It gave up its place in the line of {left}: another runner could start it first."
        ));
    }
}

/// Why it was cold, and what would have made it warm; or why it waited on its runner though it was not.
fn cold(record: &Record, found: &mut Vec<String>) {
    let Some(timings) = record.story.timings() else { return };
    let Some(function) = &record.story.function else { return };
    let accepted = record.story.steps().find_map(|step| match &step.what {
        What::Accepted { runner, census, .. } => Some((runner, census.unwrap_or_default())),
        _ => None,
    });
    let Some((runner, census)) = accepted else { return };
    let waited = time(Duration::from_micros(timings.wait_us));
    let started = record.story.steps().any(|step| matches!(step.what, What::Started { .. }));
    if record.failed.is_some() && !started {
        found.push(format!("It stood in the line of {} for {waited}, and reached no function.", runner.name));
        return;
    }
    if !timings.cold {
        let busy = count(census.busy as usize, "call");
        found.push(format!(
            "It waited {waited} on {}, and a container that was there already took it: {busy} of {} ran in the fleet at that moment. {}",
            runner.name,
            function.spec.name,
            more(&function.spec, &census),
        ));
        return;
    }
    let name = &function.spec.name;
    let why = match (census.idle, census.busy) {
        (0, 0) => format!(
            "no runner had a container of {name}: it is new, was changed, had no call for longer than its idle_timeout ({}), or its last \
             one ended with a failure. min_containers: 1 keeps one ready",
            format_duration(function.spec.idle_timeout())
        ),
        (0, busy) => format!(
            "all containers of {name} in the fleet were busy, with {}. {}",
            count(busy as usize, "call"),
            more(&function.spec, &census)
        ),
        (idle, _) => format!(
            "{} of {name} seemed idle elsewhere, by what runners had said last, but no runner that was asked had one: \
             they were gone, or taken by calls that came first",
            count(idle as usize, "container")
        ),
    };
    let phases: Vec<_> = [
        ("image", timings.image_us),
        ("create", timings.create_us),
        ("start", timings.start_us),
        ("init", timings.init_us),
    ]
    .into_iter()
    .filter(|(_, us)| *us > 0)
    .map(|(phase, us)| format!("{phase} {}", time(Duration::from_micros(us))))
    .collect();
    let phases = if phases.is_empty() { String::new() } else { format!(" ({})", phases.join(", ")) };
    found.push(format!("It was cold, {waited} on {}{phases}: {}.", runner.name, why.trim_end_matches('.')));
}

/// What gives a busy function room.
fn more(spec: &FunctionSpec, census: &Census) -> String {
    let containers = census.busy.div_ceil(spec.concurrency.max(1));
    if containers >= spec.max_containers {
        return format!("max_containers ({}) is reached: raise it.", spec.max_containers);
    }
    format!("min_containers: {} would have had one ready for it.", containers + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::Story;
    use std::sync::Arc;
    use stoker_core::error::Code;
    use stoker_core::function::FunctionName;
    use stoker_core::ids::CallId;

    fn record(timings: v1::Timings, steps: Vec<What>) -> Record {
        let name = FunctionName::new("demo", "hello").expect("a name");
        let spec = FunctionSpec::new(name, vec!["/bin/true".into()], "/".into());
        let mut story = Story::default();
        story.function(crate::directory::Known::alone(spec));
        story.timed(Some(timings));
        let began = Instant::now();
        steps.into_iter().zip(1..).for_each(|(what, n)| story.note(began + Duration::from_millis(n), what));
        Record {
            id: CallId::new(),
            door: "invoke",
            began,
            took: Duration::from_millis(50),
            failed: None,
            trace: None,
            story,
        }
    }

    fn runner() -> Arc<crate::fleet::Runner> {
        crate::fleet::Runner::named("r1")
    }

    #[test]
    fn every_kind_of_cold_has_its_reason() {
        let cold = v1::Timings { cold: true, wait_us: 9_300, init_us: 8_000, ..Default::default() };
        let accepted = |idle, busy| {
            let census = Some(Census { runners: 3, open: 3, idle, busy, waiting: 0 });
            What::Accepted { runner: runner(), expected: None, census }
        };
        for (census, said) in [
            ((0, 0), "It was cold, 9.3 ms on r1 (init 8.0 ms): no runner had a container of demo/hello"),
            ((0, 2), "all containers of demo/hello in the fleet were busy, with 2 calls. min_containers: 3"),
            ((1, 0), "1 container of demo/hello seemed idle elsewhere"),
        ] {
            let record = record(
                cold,
                vec![
                    What::Offered { runner: runner(), why: Why::Planned(board::Why::Rank) },
                    accepted(census.0, census.1),
                ],
            );
            let told = story(&record);
            assert!(told.findings.len() == 1 && told.findings[0].contains(said), "{:?}", told.findings);
        }
        let mut failed = record(v1::Timings { wait_us: 700, ..Default::default() }, vec![accepted(0, 0)]);
        failed.failed = Some((Code::FunctionInitFailed, "it cannot be started".into()));
        let told = story(&failed).findings;
        assert_eq!(told[0], "It stood in the line of r1 for 700 µs, and reached no function.");
        let warm =
            record(v1::Timings { cold: false, wait_us: 700, ..Default::default() }, vec![accepted(0, 20)]);
        assert!(
            story(&warm).findings[0].starts_with("It waited 700 µs on r1"),
            "{:?}",
            story(&warm).findings
        );
    }

    #[test]
    fn a_wait_says_where_and_behind_whom() {
        let census = Some(Census { runners: 2, open: 2, idle: 0, busy: 4, waiting: 1 });
        let steps = vec![
            What::Offered { runner: runner(), why: Why::Planned(board::Why::Rank) },
            What::Refused { runner: runner(), reason: Refusal::Full, detail: "no slot".into() },
            What::Waits { behind: false, census },
            What::Offered { runner: runner(), why: Why::Turn },
        ];
        let told = story(&record(v1::Timings::default(), steps));
        let said = "It waited 1.0 ms in the balancer for a runner with room: 1 of 2 runners that could be asked refused it";
        assert!(told.findings[0].starts_with(said), "{:?}", told.findings);
        let kinds: Vec<_> = told.steps.iter().map(v1::CallStep::kind).collect();
        use v1::CallStepKind as Kind;
        assert_eq!(kinds, [Kind::Offered, Kind::Refused, Kind::Waits, Kind::Offered]);
        assert_eq!((told.steps[1].reason.as_str(), told.steps[1].detail.as_str()), ("full", "no slot"));
        assert_eq!(told.steps[3].choice(), v1::CallChoice::Turn);
    }

    #[test]
    fn a_call_without_a_story_says_so() {
        let mut record = record(v1::Timings::default(), vec![]);
        assert_eq!(story(&record).findings, ["It was not offered to any runner."]);
        record.failed = Some((Code::Overloaded, "full".into()));
        let told = story(&record);
        assert_eq!(told.findings, ["It failed with OVERLOADED: full"]);
        assert_eq!(told.error.map(|error| error.code()), Some(v1::ErrorCode::Overloaded));
    }
}
