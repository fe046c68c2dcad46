//! Why a call was as it was, in sentences: what it waited for, whom it lost, how it came to its container, and what would have helped.

use std::time::{Duration, Instant};

use stoker_core::FunctionSpec;
use stoker_core::call::Cold;
use stoker_core::error::Refusal;
use stoker_core::units::format_duration;
use stoker_proto::{convert, v1};

use super::{Census, Record, Step, Story, What, Why};
use crate::fleet::Runner;

/// One sentence for each thing that is to be said, in the order in which it happened.
pub fn findings(record: &Record) -> Vec<String> {
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
        What::Left { runner } => Some(runner.title()),
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
        found.push(format!("{} was lost with it. {then}", runner.title()));
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
    let (title, name) = (runner.title(), &function.spec.name);
    let runner = title.as_ref();
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
mod tests;
