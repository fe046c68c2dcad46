//! Resource policies of functions, as AWS's tools write and read them. They are kept with the newest revision and nobody is let in by them:
//! who may call is the access file's to say.

use serde_json::{Map, Value, json};
use stoker_core::error::{Code, Error};

use super::change::{self, fields, text};
use super::functions::revision_id;
use super::{LATEST, Refused, Target, arn};
use crate::front::Front;

/// The note that a policy is kept in; of a version or an alias its name follows, after a dot.
const NOTE: &str = "aws.policy";

/// Most bytes of all statements about one function, a version or an alias.
const LARGEST: usize = 8 << 10;

/// Longest name of a statement.
const LONGEST_SID: usize = 100;

pub fn note(qualifier: Option<&str>) -> String {
    match qualifier.filter(|qualifier| *qualifier != LATEST) {
        None => NOTE.to_owned(),
        Some(qualifier) => format!("{NOTE}.{qualifier}"),
    }
}

/// The statements that are there.
fn statements(front: &Front, target: &Target) -> Vec<Value> {
    let functions = front.directory.functions();
    let release = functions.releases.get(&target.known.spec.name);
    let text = release.and_then(|release| release.newest.notes.get(&note(target.qualifier.as_deref())));
    text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

fn is_sid(text: &str) -> bool {
    (1..=LONGEST_SID).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
}

/// What a request says in the words of a policy.
fn statement(target: &Target, fields: &Map<String, Value>) -> Result<Value, Refused> {
    let said = |key: &str| match fields.get(key).filter(|value| !value.is_null()) {
        None => Ok(None),
        Some(value) => text(key, value).map(Some),
    };
    let needed = |key: &str| {
        said(key)?
            .filter(|text| !text.is_empty())
            .ok_or_else(|| Refused::parameter(format!("{key} is missing")))
    };
    let (sid, action, principal) = (needed("StatementId")?, needed("Action")?, needed("Principal")?);
    if !is_sid(sid) {
        let text = format!("StatementId {sid:?}: write at most {LONGEST_SID} letters, digits, - and _");
        return Err(Refused::parameter(text));
    }
    let name = action.strip_prefix("lambda:").unwrap_or_default();
    if action != "*" && name != "*" && (name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphabetic())) {
        return Err(Refused::parameter(format!(
            "Action {action:?}: write lambda:InvokeFunction, lambda:* or *"
        )));
    }
    let (mut alike, mut equal, mut same) = (Map::new(), Map::new(), Map::new());
    if let Some(source) = said("SourceArn")? {
        alike.insert("AWS:SourceArn".to_owned(), source.into());
    }
    for (key, condition) in [
        ("SourceAccount", "AWS:SourceAccount"),
        ("PrincipalOrgID", "aws:PrincipalOrgID"),
        ("EventSourceToken", "lambda:EventSourceToken"),
        ("FunctionUrlAuthType", "lambda:FunctionUrlAuthType"),
    ] {
        if let Some(text) = said(key)? {
            equal.insert(condition.to_owned(), text.into());
        }
    }
    match equal.get("lambda:FunctionUrlAuthType").and_then(Value::as_str) {
        None => {}
        Some("NONE" | "AWS_IAM") if action == "lambda:InvokeFunctionUrl" => {}
        Some("NONE" | "AWS_IAM") => {
            let text = "FunctionUrlAuthType is only supported for lambda:InvokeFunctionUrl action";
            return Err(Refused::parameter(text));
        }
        Some(_) => return Err(Refused::parameter("FunctionUrlAuthType is one of NONE, AWS_IAM")),
    }
    match fields.get("InvokedViaFunctionUrl") {
        None | Some(Value::Null) => {}
        Some(Value::Bool(is)) => {
            _ = same.insert("lambda:InvokedViaFunctionUrl".to_owned(), is.to_string().into())
        }
        Some(_) => return Err(Refused::parameter("InvokedViaFunctionUrl is true or false")),
    }
    let who = match principal {
        "*" => json!("*"),
        account if account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit()) => {
            json!({"AWS": format!("arn:aws:iam::{account}:root")})
        }
        arn if arn.starts_with("arn:") => json!({ "AWS": arn }),
        service => json!({ "Service": service }),
    };
    let qualifier = target.qualifier.as_deref().filter(|qualifier| *qualifier != LATEST);
    let mut statement = json!({
        "Sid": sid, "Effect": "Allow", "Principal": who, "Action": action, "Resource": arn(&target.name, qualifier),
    });
    let conditions = [("StringEquals", equal), ("ArnLike", alike), ("Bool", same)];
    let conditions: Map<_, _> = conditions
        .into_iter()
        .filter(|(_, all)| !all.is_empty())
        .map(|(kind, all)| (kind.to_owned(), all.into()))
        .collect();
    if !conditions.is_empty() {
        statement["Condition"] = conditions.into();
    }
    Ok(statement)
}

/// Whether the policy is what somebody says to have seen: it is a part of the newest revision.
fn unchanged(front: &Front, target: &Target, seen: Option<&str>) -> Result<(), Refused> {
    match seen.filter(|seen| !seen.is_empty()) {
        Some(seen) if current(front, target).as_deref() != Some(seen) => Err(Refused::changed()),
        _ => Ok(()),
    }
}

fn current(front: &Front, target: &Target) -> Option<String> {
    let functions = front.directory.functions();
    let newest = &functions.releases.get(&target.known.spec.name)?.newest;
    Some(revision_id(&newest.spec.digest(), newest.number))
}

async fn keep(front: &Front, target: &Target, all: &[Value]) -> Result<(), Refused> {
    let kept = (!all.is_empty()).then(|| json!(all).to_string());
    let note = note(target.qualifier.as_deref());
    change::keep_notes(front, &target.known.spec.name, vec![(note, kept)]).await
}

/// `AddPermission`.
pub async fn add(front: &Front, target: Target, body: &[u8]) -> Result<Value, Refused> {
    let fields = fields("AddPermission", body)?;
    let added = statement(&target, &fields)?;
    unchanged(front, &target, fields.get("RevisionId").and_then(Value::as_str))?;
    let mut all = statements(front, &target);
    if all.iter().any(|one| one["Sid"] == added["Sid"]) {
        let sid = added["Sid"].as_str().unwrap_or_default();
        return Err(Refused::conflict(format!(
            "The statement id ({sid}) provided already exists. Please provide a new statement id, or remove the existing statement."
        )));
    }
    all.push(added.clone());
    if json!(all).to_string().len() > LARGEST {
        let text = format!("The final policy size is bigger than the limit ({LARGEST})");
        let error = Error::new(Code::InvalidRequest, text);
        return Err(Refused::aws(400, "PolicyLengthExceededException", error));
    }
    keep(front, &target, &all).await?;
    Ok(json!({ "Statement": added.to_string() }))
}

/// `RemovePermission`.
pub async fn remove(front: &Front, target: Target, sid: &str, seen: Option<&str>) -> Result<(), Refused> {
    let mut all = statements(front, &target);
    if all.is_empty() {
        return Err(Refused::missing("No policy is associated with the given resource."));
    }
    unchanged(front, &target, seen)?;
    let before = all.len();
    all.retain(|one| one["Sid"] != sid);
    if all.len() == before {
        return Err(Refused::missing(format!("Statement {sid} is not found in resource policy.")));
    }
    keep(front, &target, &all).await
}

/// `GetPolicy`.
pub fn get(front: &Front, target: &Target) -> Result<Value, Refused> {
    let all = statements(front, target);
    if all.is_empty() {
        return Err(Refused::missing("The resource you requested does not exist."));
    }
    let policy = json!({"Version": "2012-10-17", "Id": "default", "Statement": all});
    Ok(json!({"Policy": policy.to_string(), "RevisionId": current(front, target)}))
}
