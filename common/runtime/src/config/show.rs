//! What the program was told, written down: for people as a file that can be used again, for programs as JSON.

use serde_json::json;

use super::kind::Shape;
use super::{Entry, Fallback, Item, Raw, Settings};

impl Settings {
    /// A file with the effective values, each with a remark on who said it.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        let mut out = format!("# {} {}: the settings in effect\n", self.program.name, self.program.version);
        let lines = |section: Option<&str>, out: &mut String| {
            for entry in self.entries.iter().filter(|entry| entry.key.spec().place().0 == section) {
                out.push_str(if section.is_some() { "  " } else { "" });
                out.push_str(&line(entry));
            }
        };
        lines(None, &mut out);
        let mut sections: Vec<_> = self.entries.iter().filter_map(|e| e.key.spec().place().0).collect();
        // Stable: sections stand in the order of their first key.
        let mut seen = std::collections::BTreeSet::new();
        sections.retain(|section| seen.insert(*section));
        for section in sections {
            out.push_str(&format!("{section}:\n"));
            lines(Some(section), &mut out);
        }
        out
    }

    /// By key: `value` (a text, a list, an object, or null) and `origin`; of a secret only whether it is set; `live` where a running process
    /// takes up a new value.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let entries = self.entries.iter().map(|entry| {
            let spec = entry.key.spec();
            let mut told = match &entry.given {
                None => json!({ "value": null, "origin": unset(spec.fallback) }),
                Some((raw, _)) if spec.secret => {
                    json!({ "value": null, "secret": true, "origin": raw.origin.to_string() })
                }
                Some((raw, _)) => {
                    json!({ "value": value(spec.shape, raw), "origin": raw.origin.to_string() })
                }
            };
            if spec.live {
                told["live"] = true.into();
            }
            (spec.name.to_owned(), told)
        });
        serde_json::Value::Object(entries.collect())
    }
}

fn value(shape: Shape, raw: &Raw) -> serde_json::Value {
    let texts = || raw.items.iter().map(|item| item.text.as_str());
    match shape {
        Shape::One | Shape::Switch => json!(texts().next().unwrap_or_default()),
        Shape::List => json!(texts().collect::<Vec<_>>()),
        Shape::Map => raw.items.iter().map(|item| (item.key.clone(), json!(item.text))).collect(),
    }
}

fn unset(fallback: Fallback) -> &'static str {
    match fallback {
        Fallback::Nothing => "not set",
        Fallback::Text(_) | Fallback::Found(_) | Fallback::Mistake => "default",
    }
}

fn line(entry: &Entry) -> String {
    let spec = entry.key.spec();
    let key = spec.place().1;
    let Some((raw, _)) = &entry.given else { return format!("# {key}: not set\n") };
    if spec.secret {
        return format!("# {key}: secret, not shown  # {}\n", raw.origin);
    }
    format!("{key}: {}  # {}\n", items(spec.shape, &raw.items), raw.origin)
}

/// A value as it stands in a file.
pub(super) fn items(shape: Shape, items: &[Item]) -> String {
    let texts = || items.iter().map(|item| scalar(&item.text));
    match shape {
        Shape::One | Shape::Switch => texts().collect::<String>(),
        Shape::List => format!("[{}]", texts().collect::<Vec<_>>().join(", ")),
        Shape::Map => {
            let pairs = items.iter().map(|item| format!("{}: {}", scalar(&item.key), scalar(&item.text)));
            format!("{{{}}}", pairs.collect::<Vec<_>>().join(", "))
        }
    }
}

/// A text as YAML; quoted unless it surely means itself.
fn scalar(text: &str) -> String {
    let plain = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_./:-+=%@".contains(c))
        && !text.ends_with(':')
        && !text.eq_ignore_ascii_case("null");
    if plain { text.to_owned() } else { serde_json::Value::from(text).to_string() }
}
