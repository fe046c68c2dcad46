//! `explain`: why a call went where it went, in the words of the balancer that took it.

use serde_json::{Value, json};
use stoker_core::{Code, Error};
use stoker_proto::convert::duration;
use stoker_proto::v1::{self, CallChoice, CallStepKind as Kind, ExplainCallRequest};

use crate::args::{Common, Explain, Output};
use crate::failure::Failure;
use crate::{client, output};

pub async fn run(args: Explain, common: &Common) -> Result<(), Failure> {
    let story = find(&args.call, &common.server).await?;
    match common.output {
        Output::Json => output::print_json(&json(&story)),
        Output::Table => output::print(&text(&story, output::Style::stdout())),
    }
}

/// Asks one balancer after the other: only the one that took the call knows it.
async fn find(call: &str, servers: &str) -> Result<v1::CallStory, Failure> {
    let servers: Vec<_> = servers.split(',').map(str::trim).filter(|server| !server.is_empty()).collect();
    let (mut failed, mut strangers) = (None, 0);
    for server in &servers {
        let asked = async {
            let mut client = client::fleet(server).await?;
            let request = ExplainCallRequest { call_id: call.to_owned() };
            Ok::<_, Failure>(client.explain_call(request).await)
        };
        match asked.await {
            Ok(Ok(answer)) => {
                let story = answer.into_inner().story;
                return story.ok_or_else(|| {
                    Failure::platform(
                        format!("{server} gave an answer without a story"),
                        "please report this",
                    )
                });
            }
            Ok(Err(status)) if status.code() == tonic::Code::NotFound => strangers += 1,
            Ok(Err(status)) => failed = Some(Failure::from(status)),
            // The others may know.
            Err(failure) => failed = Some(failure),
        }
    }
    Err(failed.unwrap_or_else(|| {
        let of =
            if strangers == 1 { "the balancer".to_owned() } else { format!("any of {strangers} balancers") };
        let text = format!("call {call} is not among the last calls of {of} that was asked");
        Failure::new(
            Error::new(Code::NotFound, text),
            "a balancer knows only the calls that it took itself: name all of them, `--server URL,URL`",
        )
    }))
}

fn text(story: &v1::CallStory, style: output::Style) -> String {
    let mut out = String::new();
    let mut row = |key: &str, value: String| {
        if !value.is_empty() {
            out += &format!("{key:<10} {}\n", output::printable(&value));
        }
    };
    row("call", story.call_id.clone());
    row("function", story.function.clone());
    row("began", story.began.map(|at| at.to_string()).unwrap_or_default());
    row("balancer", format!("{}, by {}", story.balancer, story.door));
    row("took", output::human_us(micros(story.took)));
    row("outcome", outcome(story));
    row("trace", story.trace_id.clone());
    let header = ["AT", "RUNNER", "WHAT"];
    let mut rows: Vec<_> =
        story.steps.iter().map(|step| vec![at(step), step.runner.clone(), what(step)]).collect();
    if story.left_out > 0 {
        let gap = format!("({} steps between, which are not kept)", story.left_out);
        rows.insert(rows.len() / 2, vec![String::new(), String::new(), gap]);
    }
    if !rows.is_empty() {
        out += &format!("\n{}", output::table(&header, rows));
    }
    out += &format!("\n{}\n", style.bold("Why"));
    for finding in &story.findings {
        out += &format!("- {}\n", output::printable(finding));
    }
    out
}

fn micros(time: Option<prost_types::Duration>) -> u64 {
    time.map_or(0, |time| u64::try_from(duration(time).as_micros()).unwrap_or(u64::MAX))
}

fn outcome(story: &v1::CallStory) -> String {
    match &story.error {
        Some(error) => format!("{}: {}", code(error), error.message),
        None if story.timings.is_some_and(|timings| timings.cold) => "OK, cold".to_owned(),
        None => "OK".to_owned(),
    }
}

/// A code's name as everybody else has it.
fn code(error: &v1::CallError) -> &'static str {
    stoker_proto::status::row(stoker_proto::convert::call_error(error.clone()).code).reason
}

fn at(step: &v1::CallStep) -> String {
    match micros(step.at) {
        0 => "0 µs".to_owned(),
        us => output::human_us(us),
    }
}

fn what(step: &v1::CallStep) -> String {
    let detail =
        |text: String| if step.detail.is_empty() { text } else { format!("{text}: {}", step.detail) };
    let text = match step.kind() {
        Kind::Offered => format!("offered: {}", choice(step)),
        Kind::Refused => detail(format!("refused, {}", step.reason.replace('_', " "))),
        Kind::Accepted => match micros(step.expected_wait) {
            0 => "taken into its line".to_owned(),
            us => format!("taken into its line, for some {}", output::human_us(us)),
        },
        Kind::Started => "a container was free for it: told to start".to_owned(),
        Kind::Lost if step.may_have_started => detail("lost, and it may have started there".to_owned()),
        Kind::Lost => detail("lost before it had started".to_owned()),
        Kind::Left => "gave up its place there".to_owned(),
        Kind::Waits if step.behind_others => {
            "waits in the balancer, behind others of its function".to_owned()
        }
        Kind::Waits => "waits in the balancer".to_owned(),
        Kind::Unspecified => "something that this version of the command does not know".to_owned(),
    };
    match &step.census {
        Some(c) => format!(
            "{text} (in the fleet: {} idle, {} busy, {} waiting; {} of {} runners could be asked)",
            c.idle, c.busy, c.waiting, c.open, c.runners
        ),
        None => text,
    }
}

fn choice(step: &v1::CallStep) -> String {
    match step.choice() {
        CallChoice::Warm => {
            format!("{} idle by its word of {} before", step.idle, output::human_us(micros(step.hint_age)))
        }
        CallChoice::Line => format!(
            "the shortest line: {} running and {} waiting by its word of {} before",
            step.busy,
            step.waiting,
            output::human_us(micros(step.hint_age))
        ),
        CallChoice::Rank => "next in the function's order".to_owned(),
        CallChoice::Spill => "less busy than another that was drawn".to_owned(),
        CallChoice::Turn => "it had said that there was room".to_owned(),
        CallChoice::Idle => "it had said that a container was idle".to_owned(),
        CallChoice::Young => "new in the fleet".to_owned(),
        CallChoice::Unspecified => "for a reason that this version of the command does not know".to_owned(),
    }
}

fn json(story: &v1::CallStory) -> Value {
    let kind =
        |step: &v1::CallStep| step.kind().as_str_name().trim_start_matches("CALL_STEP_KIND_").to_lowercase();
    let chosen =
        |step: &v1::CallStep| step.choice().as_str_name().trim_start_matches("CALL_CHOICE_").to_lowercase();
    let steps = story.steps.iter().map(|step| {
        let mut value = json!({"at_us": micros(step.at), "what": kind(step), "text": what(step)});
        let mut set = |key: &str, is: bool, what: Value| {
            if is {
                value[key] = what;
            }
        };
        set("runner", !step.runner.is_empty(), step.runner.as_str().into());
        set("choice", step.kind() == Kind::Offered, chosen(step).into());
        set("idle", step.choice() == CallChoice::Warm, step.idle.into());
        set("busy", step.choice() == CallChoice::Line, step.busy.into());
        set("waiting", step.choice() == CallChoice::Line, step.waiting.into());
        set("hint_age_us", step.hint_age.is_some(), micros(step.hint_age).into());
        set("reason", !step.reason.is_empty(), step.reason.as_str().into());
        set("detail", !step.detail.is_empty(), step.detail.as_str().into());
        set("expected_wait_us", step.expected_wait.is_some(), micros(step.expected_wait).into());
        set("may_have_started", step.kind() == Kind::Lost, step.may_have_started.into());
        if let Some(c) = &step.census {
            value["fleet"] = json!({
                "runners": c.runners, "open": c.open, "idle": c.idle, "busy": c.busy, "waiting": c.waiting,
            });
        }
        value
    });
    json!({
        "call_id": story.call_id, "function": story.function, "digest": story.digest, "door": story.door,
        "balancer": story.balancer, "began": story.began.map(|at| at.to_string()), "took_us": micros(story.took),
        "error": story.error.as_ref().map(|error| json!({"code": code(error), "message": error.message})),
        "timings": story.timings.as_ref().map(|timings| output::timings(Some(timings))),
        "trace_id": story.trace_id, "steps": steps.collect::<Vec<_>>(), "left_out": story.left_out,
        "findings": story.findings,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn story() -> v1::CallStory {
        let time = |us: u32| Some(prost_types::Duration { seconds: 0, nanos: us as i32 * 1000 });
        let step = |us, kind: Kind, runner: &str| v1::CallStep {
            at: time(us),
            kind: kind.into(),
            runner: runner.into(),
            ..Default::default()
        };
        v1::CallStory {
            call_id: "c".into(),
            function: "demo/hello".into(),
            balancer: "b1".into(),
            door: "invoke".into(),
            took: time(12_000),
            timings: Some(v1::Timings { cold: true, ..Default::default() }),
            steps: vec![
                v1::CallStep {
                    choice: CallChoice::Warm.into(),
                    idle: 2,
                    hint_age: time(1_500),
                    ..step(0, Kind::Offered, "r1")
                },
                v1::CallStep {
                    reason: "full".into(),
                    detail: "no slot".into(),
                    ..step(400, Kind::Refused, "r1")
                },
                v1::CallStep {
                    census: Some(v1::FleetCensus { runners: 2, open: 2, idle: 0, busy: 3, waiting: 1 }),
                    ..step(900, Kind::Waits, "")
                },
            ],
            findings: vec!["It was cold.".into()],
            ..Default::default()
        }
    }

    #[test]
    fn a_story_reads_as_it_went() {
        let text = text(&story(), output::Style::plain());
        for line in [
            "outcome    OK, cold",
            "offered: 2 idle by its word of 1.50 ms before",
            "refused, full: no slot",
            "waits in the balancer (in the fleet: 0 idle, 3 busy, 1 waiting; 2 of 2 runners could be asked)",
            "- It was cold.",
        ] {
            assert!(text.contains(line), "{line:?} in {text}");
        }
        assert!(!text.contains("trace"), "what is not known is not there: {text}");
    }

    #[test]
    fn what_a_long_story_leaves_out_was_in_its_middle() {
        let mut long = story();
        long.steps.push(long.steps[1].clone());
        long.left_out = 7;
        let text = text(&long, output::Style::plain());
        let rows: Vec<_> = text.lines().skip_while(|line| !line.starts_with("AT")).skip(1).take(5).collect();
        assert!(rows[1].contains("refused") && rows[3].contains("waits in the balancer"), "{text}");
        assert_eq!(rows[2].trim(), "(7 steps between, which are not kept)");
    }

    #[test]
    fn programs_get_the_facts() {
        let json = json(&story());
        assert_eq!(json["steps"][0]["choice"], "warm");
        assert_eq!(json["steps"][0]["hint_age_us"], 1500);
        assert_eq!(json["steps"][1]["reason"], "full");
        assert_eq!((&json["steps"][2]["fleet"]["busy"], &json["error"]), (&3.into(), &Value::Null));
    }
}
