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

/// What was found so far.
#[derive(Default)]
struct Problems(Vec<Problem>);

impl Problems {
    fn wrong(&mut self, field: &'static str, text: impl Into<String>) {
        self.0.push(Problem { field, text: text.into() });
    }

    fn all(&mut self, field: &'static str, texts: impl IntoIterator<Item = String>) {
        texts.into_iter().for_each(|text| self.wrong(field, text));
    }

    fn range<T: PartialOrd + Copy>(
        &mut self,
        field: &'static str,
        value: T,
        allowed: &RangeInclusive<T>,
        show: impl Fn(T) -> String,
    ) {
        if !allowed.contains(&value) {
            let [least, most] = [*allowed.start(), *allowed.end()].map(&show);
            self.wrong(field, format!("{} is not between {least} and {most}", show(value)));
        }
    }
}

impl FunctionSpec {
    /// Everything that is wrong with it, each with the field's name. Every door checks with this.
    ///
    /// # Errors
    /// All problems, in the order of the fields.
    pub fn check(&self) -> Result<(), Vec<Problem>> {
        let mut problems = Problems::default();
        self.check_root(&mut problems);
        self.check_command(&mut problems);
        problems.all("format_options", self.format_options.problems(self.format));
        if self.root != Root::Host && !self.format_options.opt.as_os_str().is_empty() {
            problems.wrong("format_options", "opt: a function with files of its own has its `/opt` in them");
        }
        self.check_numbers(&mut problems);
        self.check_environment(&mut problems);
        self.check_ways_in(&mut problems);
        problems.all("async", self.later.problems(&self.name));
        if self.schedules.len() > MAX_SCHEDULES {
            problems.wrong("schedules", format!("has more than {MAX_SCHEDULES} entries"));
        }
        problems.all("schedules", self.schedules.iter().filter_map(Schedule::problem));
        if problems.0.is_empty() { Ok(()) } else { Err(problems.0) }
    }

    fn check_root(&self, problems: &mut Problems) {
        match &self.root {
            Root::Rootfs(path) if !path.is_absolute() => problems.wrong("rootfs", not_absolute(path)),
            Root::Archive(path) if !path.is_absolute() => problems.wrong("archive", not_absolute(path)),
            Root::OciLayout(path) if !path.is_absolute() => problems.wrong("oci-layout", not_absolute(path)),
            _ => {}
        }
        if self.credentials.is_empty() {
            return;
        }
        if !is_name(&self.credentials) {
            let text =
                format!("{:?} is not a name: write 1 to 255 of a-z, A-Z, 0-9, - and _", self.credentials);
            problems.wrong("credentials", text);
        }
        if !matches!(self.root, Root::Image(_)) {
            problems.wrong("credentials", "belongs to `image`: nothing else is fetched from a registry");
        }
    }

    /// The command and where it runs. An image has its own.
    fn check_command(&self, problems: &mut Problems) {
        let own = |empty: bool| empty && self.root.is_image();
        if self.command.first().is_none_or(String::is_empty) && !own(self.command.is_empty()) {
            let text = "is missing: write the program and its arguments, like [\"python3\", \"func.py\"]";
            problems.wrong("command", text);
        }
        let bytes: usize = self.command.iter().map(String::len).sum();
        if self.command.len() > limits::COMMAND || bytes > limits::COMMAND_BYTES {
            let text = format!("has more than {} parts or {} bytes", limits::COMMAND, limits::COMMAND_BYTES);
            problems.wrong("command", text);
        }
        if self.command.iter().any(|part| part.contains('\0')) {
            problems.wrong("command", "has a NUL character");
        }
        let workdir = self.workdir.as_os_str();
        if !(self.workdir.is_absolute() || own(workdir.is_empty())) || workdir.len() > 4096 {
            problems.wrong("workdir", not_absolute(&self.workdir));
        }
    }

    fn check_numbers(&self, problems: &mut Problems) {
        problems.range("memory", self.memory, &limits::MEMORY, format_size);
        problems.range("cpu", self.cpu_millis, &limits::CPU_MILLIS, format_cpu);
        let time = |ms| format_duration(Duration::from_millis(ms));
        problems.range("timeout", self.timeout_ms, &limits::TIMEOUT_MS, time);
        problems.range("init_timeout", self.init_timeout_ms, &limits::INIT_TIMEOUT_MS, time);
        problems.range("idle_timeout", self.idle_timeout_ms, &limits::IDLE_TIMEOUT_MS, time);
        let count = |count: u32| count.to_string();
        problems.range("concurrency", self.concurrency, &limits::CONCURRENCY, count);
        if self.concurrency > 1 && !matches!(self.format, Format::HttpStream | Format::Lambda) {
            let text = format!("format {} takes one call at a time", self.format.as_str());
            problems.wrong("concurrency", text);
        }
        problems.range("max_containers", self.max_containers, &limits::MAX_CONTAINERS, count);
        problems.range("min_containers", self.min_containers, &limits::MIN_CONTAINERS, count);
    }

    fn check_environment(&self, problems: &mut Problems) {
        let bytes: usize = self.env.iter().map(|(key, value)| key.len() + value.len() + 2).sum();
        if self.env.len() + self.secrets.len() > limits::ENV || bytes > limits::ENV_BYTES {
            let text = format!("has more than {} variables or {} bytes", limits::ENV, limits::ENV_BYTES);
            problems.wrong("env", text);
        }
        let no_variable = |key: &str| format!("{key:?} cannot be an environment variable");
        for (key, value) in &self.env {
            if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
                problems.wrong("env", no_variable(key));
            }
        }
        for key in self.secrets.keys() {
            if key.is_empty() || key.contains(['=', '\0']) || key.len() > 1024 {
                problems.wrong("env", no_variable(key));
            }
            if self.env.contains_key(key) {
                problems.wrong("env", format!("{key:?} is a text and a secret: write one of them"));
            }
        }
    }

    /// How calls come in besides the function's name, and how much of them.
    fn check_ways_in(&self, problems: &mut Problems) {
        if self.triggers.len() > limits::TRIGGERS {
            problems.wrong("triggers", format!("has more than {} entries", limits::TRIGGERS));
        } else {
            problems.all("triggers", Trigger::all_problems(&self.triggers));
        }
        problems.all("cors", self.cors.iter().flat_map(Cors::problems));
        for (field, bytes) in [("max_request", self.max_request), ("max_response", self.max_response)] {
            if bytes > limits::BODY {
                problems.wrong(field, format!("is more than {}", format_size(limits::BODY)));
            }
        }
    }
}

pub(super) fn not_absolute(path: &Path) -> String {
    format!("`{}` is not an absolute path", path.display())
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
