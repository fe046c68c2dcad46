//! `revisions`, `rollout`, `rollback`, `alias`: what functions were, and where their calls go.

use serde_json::{Value, json};
use stoker_proto::v1;

use crate::args::{Alias, Common, Function, Output, Rollback, Rollout};
use crate::client;
use crate::failure::Failure;
use crate::output;

/// All calls, in the parts of which a split is made.
const WHOLE: u32 = 10_000;

pub async fn revisions(args: Function, common: &Common) -> Result<(), Failure> {
    let mut client = client::functions(&common.server).await?;
    let request = v1::ListRevisionsRequest { function: args.function };
    let answer = client.list_revisions(request).await?.into_inner();
    if common.output == Output::Json {
        return output::print_json(&json!({
            "revisions": answer.revisions.iter().map(|revision| json!({
                "number": revision.number, "digest": revision.digest, "published": revision.published,
                "created": revision.created.map(|at| at.to_string()),
                "share": share(answer.traffic.as_ref(), revision.number),
            })).collect::<Vec<_>>(),
            "traffic": split_json(answer.traffic.as_ref()),
            "aliases": answer.aliases.iter().map(|alias| json!({
                "name": alias.name, "split": split_json(alias.split.as_ref()), "description": alias.description,
            })).collect::<Vec<_>>(),
        }));
    }
    let rows = answer.revisions.iter().map(|revision| {
        let takes = share(answer.traffic.as_ref(), revision.number);
        let mut names: Vec<String> = Vec::new();
        for alias in &answer.aliases {
            match share(alias.split.as_ref(), revision.number) {
                0 => {}
                WHOLE => names.push(alias.name.clone()),
                part => names.push(format!("{} {}", alias.name, percent(part))),
            }
        }
        vec![
            revision.number.to_string(),
            if takes == 0 { "-".to_owned() } else { percent(takes) },
            names.join(", "),
            if revision.published { "published" } else { "" }.to_owned(),
            revision.created.map_or_else(|| "-".to_owned(), |at| at.to_string()),
            revision.digest.chars().take(12).collect(),
        ]
    });
    let header = ["REVISION", "CALLS", "ALIASES", "KEPT", "CREATED", "VERSION"];
    output::print(&output::table(&header, rows.collect()))
}

pub async fn rollout(args: Rollout, common: &Common) -> Result<(), Failure> {
    let mut client = client::functions(&common.server).await?;
    let request =
        v1::RolloutFunctionRequest { function: args.function.clone(), weight: args.to.unwrap_or(WHOLE) };
    let answer = client.rollout_function(request).await.map_err(|status| Failure::in_registry(&status))?;
    told(&args.function, answer.into_inner().traffic.as_ref(), common)
}

pub async fn rollback(args: Rollback, common: &Common) -> Result<(), Failure> {
    let mut client = client::functions(&common.server).await?;
    let revision = args.to.unwrap_or_default();
    let request = v1::RollbackFunctionRequest { function: args.function.clone(), revision };
    let answer = client.rollback_function(request).await.map_err(|status| Failure::in_registry(&status))?;
    told(&args.function, answer.into_inner().traffic.as_ref(), common)
}

pub async fn alias(args: Alias, common: &Common) -> Result<(), Failure> {
    let mut client = client::functions(&common.server).await?;
    let Alias { function, name, .. } = args;
    let address = format!("{function}:{name}");
    let Some(main) = args.to else {
        let request = v1::DeleteAliasRequest { function, alias: name };
        client.delete_alias(request).await.map_err(|status| Failure::in_registry(&status))?;
        return match common.output {
            Output::Json => output::print_json(&json!({"deleted": address})),
            Output::Table => output::print(&format!("{address} deleted\n")),
        };
    };
    let (other, other_weight) = args.with.unwrap_or_default();
    let split = v1::Split { main, other, other_weight };
    let alias = v1::Alias { name, split: Some(split), description: args.description };
    let request = v1::SetAliasRequest { function, alias: Some(alias) };
    client.set_alias(request).await.map_err(|status| Failure::in_registry(&status))?;
    told(&address, Some(&split), common)
}

/// Where calls go from now on.
fn told(address: &str, split: Option<&v1::Split>, common: &Common) -> Result<(), Failure> {
    match common.output {
        Output::Json => output::print_json(&json!({"function": address, "traffic": split_json(split)})),
        Output::Table => output::print(&format!("{address}: {}\n", words(split))),
    }
}

/// A split for people.
pub fn words(split: Option<&v1::Split>) -> String {
    let Some(split) = split else { return "calls go nowhere".to_owned() };
    match (split.other, split.other_weight) {
        (0, _) | (_, 0) => format!("all calls go to revision {}", split.main),
        (other, weight) => format!(
            "{} of the calls go to revision {other}, the others to revision {}",
            percent(weight),
            split.main
        ),
    }
}

/// A split for programs.
pub fn split_json(split: Option<&v1::Split>) -> Value {
    let Some(split) = split else { return Value::Null };
    let others = (split.other > 0).then(
        || json!({"revision": split.other, "weight": f64::from(split.other_weight) / f64::from(WHOLE)}),
    );
    json!({"main": split.main, "other": others})
}

/// How many of all calls a revision takes.
fn share(split: Option<&v1::Split>, number: u64) -> u32 {
    match split {
        Some(split) if split.other == number => split.other_weight,
        Some(split) if split.main == number => WHOLE.saturating_sub(split.other_weight),
        _ => 0,
    }
}

fn percent(weight: u32) -> String {
    let text = format!("{}.{:02}", weight / 100, weight % 100);
    format!("{}%", text.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_are_said_in_words() {
        let split = |main, other, other_weight| v1::Split { main, other, other_weight };
        for (split, said) in [
            (split(3, 0, 0), "all calls go to revision 3"),
            (split(3, 4, 2000), "20% of the calls go to revision 4, the others to revision 3"),
            (split(3, 4, 5), "0.05% of the calls go to revision 4, the others to revision 3"),
            (split(3, 4, 1250), "12.5% of the calls go to revision 4, the others to revision 3"),
        ] {
            assert_eq!(words(Some(&split)), said);
        }
        let canary = split(3, 4, 2000);
        assert_eq!([3, 4, 5].map(|number| share(Some(&canary), number)), [8000, 2000, 0]);
        assert_eq!(share(Some(&split(3, 0, 0)), 3), WHOLE);
        assert_eq!(split_json(Some(&canary)), json!({"main": 3, "other": {"revision": 4, "weight": 0.2}}));
    }
}
