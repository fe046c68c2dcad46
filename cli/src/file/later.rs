//! `async` and `schedules` in the function file.

use saphyr::{Scalar, YamlData};
use stoker_core::later::{Later, Schedule, Target};
use stoker_runtime::yaml::Node;

use super::Reader;

/// Keys of a function's `async`.
const KEYS: [&str; 8] =
    ["max_attempts", "backoff", "max_age", "result_ttl", "delay", "dead_letter", "on_success", "on_failure"];

/// Keys of one of its `schedules`.
const SCHEDULE_KEYS: [&str; 2] = ["cron", "body"];

impl Reader<'_> {
    pub(super) fn later(&mut self, node: &Node<'_>, key: &'static str) -> Option<Later> {
        let map = self.yaml.mapping(&format!("`{key}`"), node, "{max_attempts: 5}")?;
        // What is wrong stays at its default, so that the rest is judged as well.
        let mut later = Later::default();
        for (name, value) in map {
            let Some(key) = KEYS.iter().copied().find(|key| name.data.as_str() == Some(key)) else {
                self.yaml.unknown(name, &KEYS, "async");
                continue;
            };
            match key {
                "max_attempts" => put(&mut later.max_attempts, self.count(value, key)),
                "backoff" => put(&mut later.backoff_ms, self.time(value, key)),
                "max_age" => put(&mut later.max_age_ms, self.time(value, key)),
                "result_ttl" => put(&mut later.result_ttl_ms, self.time(value, key)),
                "delay" => put(&mut later.delay_ms, self.time(value, key)),
                "dead_letter" => later.dead_letter = self.by(value, key, Target::parse),
                "on_success" => later.on_success = self.by(value, key, Target::parse),
                _ => later.on_failure = self.by(value, key, Target::parse),
            }
        }
        Some(later)
    }

    /// A time; 0 needs no unit.
    fn time(&mut self, node: &Node<'_>, key: &'static str) -> Option<u64> {
        match &node.data {
            YamlData::Value(Scalar::Integer(0)) => Some(0),
            _ => self.millis(node, key),
        }
    }

    pub(super) fn schedules(&mut self, node: &Node<'_>, key: &'static str) -> Option<Vec<Schedule>> {
        let list = self.yaml.list(&format!("`{key}`"), node, "[{cron: \"0 4 * * *\"}]")?;
        let mut all = Vec::new();
        for item in list {
            let Some(map) = self.yaml.mapping("a schedule", item, "{cron: \"0 4 * * *\"}") else { continue };
            let (mut cron, mut body) = (None, String::new());
            for (name, value) in map {
                match name.data.as_str() {
                    Some("cron") => cron = self.text(value, "cron"),
                    Some("body") => body = self.text(value, "body").unwrap_or_default(),
                    _ => self.yaml.unknown(name, &SCHEDULE_KEYS, "a schedule"),
                }
            }
            match cron {
                Some(cron) => all.push(Schedule { cron, body }),
                None => self
                    .yaml
                    .wrong(item.span.start, "a schedule must have `cron`, like {cron: \"0 4 * * *\"}"),
            }
        }
        Some(all)
    }
}

/// Puts what could be read.
fn put<T>(place: &mut T, read: Option<T>) {
    if let Some(read) = read {
        *place = read;
    }
}
