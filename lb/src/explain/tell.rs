//! A call's story as it is told: its steps, and the reasons in sentences.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use stoker_core::FunctionSpec;
use stoker_core::call::Cold;
use stoker_core::error::Refusal;
use stoker_core::units::format_duration;
use stoker_policy::board;
use stoker_proto::{convert, v1};

use super::{Census, Record, Step, Story, What, Why};
use crate::fleet::Runner;

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
    if !record.story.steps().any(|step| matches!(step.what, What::Offered { .. })) {
        found.push("It was not offered to any runner.".to_owned());
    }
    waited(record, &mut found);
    lost(record, &mut found);
    served(record, &mut found);
    if let Some((code, message)) = &record.failed {
        found.push(format!("It failed with {}: {message}", stoker_proto::status::row(*code).reason));
    }
    if found.is_empty() {
        found.push("Its runner does not say how it came to its container.".to_owned());
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
        // A turn that came to nothing leads back into the queue.
        // And of one behind which steps are not kept nobody knows what it came to.
        let known = if record.story.left_out == 0 { 0 } else { record.story.beginning().count() };
        let turn =
            steps[known..].iter().rposition(|step| matches!(step.what, What::Offered { why: Why::Turn, .. }));
        let turn = turn.map(|turn| known + turn);
        let end = turn.filter(|turn| !steps[*turn..].iter().any(refused));
        let until = match end {
            Some(turn) => Some(steps[turn].at),
            // Of one that stood in a line in the end, the turn that led there is not kept.
            None => holder(record).is_none().then(|| record.began + record.took),
        };
        let since = |until: Instant| until.saturating_duration_since(steps[at].at);
        let time = until.map_or_else(String::new, |until| format!(" {}", time(since(until))));
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
        let help = match census {
            Some(Census { open: 0, .. }) => "`stoker runners` tells how each stands.".to_owned(),
            Some(census) => match record.story.function.as_ref().and_then(|known| bound(&known.spec, census))
            {
                Some(most) => {
                    format!("max_containers ({most} on a runner) is reached: raise it, or add runners.")
                }
                None => "More runners, or more memory on them, would have helped.".to_owned(),
            },
            None => "More runners, or more memory on them, would have helped.".to_owned(),
        };
        found.push(format!("It waited{time} in the balancer for a runner with room: {why}{others}. {help}"));
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

/// Runners that went away with it.
fn lost(record: &Record, found: &mut Vec<String>) {
    let failed = record.failed.is_some();
    for step in record.story.steps() {
        let What::Lost { runner, may_have_started, .. } = &step.what else { continue };
        let then = match (may_have_started, failed) {
            (false, _) => "It had not started there.",
            (true, false) => {
                "It may have started there, and was offered again since its function is idempotent."
            }
            (true, true) => {
                "It may have started there, and only a function that is marked idempotent is called again then."
            }
        };
        found.push(format!("{} was lost with it. {then}", runner.name));
    }
}

/// Who had it in the end, if that was kept: whom the last step but those about runners that had it no more is about.
fn holder(record: &Record) -> Option<&Runner> {
    let Story { left_out, .. } = record.story;
    // Who had it before steps that are not kept may have lost it in one of them.
    let mut steps = record.story.end().rev().chain(record.story.beginning().filter(|_| left_out == 0).rev());
    let mut over: Vec<&Runner> = Vec::new();
    steps.find_map(|step| match &step.what {
        What::Refused { runner, .. } | What::Lost { runner, .. } | What::Left { runner } => {
            over.push(runner);
            None
        }
        What::Offered { runner, .. } | What::Accepted { runner, .. } | What::Started { runner } => {
            let Some(at) = over.iter().position(|other| std::ptr::eq(*other, &**runner)) else {
                return Some(&**runner);
            };
            // That was its place there, which came to nothing.
            if matches!(step.what, What::Offered { .. }) {
                over.remove(at);
            }
            None
        }
        What::Waits { .. } => None,
    })
}

/// How it came to its container: at once, after a wait, or by a launch of its own, and what would have made it warm.
fn served(record: &Record, found: &mut Vec<String>) {
    let Some(timings) = record.story.timings() else { return };
    let Some(function) = &record.story.function else { return };
    let Some(runner) = holder(record) else { return };
    let (runner, name) = (runner.name.as_str(), &function.spec.name);
    // A wait that was over at once was not told, and nothing was counted then.
    let census = record.story.steps().find_map(|step| match &step.what {
        What::Accepted { census, .. } => *census,
        _ => None,
    });
    let waited = time(Duration::from_micros(timings.wait_us));
    if record.failed.is_some() && timings.execution_us == 0 {
        found.push(format!("It stood in the line of {runner} for {waited}, and reached no function."));
    } else if timings.cold {
        let why = match convert::cold(timings) {
            Some(cold) => cause(cold, runner, &function.spec, census),
            None => guess(&function.spec, census),
        };
        found.push(format!("It was cold, {waited} on {runner}{}: {why}", phases(timings)));
    } else if timings.wait_us > 0 {
        let busy = census.map_or_else(String::new, |census| {
            format!(": {} of {name} ran in the fleet at that moment", count(census.busy as usize, "call"))
        });
        let more = more(&function.spec, census);
        found.push(format!(
            "It waited {waited} on {runner}, and a container that was there already took it{busy}. {more}"
        ));
    } else {
        let thaw = match timings.thaw_us {
            0 => String::new(),
            us => format!(", frozen: it was thawed in {}", time(Duration::from_micros(us))),
        };
        let offers = record.story.steps().filter(|step| matches!(step.what, What::Offered { .. })).count();
        let place = if offers > 1 { runner } else { "the first runner that was asked" };
        found.push(format!("It found a container ready at {place}{thaw}."));
    }
}

/// Why a call was cold, as its runner says, and what would have made it warm.
fn cause(cold: Cold, runner: &str, spec: &FunctionSpec, census: Option<Census>) -> String {
    let name = &spec.name;
    let (why, help) = match cold {
        // These say what the fleet had.
        Cold::Busy => {
            return format!(
                "those of {name} there had calls, or were starting for others. {}",
                more(spec, census)
            );
        }
        Cold::Once => {
            return format!(
                "format {} has a process for each call, and none was prepared. min_containers: 1 keeps one prepared.",
                spec.format
            );
        }
        Cold::First => (
            format!("no container of this version of {name} had been there since {runner} was started"),
            " min_containers: 1 keeps one ready.",
        ),
        Cold::Expired => (
            format!(
                "the last one of {name} there had no call for longer than its idle_timeout ({}), and ended",
                format_duration(spec.idle_timeout())
            ),
            " A longer one keeps it, and min_containers: 1 keeps one ready however long that is.",
        ),
        Cold::Evicted => (
            format!("the last one of {name} there had made room for containers of other functions"),
            " More runners, or more memory on them, would have kept it; what min_containers keeps goes last.",
        ),
        Cold::Broken => (
            format!(
                "the last one of {name} there had ended by itself, or was not trusted after a call that failed: `stoker logs {name}` \
                 has what it wrote"
            ),
            "",
        ),
        Cold::Drained => (
            format!(
                "the last one of {name} there had ended since {runner} was drained, or since the secrets or files of {name} were replaced"
            ),
            "",
        ),
    };
    let elsewhere = match census {
        None => String::new(),
        Some(Census { idle: 0, busy: 0, .. }) => " There was none elsewhere.".to_owned(),
        Some(Census { idle: 0, busy, .. }) => {
            format!(" Elsewhere {} of it ran, and no container was idle.", count(busy as usize, "call"))
        }
        Some(Census { idle, .. }) => format!(
            " By what runners had said last {} of it {} idle elsewhere; it had gone, or was taken by calls that came first.",
            count(idle as usize, "container"),
            if idle == 1 { "was" } else { "were" },
        ),
    };
    format!("{why}.{elsewhere}{help}")
}

/// The same of a runner that does not say why.
fn guess(spec: &FunctionSpec, census: Option<Census>) -> String {
    let name = &spec.name;
    match census {
        Some(Census { idle: 0, busy, .. }) if busy > 0 => {
            let busy = count(busy as usize, "call");
            format!("all containers of {name} in the fleet were busy, with {busy}. {}", more(spec, census))
        }
        Some(Census { idle, .. }) if idle > 0 => format!(
            "{} of {name} seemed idle elsewhere, by what runners had said last, but no runner that was asked had one: \
             they were gone, or taken by calls that came first.",
            count(idle as usize, "container")
        ),
        _ => format!(
            "no runner had a container of {name}: it is new, was changed, had no call for longer than its idle_timeout ({}), made room for \
             others, or its last one ended with a failure. min_containers: 1 keeps one ready.",
            format_duration(spec.idle_timeout())
        ),
    }
}

/// What its launch was made of.
fn phases(timings: &v1::Timings) -> String {
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
    if phases.is_empty() { String::new() } else { format!(" ({})", phases.join(", ")) }
}

/// What gives a busy function room.
fn more(spec: &FunctionSpec, census: Option<Census>) -> String {
    let Some(census) = census else {
        return "A larger min_containers keeps more of them ready.".to_owned();
    };
    match bound(spec, &census) {
        Some(most) => format!("max_containers ({most} on a runner) is reached: raise it."),
        None => format!("min_containers: {} would have had one ready for it.", working(spec, &census) + 1),
    }
}

/// Its containers that have calls.
fn working(spec: &FunctionSpec, census: &Census) -> u32 {
    census.busy.div_ceil(spec.concurrency.max(1))
}

/// Its `max_containers`, where all that it may have on the runners that could be asked have calls.
fn bound(spec: &FunctionSpec, census: &Census) -> Option<u32> {
    let most = spec.max_containers;
    (working(spec, census) >= most.saturating_mul(census.open.max(1))).then_some(most)
}

#[cfg(test)]
mod tests {
    use super::*;
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

    fn runner() -> Arc<Runner> {
        Runner::named("r1")
    }

    fn offered(runner: &Arc<Runner>) -> What {
        What::Offered { runner: runner.clone(), why: Why::Planned(board::Why::Rank) }
    }

    fn accepted(runner: &Arc<Runner>, idle: u32, busy: u32) -> What {
        let census = Some(Census { runners: 3, open: 3, idle, busy, waiting: 0 });
        What::Accepted { runner: runner.clone(), expected: None, census }
    }

    fn findings(timings: v1::Timings, steps: Vec<What>) -> Vec<String> {
        story(&record(timings, steps)).findings
    }

    const COLD: v1::Timings = v1::Timings {
        cold: true,
        wait_us: 9_300,
        init_us: 8_000,
        create_us: 0,
        start_us: 0,
        image_us: 0,
        thaw_us: 0,
        first_byte_us: 100,
        execution_us: 200,
        cold_cause: 0,
    };

    #[test]
    fn a_runner_says_why_a_call_was_cold() {
        let r1 = runner();
        for (cold, said) in [
            (
                v1::ColdCause::First,
                "no container of this version of demo/hello had been there since r1 was started",
            ),
            (
                v1::ColdCause::Busy,
                "those of demo/hello there had calls, or were starting for others. A larger min_containers",
            ),
            (
                v1::ColdCause::Expired,
                "the last one of demo/hello there had no call for longer than its idle_timeout (1m), and ended",
            ),
            (v1::ColdCause::Evicted, "made room for containers of other functions"),
            (v1::ColdCause::Broken, "not trusted after a call that failed: `stoker logs demo/hello`"),
            (v1::ColdCause::Once, "has a process for each call"),
            (v1::ColdCause::Drained, "had ended since r1 was drained"),
        ] {
            // A start that was over before it was worth telling is one too.
            let told = findings(v1::Timings { cold_cause: cold.into(), ..COLD }, vec![offered(&r1)]);
            let all = format!("It was cold, 9.3 ms on r1 (init 8.0 ms): {said}");
            let found =
                told[0].starts_with("It was cold, 9.3 ms on r1 (init 8.0 ms): ") && told[0].contains(said);
            assert!(told.len() == 1 && found, "{told:?}, and not {all}");
        }
        let evicted = v1::Timings { cold_cause: v1::ColdCause::Evicted.into(), ..COLD };
        for ((idle, busy), said) in [
            ((0, 0), ". There was none elsewhere."),
            ((0, 2), ". Elsewhere 2 calls of it ran, and no container was idle."),
            ((1, 2), "1 container of it was idle elsewhere; it had gone,"),
        ] {
            let told = findings(evicted, vec![offered(&r1), accepted(&r1, idle, busy)]);
            assert!(told[0].contains(said), "{told:?}, and not {said}");
        }
        let busy = v1::Timings { cold_cause: v1::ColdCause::Busy.into(), ..COLD };
        let told = findings(busy, vec![offered(&r1), accepted(&r1, 0, 2)]);
        assert!(told[0].ends_with("min_containers: 3 would have had one ready for it."), "{told:?}");
    }

    #[test]
    fn of_a_runner_that_does_not_say_it_is_guessed() {
        let r1 = runner();
        for ((idle, busy), said) in [
            ((0, 0), "It was cold, 9.3 ms on r1 (init 8.0 ms): no runner had a container of demo/hello"),
            ((0, 2), "all containers of demo/hello in the fleet were busy, with 2 calls. min_containers: 3"),
            ((1, 0), "1 container of demo/hello seemed idle elsewhere"),
        ] {
            let told = findings(COLD, vec![offered(&r1), accepted(&r1, idle, busy)]);
            assert!(told.len() == 1 && told[0].contains(said), "{told:?}");
        }
    }

    /// Which runner it was that had the call, and whether it waited there, however it came to be there.
    #[test]
    fn a_story_names_the_runner_that_had_the_call() {
        let (r1, r2) = (runner(), Runner::named("r2"));
        let warm = v1::Timings { execution_us: 200, ..Default::default() };
        let waited = v1::Timings { wait_us: 700, ..warm };
        let none_idle = |runner: &Arc<Runner>| What::Refused {
            runner: runner.clone(),
            reason: Refusal::NoneIdle,
            detail: String::new(),
        };
        let lost =
            |may_have_started| What::Lost { runner: r1.clone(), reason: "gone".into(), may_have_started };
        for (timings, steps, told) in [
            (
                warm,
                vec![offered(&r1)],
                vec!["It found a container ready at the first runner that was asked."],
            ),
            (
                v1::Timings { thaw_us: 250, ..warm },
                vec![offered(&r1)],
                vec![
                    "It found a container ready at the first runner that was asked, frozen: it was thawed in 250 µs.",
                ],
            ),
            (
                waited,
                vec![offered(&r1)],
                vec![
                    "It waited 700 µs on r1, and a container that was there already took it. A larger min_containers keeps more of \
                     them ready.",
                ],
            ),
            (
                waited,
                vec![
                    offered(&r1),
                    accepted(&r1, 0, 200),
                    offered(&r2),
                    none_idle(&r2),
                    What::Started { runner: r1.clone() },
                ],
                vec![
                    "It waited 700 µs on r1, and a container that was there already took it: 200 calls of demo/hello ran in the fleet \
                     at that moment. max_containers (64 on a runner) is reached: raise it.",
                ],
            ),
            (
                warm,
                vec![offered(&r1), accepted(&r1, 0, 1), offered(&r2), What::Left { runner: r1.clone() }],
                vec![
                    "It gave up its place in the line of r1: another runner could start it first.",
                    "It found a container ready at r2.",
                ],
            ),
            (
                warm,
                vec![offered(&r1), lost(false), offered(&r2)],
                vec!["r1 was lost with it. It had not started there.", "It found a container ready at r2."],
            ),
            (
                warm,
                vec![offered(&r1), lost(true), offered(&r2)],
                vec![
                    "r1 was lost with it. It may have started there, and was offered again since its function is idempotent.",
                    "It found a container ready at r2.",
                ],
            ),
        ] {
            assert_eq!(findings(timings, steps), told);
        }
        let failed = v1::Timings { wait_us: 700, ..Default::default() };
        let mut failed = record(failed, vec![offered(&r1), accepted(&r1, 0, 0)]);
        failed.failed = Some((Code::FunctionInitFailed, "it cannot be started".into()));
        assert_eq!(
            story(&failed).findings[0],
            "It stood in the line of r1 for 700 µs, and reached no function."
        );
        failed.story = Story::default();
        failed.story.note(failed.began, offered(&r1));
        assert_eq!(story(&failed).findings, ["It failed with FUNCTION_INIT_FAILED: it cannot be started"]);
    }

    /// However often it was refused: its end is kept, and that says who had it and since when.
    #[test]
    fn a_long_story_names_the_runner_that_had_the_call_too() {
        let (r1, r2) = (runner(), Runner::named("r2"));
        let turn = |runner: &Arc<Runner>| What::Offered { runner: runner.clone(), why: Why::Turn };
        let refused = |reason| What::Refused { runner: r2.clone(), reason, detail: String::new() };
        let census = Some(Census { runners: 2, open: 2, idle: 0, busy: 4, waiting: 1 });
        let long = |end: Vec<What>| {
            let waits = [offered(&r2), refused(Refusal::Full), What::Waits { behind: false, census }];
            let turns = (0..50).flat_map(|_| [turn(&r2), refused(Refusal::Full)]);
            waits.into_iter().chain(turns).chain(end).collect::<Vec<_>>()
        };
        let cold = v1::Timings { cold_cause: v1::ColdCause::First.into(), ..COLD };
        // 103 steps came before, of which each took a millisecond.
        let told = findings(cold, long(vec![turn(&r1)]));
        assert!(
            told[0].starts_with("It waited 101ms in the balancer for a runner with room: 1 of 2 "),
            "{told:?}"
        );
        let said = "It was cold, 9.3 ms on r1 (init 8.0 ms): no container of this version of demo/hello had been there since r1 ";
        assert!(told[1].starts_with(said), "{told:?}");
        // Where the turn that was of use is not kept, nor is the time.
        let idle = || (0..50).flat_map(|_| [offered(&r2), refused(Refusal::NoneIdle)]);
        let end = [turn(&r1), accepted(&r1, 0, 4)].into_iter().chain(idle());
        let told = findings(cold, long(end.chain([What::Started { runner: r1.clone() }]).collect()));
        assert!(told[0].starts_with("It waited in the balancer for a runner with room: 1 of 2 "), "{told:?}");
        assert!(told[1].starts_with(said), "{told:?}");
        // It stood in the line of one, was asked for at the other in vain, and started where it stood.
        let stood = |end: Vec<What>| {
            let waits = [offered(&r1), accepted(&r1, 0, 2)];
            waits.into_iter().chain(idle()).chain(end).collect::<Vec<_>>()
        };
        let told = findings(cold, stood(vec![What::Started { runner: r1.clone() }]));
        assert!(told.len() == 1 && told[0].starts_with("It was cold, 9.3 ms on r1 "), "{told:?}");
        let told = findings(cold, stood(vec![offered(&r2), What::Left { runner: r1.clone() }]));
        assert!(told[1].starts_with("It was cold, 9.3 ms on r2 "), "{told:?}");
        // What is not kept may have been the end of its place there.
        assert_eq!(findings(cold, stood(vec![])), ["Its runner does not say how it came to its container."]);
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
        assert!(told.findings[0].ends_with("More runners, or more memory on them, would have helped."));
        // More memory would not, where it may have no more containers.
        let census = Some(Census { runners: 2, open: 2, idle: 0, busy: 128, waiting: 1 });
        let full =
            findings(v1::Timings::default(), vec![offered(&runner()), What::Waits { behind: false, census }]);
        assert!(
            full[0].ends_with("max_containers (64 on a runner) is reached: raise it, or add runners."),
            "{full:?}"
        );
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
        assert_eq!(told.findings, ["It was not offered to any runner.", "It failed with OVERLOADED: full"]);
        assert_eq!(told.error.map(|error| error.code()), Some(v1::ErrorCode::Overloaded));
    }
}
