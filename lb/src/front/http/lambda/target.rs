//! Which function a request is about, in every way that AWS's callers name one.

use std::sync::Arc;

use http::request::Parts;

use super::super::{Front, decoded};
use super::{LATEST, Refused, arn, query};
use crate::directory::{Known, Named};

/// What a name in a path names: `name`, `name:qualifier`, `account:function:name`, or a whole ARN.
pub fn split(text: &str) -> Result<(String, Option<String>), Refused> {
    let wrong = || {
        Refused::parameter(format!("FunctionName {text:?} is none: write a name, name:qualifier or an ARN"))
    };
    let parts: Vec<&str> = text.split(':').collect();
    let (name, qualifier) = match parts[..] {
        ["arn", _, "lambda", _, _, "function", name]
        | [_, "function", name]
        | ["function", name]
        | [name] => (name, None),
        ["arn", _, "lambda", _, _, "function", name, qualifier]
        | [_, "function", name, qualifier]
        | ["function", name, qualifier]
        | [name, qualifier] => (name, Some(qualifier)),
        _ => return Err(wrong()),
    };
    if !good(name, ".") || qualifier.is_some_and(|qualifier| !good(qualifier, "$.")) {
        return Err(wrong());
    }
    Ok((name.to_owned(), qualifier.map(str::to_owned)))
}

/// Whether a text is made as names are.
fn good(text: &str, more: &str) -> bool {
    (1..=256).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c) || more.contains(c))
}

/// The function that a request is about.
pub struct Target {
    /// As it was written.
    pub name: String,
    /// The version or the alias that was asked for.
    pub qualifier: Option<String>,
    pub known: Arc<Known>,
}

impl Target {
    pub fn of(front: &Front, parts: &Parts, segment: &str) -> Result<Self, Refused> {
        let (name, qualifier) = split(&decoded(segment)?)?;
        let asked = query(parts, "Qualifier");
        if let Some(wrong) = asked.as_ref().filter(|asked| !good(asked, "$.")) {
            return Err(Refused::parameter(format!(
                "Qualifier {wrong:?} is none: write a version or an alias"
            )));
        }
        if let (Some(one), Some(other)) = (&qualifier, &asked)
            && one != other
        {
            let text = format!(
                "The derived qualifier from the function name does not match the specified qualifier: {one} and {other}"
            );
            return Err(Refused::parameter(text));
        }
        Self::find(front, name, qualifier.or(asked))
    }

    fn find(front: &Front, name: String, qualifier: Option<String>) -> Result<Self, Refused> {
        let missing = || {
            let whole = arn(&name, Some(qualifier.as_deref().unwrap_or(LATEST)));
            format!("Function not found: {whole}")
        };
        let known = match front.directory.find_called(&name) {
            Named::One(known) => known,
            Named::None => return Err(front.missing(missing).into()),
            Named::Several => {
                let text = format!("functions of several apps are called {name}: write app.{name}");
                return Err(Refused::parameter(text));
            }
        };
        let known = match qualifier.as_deref() {
            None | Some(LATEST) => known,
            Some(qualifier) => {
                // A revision that was not published is no version.
                let number: Option<u64> = qualifier.parse().ok();
                let functions = front.directory.functions();
                let hidden = number.is_some_and(|number| {
                    functions.revision(&known.spec.name, number).is_none_or(|revision| !revision.published)
                });
                let found = front.directory.qualified(&known.spec.name, qualifier).filter(|_| !hidden);
                found.ok_or_else(|| Refused::missing(missing()))?
            }
        };
        Ok(Self { name, qualifier, known })
    }

    /// The newest revision, where no version and no alias was asked for.
    pub fn latest(&self) -> Option<u64> {
        matches!(self.qualifier.as_deref(), None | Some(LATEST)).then_some(self.known.revision)
    }

    /// Refuses a version or an alias where the function as a whole is meant.
    pub fn unqualified(&self) -> Result<(), Refused> {
        match self.latest() {
            Some(_) => Ok(()),
            None => {
                Err(Refused::parameter("a version or an alias cannot be named here: leave the qualifier out"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_named_in_every_way_of_aws() {
        let of = |text: &str| split(text).map_err(|refused| refused.name().1);
        let plain = || Ok(("f.x".to_owned(), None));
        for text in ["f.x", "function:f.x", "012345678912:function:f.x", "arn:aws:lambda:eu-1:1:function:f.x"]
        {
            assert_eq!(of(text), plain(), "{text}");
            let qualified = format!("{text}:$LATEST");
            assert_eq!(of(&qualified), Ok(("f.x".to_owned(), Some(LATEST.to_owned()))), "{qualified}");
        }
        for text in ["", "a b", "a/b", "arn:aws:s3:r:1:function:f", "a:b:c:d:e", "é", "f:"] {
            assert_eq!(of(text), Err("InvalidParameterValueException"), "{text}");
        }
    }
}
