//! `apply`, `functions`, `describe`, `delete`: the function registry.

use serde_json::json;
use stoker_core::FunctionSpec;
use stoker_core::units::{format_duration, format_size};
use stoker_proto::v1;
use stoker_proto::v1::ApplyOutcome;
use stoker_proto::v1::function_service_client::FunctionServiceClient;

use crate::args::{Apply, Common, Function, Functions, Output};
use crate::client::{self, Connection};
use crate::failure::Failure;
use crate::{file, output, plan, rollout};

/// Reads the files, or fails with all mistakes of all of them.
pub fn read(files: &[std::path::PathBuf]) -> Result<Vec<FunctionSpec>, Failure> {
    file::load(files).map_err(|mistakes| {
        let list: Vec<_> = mistakes.iter().map(|mistake| format!("\n  {mistake}")).collect();
        let count = if list.len() == 1 { "a mistake".to_owned() } else { format!("{} mistakes", list.len()) };
        Failure::usage(
            format!("{count} in what was to be applied:{}", list.concat()),
            "correct them; nothing was applied",
        )
    })
}

/// Creates or replaces functions.
pub async fn send(
    client: &mut FunctionServiceClient<Connection>,
    specs: &[FunctionSpec],
    hold: bool,
) -> Result<Vec<v1::AppliedFunction>, Failure> {
    let functions = specs.iter().map(stoker_proto::convert::to_function).collect();
    let applied = client.apply_functions(v1::ApplyFunctionsRequest { functions, hold }).await;
    Ok(applied.map_err(|status| refused(&status, specs))?.into_inner().functions)
}

/// Why functions were not applied; what is wrong with single ones, by name.
fn refused(status: &tonic::Status, specs: &[FunctionSpec]) -> Failure {
    use tonic_types::StatusExt as _;
    let violations = status.get_details_bad_request().map(|wrong| wrong.field_violations).unwrap_or_default();
    if violations.is_empty() {
        return Failure::in_registry(status);
    }
    let lines = violations.into_iter().map(|violation| {
        let place = violation.field.strip_prefix("functions[").and_then(|rest| rest.split_once("]."));
        let place = place.and_then(|(at, field)| Some((specs.get(at.parse::<usize>().ok()?)?, field)));
        match place {
            Some((spec, field)) => format!("\n  {}: `{field}` {}", spec.name, violation.description),
            None => format!("\n  {}: {}", violation.field, violation.description),
        }
    });
    let text = format!("{}:{}", status.message(), lines.collect::<String>());
    Failure::usage(text, "correct them and apply them again")
}

pub async fn apply(args: Apply, common: &Common) -> Result<(), Failure> {
    let specs = read(&args.files)?;
    if specs.is_empty() && common.output == Output::Table {
        output::say("There are no functions in what was to be applied: nothing was done.\n");
        return Ok(());
    }
    if args.dry_run {
        return plan::run(&specs, common).await;
    }
    let applied = send(&mut client::functions(&common.server).await?, &specs, args.hold).await?;
    let outcome = |f: &v1::AppliedFunction| match f.outcome() {
        ApplyOutcome::Created => "created",
        ApplyOutcome::Updated => "updated",
        ApplyOutcome::Unchanged => "unchanged",
        ApplyOutcome::Unspecified => "applied",
    };
    match common.output {
        Output::Json => output::print_json(&json!({
            "functions": applied.iter().map(|f| json!({
                "app": f.app, "name": f.name, "id": f.id, "outcome": outcome(f), "revision": f.revision,
                "traffic": rollout::split_json(f.traffic.as_ref()),
            })).collect::<Vec<_>>()
        })),
        Output::Table => {
            let lines = applied.iter().map(|f| format!("{}/{} {}\n", f.app, f.name, outcome(f)));
            output::print(&lines.collect::<String>())?;
            for f in &applied {
                if f.traffic.is_some_and(|split| split.main != f.revision || split.other > 0) {
                    let (name, words) = (format!("{}/{}", f.app, f.name), rollout::words(f.traffic.as_ref()));
                    output::say(&format!(
                        "{name} has revision {} now, and {words}: `stoker rollout {name} --to 100%` sends all to the newest.\n",
                        f.revision
                    ));
                }
            }
            Ok(())
        }
    }
}

pub async fn list(args: Functions, common: &Common) -> Result<(), Failure> {
    let mut client = client::functions(&common.server).await?;
    let mut list = client
        .list_functions(v1::ListFunctionsRequest { app: args.app.clone() })
        .await?
        .into_inner()
        .functions;
    let name = |d: &v1::FunctionDescription| d.function.as_ref().map(|f| (f.app.clone(), f.name.clone()));
    list.sort_by_key(name);
    if common.output == Output::Json {
        return output::print_json(
            &json!({"functions": list.iter().map(output::function).collect::<Vec<_>>()}),
        );
    }
    if list.is_empty() {
        output::say(&match args.app.as_str() {
            "" => "There are no functions. Apply some with `stoker apply -f FILE`.\n".to_owned(),
            app => format!(
                "There are no functions in the app `{app}`; `stoker functions` shows those of all apps.\n"
            ),
        });
        return Ok(());
    }
    let rows = list.iter().map(|d| {
        let f = d.function.clone().unwrap_or_default();
        let triggers: Vec<_> = f.triggers.iter().map(|t| t.http.as_str()).collect();
        vec![
            format!("{}/{}", f.app, f.name),
            format(&f),
            format_size(f.memory),
            output::cpu(f.cpu_millis),
            d.idle.to_string(),
            d.busy.to_string(),
            d.waiting.to_string(),
            triggers.join(" "),
        ]
    });
    let header = ["FUNCTION", "FORMAT", "MEMORY", "CPU", "IDLE", "BUSY", "WAITING", "TRIGGERS"];
    output::print(&output::table(&header, rows.collect()))
}

/// Where it answers, and to what.
fn trigger(app: &str, trigger: &v1::Trigger) -> String {
    let mut text = format!("/t/{app}{}", trigger.http);
    let mut with = |what: &str, all: Vec<String>| {
        if !all.is_empty() {
            text += &format!("  {what} {}", all.join(", "));
        }
    };
    let pairs = |all: &std::collections::HashMap<String, String>| {
        let mut all: Vec<_> = all.iter().map(|(name, value)| format!("{name}={value}")).collect();
        all.sort();
        all
    };
    with("by", trigger.methods.clone());
    with("at", trigger.hosts.clone());
    with("with the headers", pairs(&trigger.headers));
    with("with", pairs(&trigger.query));
    with("for pages of", trigger.cors.iter().flat_map(|cors| cors.origins.clone()).collect());
    text
}

pub async fn describe(args: Function, common: &Common) -> Result<(), Failure> {
    let mut client = client::functions(&common.server).await?;
    let answer = client.get_function(v1::GetFunctionRequest { function: args.function }).await?.into_inner();
    let description = answer.function.unwrap_or_default();
    if common.output == Output::Json {
        return output::print_json(&output::function(&description));
    }
    let f = description.function.clone().unwrap_or_default();
    let time = |d: Option<prost_types::Duration>| {
        format_duration(d.map(stoker_proto::convert::duration).unwrap_or_default())
    };
    // Only an image makes it possible that the function itself says nothing.
    let own = |text: String| if text.is_empty() { "the image's own".to_owned() } else { text };
    let mut rows = vec![
        ("function", format!("{}/{}", f.app, f.name)),
        ("id", description.id),
        ("version", description.digest),
        ("revision", format!("{}; {}", description.revision, rollout::words(description.traffic.as_ref()))),
        ("root", output::root(&f)),
        ("command", own(f.command.iter().map(|part| quoted(part)).collect::<Vec<_>>().join(" "))),
        ("workdir", own(f.workdir.clone())),
        ("format", format(&f)),
        ("memory", format_size(f.memory)),
        ("cpu", output::cpu(f.cpu_millis)),
        ("timeout", time(f.timeout)),
        ("init timeout", time(f.init_timeout)),
        ("idle timeout", time(f.idle_timeout)),
        ("calls at once", format!("{} in one container", f.concurrency)),
        (
            "containers",
            format!("at least {} in the fleet, at most {} on a runner", f.min_containers, f.max_containers),
        ),
        (
            "now",
            format!("{} idle, {} busy, {} waiting", description.idle, description.busy, description.waiting),
        ),
        ("network", f.network),
        ("idempotent", f.idempotent.to_string()),
    ];
    rows.extend(f.triggers.iter().map(|t| ("trigger", trigger(&f.app, t))));
    let cors = |cors: &v1::Cors| ("cors", format!("pages of {}", cors.origins.join(", ")));
    rows.extend(f.cors.as_ref().map(cors));
    for (what, most) in [("largest request", f.max_request), ("largest answer", f.max_response)] {
        rows.extend((most > 0).then(|| (what, format_size(most))));
    }
    rows.extend(f.schedules.iter().map(|s| ("schedule", s.cron.clone())));
    if let Some(later) = &f.later {
        rows.push(("async attempts", later.max_attempts.to_string()));
        rows.extend((!later.dead_letter.is_empty()).then(|| ("dead letters", later.dead_letter.clone())));
    }
    let env = std::collections::BTreeMap::from_iter(f.env);
    rows.extend(env.iter().map(|(key, value)| ("env", format!("{key}={value}"))));
    let secrets = std::collections::BTreeMap::from_iter(f.secrets);
    rows.extend(secrets.iter().map(|(key, name)| ("env", format!("{key} from the secret {name}"))));
    let style = output::Style::stdout();
    let lines = rows.iter().map(|(key, value)| format!("{} {value}\n", style.bold(&format!("{key:<14}"))));
    output::print(&lines.collect::<String>())
}

pub async fn delete(args: Function, common: &Common) -> Result<(), Failure> {
    let mut client = client::functions(&common.server).await?;
    let deleted = client.delete_function(v1::DeleteFunctionRequest { function: args.function.clone() }).await;
    deleted.map_err(|status| Failure::in_registry(&status))?;
    match common.output {
        Output::Json => output::print_json(&json!({"deleted": args.function})),
        Output::Table => output::print(&format!("{} deleted\n", args.function)),
    }
}

/// A function's format with what was chosen about it.
fn format(f: &v1::Function) -> String {
    let chosen = output::options(f).into_iter().map(|(key, value)| match value {
        serde_json::Value::Bool(_) => key.to_owned(),
        serde_json::Value::String(text) => format!("{key}: {text}"),
        other => format!("{key}: {other}"),
    });
    let chosen: Vec<_> = chosen.collect();
    match chosen.is_empty() {
        true => f.format.clone(),
        false => format!("{} ({})", f.format, chosen.join(", ")),
    }
}

/// A word as a shell would take it.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_function_is_said_with_its_name() {
        use tonic_types::{ErrorDetails, StatusExt as _};
        let specs = ["a", "b"].map(|name| {
            let name = stoker_core::FunctionName::new("app", name).expect("a name");
            FunctionSpec::new(name, vec!["x".into()], "/".into())
        });
        let mut details = ErrorDetails::new();
        details.add_bad_request_violation("functions[1].image", "r.example/x:1: manifest unknown");
        details.add_bad_request_violation("functions[7].image", "what");
        let code = tonic::Code::InvalidArgument;
        let failure = refused(
            &tonic::Status::with_error_details(code, "2 mistakes; nothing was applied", details),
            &specs,
        );
        let expected = "2 mistakes; nothing was applied:\n  app/b: `image` r.example/x:1: manifest unknown\n  functions[7].image: what";
        assert_eq!(failure.what(), expected);
        let away = Failure::from(tonic::Status::unavailable("gone"));
        assert_eq!(refused(&tonic::Status::unavailable("gone"), &specs).what(), away.what());
    }

    #[test]
    fn a_format_is_shown_with_its_options() {
        let options = v1::FormatOptions { handler: "f.h".into(), cold: true, ..Default::default() };
        let mut function = v1::Function { format: "x".into(), ..Default::default() };
        assert_eq!(format(&function), "x");
        function.format_options = Some(options);
        assert_eq!(format(&function), "x (cold, handler: f.h)");
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        assert_eq!(["a/b.py", "", "it's", "a b"].map(quoted), ["a/b.py", "''", "'it'\\''s'", "'a b'"]);
    }
}
