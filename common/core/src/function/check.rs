//! What is wrong with a function: the one check of all its fields, for every door through which a function comes in.

use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use super::{Cors, Format, FunctionSpec, Root, Trigger, limits};
use crate::ids::is_name;
use crate::later::{MAX_SCHEDULES, Schedule};
use crate::units::{format_cpu, format_duration, format_size};

/// One thing that is wrong with a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key in the function file.
    pub field: &'static str,
    /// What is wrong and what would be right.
    pub text: String,
}

impl FunctionSpec {
    /// Everything that is wrong with it, each with the field's name. Every door checks with this.
    ///
    /// # Errors
    /// All problems, in the order of the fields.
    pub fn check(&self) -> Result<(), Vec<Problem>> {
        let mut problems = Vec::new();
        let mut wrong = |field: &'static str, text: String| problems.push(Problem { field, text });
        match &self.root {
            Root::Rootfs(path) if !path.is_absolute() => wrong("rootfs", not_absolute(path)),
            Root::Archive(path) if !path.is_absolute() => wrong("archive", not_absolute(path)),
            Root::OciLayout(path) if !path.is_absolute() => wrong("oci-layout", not_absolute(path)),
            _ => {}
        }
        if !self.credentials.is_empty() {
            if !is_name(&self.credentials) {
                wrong(
                    "credentials",
                    format!("{:?} is not a name: write 1 to 255 of a-z, A-Z, 0-9, - and _", self.credentials),
                );
            }
            if !matches!(self.root, Root::Image(_)) {
                wrong("credentials", "belongs to `image`: nothing else is fetched from a registry".into());
            }
        }
        let own = |empty: bool| empty && self.root.is_image();
        if self.command.first().is_none_or(String::is_empty) && !own(self.command.is_empty()) {
            wrong(
                "command",
                "is missing: write the program and its arguments, like [\"python3\", \"func.py\"]".into(),
            );
        }
        let bytes: usize = self.command.iter().map(String::len).sum();
        if self.command.len() > limits::COMMAND || bytes > limits::COMMAND_BYTES {
            wrong(
                "command",
                format!("has more than {} parts or {} bytes", limits::COMMAND, limits::COMMAND_BYTES),
            );
        }
        if self.command.iter().any(|part| part.contains('\0')) {
            wrong("command", "has a NUL character".into());
        }
        let workdir = self.workdir.as_os_str();
        if !(self.workdir.is_absolute() || own(workdir.is_empty())) || workdir.len() > 4096 {
            wrong("workdir", not_absolute(&self.workdir));
        }
        for problem in self.format_options.problems(self.format) {
            wrong("format_options", problem);
        }
        if self.root != Root::Host && !self.format_options.opt.as_os_str().is_empty() {
            wrong("format_options", "opt: a function with files of its own has its `/opt` in them".into());
        }
        range(&mut wrong, "memory", self.memory, &limits::MEMORY, format_size);
        range(&mut wrong, "cpu", self.cpu_millis, &limits::CPU_MILLIS, format_cpu);
        let time = |ms| format_duration(Duration::from_millis(ms));
        range(&mut wrong, "timeout", self.timeout_ms, &limits::TIMEOUT_MS, time);
        range(&mut wrong, "init_timeout", self.init_timeout_ms, &limits::INIT_TIMEOUT_MS, time);
        range(&mut wrong, "idle_timeout", self.idle_timeout_ms, &limits::IDLE_TIMEOUT_MS, time);
        range(&mut wrong, "concurrency", self.concurrency, &limits::CONCURRENCY, |n| n.to_string());
        if self.concurrency > 1 && !matches!(self.format, Format::HttpStream | Format::Lambda) {
            wrong("concurrency", format!("format {} takes one call at a time", self.format.as_str()));
        }
        range(&mut wrong, "max_containers", self.max_containers, &limits::MAX_CONTAINERS, |n| n.to_string());
        range(&mut wrong, "min_containers", self.min_containers, &limits::MIN_CONTAINERS, |n| n.to_string());
        let bytes: usize = self.env.iter().map(|(k, v)| k.len() + v.len() + 2).sum();
        if self.env.len() + self.secrets.len() > limits::ENV || bytes > limits::ENV_BYTES {
            wrong("env", format!("has more than {} variables or {} bytes", limits::ENV, limits::ENV_BYTES));
        }
        for (key, value) in &self.env {
            if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
                wrong("env", format!("{key:?} cannot be an environment variable"));
            }
        }
        for key in self.secrets.keys() {
            if key.is_empty() || key.contains(['=', '\0']) || key.len() > 1024 {
                wrong("env", format!("{key:?} cannot be an environment variable"));
            }
            if self.env.contains_key(key) {
                wrong("env", format!("{key:?} is a text and a secret: write one of them"));
            }
        }
        if self.triggers.len() > limits::TRIGGERS {
            wrong("triggers", format!("has more than {} entries", limits::TRIGGERS));
        } else {
            for problem in Trigger::all_problems(&self.triggers) {
                wrong("triggers", problem);
            }
        }
        for problem in self.cors.iter().flat_map(Cors::problems) {
            wrong("cors", problem);
        }
        for (field, bytes) in [("max_request", self.max_request), ("max_response", self.max_response)] {
            if bytes > limits::BODY {
                wrong(field, format!("is more than {}", format_size(limits::BODY)));
            }
        }
        for problem in self.later.problems(&self.name) {
            wrong("async", problem);
        }
        if self.schedules.len() > MAX_SCHEDULES {
            wrong("schedules", format!("has more than {MAX_SCHEDULES} entries"));
        }
        for problem in self.schedules.iter().filter_map(Schedule::problem) {
            wrong("schedules", problem);
        }
        if problems.is_empty() { Ok(()) } else { Err(problems) }
    }
}

pub(super) fn not_absolute(path: &Path) -> String {
    format!("`{}` is not an absolute path", path.display())
}

fn range<T: PartialOrd + Copy>(
    wrong: &mut impl FnMut(&'static str, String),
    field: &'static str,
    value: T,
    allowed: &RangeInclusive<T>,
    show: impl Fn(T) -> String,
) {
    if !allowed.contains(&value) {
        wrong(
            field,
            format!("{} is not between {} and {}", show(value), show(*allowed.start()), show(*allowed.end())),
        );
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::tests::hello;
    use super::*;
    use crate::image::ImageRef;

    #[test]
    fn every_problem_is_reported_at_once() {
        let mut spec = hello();
        spec.command.clear();
        spec.workdir = "relative".into();
        spec.memory = 1;
        spec.timeout_ms = 0;
        spec.concurrency = 5;
        spec.min_containers = 100_001;
        spec.env.insert("A=B".into(), String::new());
        spec.triggers.push(Trigger::new("x"));
        let fields: Vec<_> = spec.check().unwrap_err().into_iter().map(|p| p.field).collect();
        assert_eq!(
            fields,
            ["command", "workdir", "memory", "timeout", "concurrency", "min_containers", "env", "triggers"]
        );
    }

    #[test]
    fn an_image_brings_its_own_command_and_work_directory() {
        let mut spec = hello();
        spec.root = Root::Image(ImageRef::parse("registry.example/hello:1").unwrap());
        (spec.command, spec.workdir) = (Vec::new(), PathBuf::new());
        assert_eq!(spec.check(), Ok(()));
        spec.root = Root::Archive("hello.tar".into());
        spec.credentials = "team".into();
        let fields: Vec<_> = spec.check().unwrap_err().into_iter().map(|p| p.field).collect();
        assert_eq!(fields, ["archive", "credentials"]);
    }
}
