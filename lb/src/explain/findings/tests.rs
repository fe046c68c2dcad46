//! What is said of a call, for each way that it can take.

use std::sync::Arc;

use stoker_core::error::Code;
use stoker_core::function::FunctionName;
use stoker_core::ids::CallId;
use stoker_policy::board;

use super::*;
use crate::explain::tell::story;

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
    let lost = |may_have_started| What::Lost { runner: r1.clone(), reason: "gone".into(), may_have_started };
    for (timings, steps, told) in [
        (warm, vec![offered(&r1)], vec!["It found a container ready at the first runner that was asked."]),
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
    assert_eq!(story(&failed).findings[0], "It stood in the line of r1 for 700 µs, and reached no function.");
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
