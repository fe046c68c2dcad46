//! The function file: YAML into checked [`FunctionSpec`]s.
//!
//! People fix a file faster when they see all of it at once, so reading never stops at the first mistake: each is noted with
//! its place and what would be right, and a spec comes out only if there is none. Relative paths mean the file's directory,
//! so that a file works wherever it is called from.

mod later;
mod triggers;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use saphyr::{Marker, Scalar, YamlData};
use stoker_core::function::{CloudEvents, FormatOptions, Network, Problem, Root};
use stoker_core::image::ImageRef;
use stoker_core::machine::Listed as _;
use stoker_core::secret::SecretName;
use stoker_core::units::{parse_cpu, parse_duration, parse_size};
use stoker_core::{Format, FunctionName, FunctionSpec};
use stoker_runtime::config::words::{nearest, or};
use stoker_runtime::yaml::{self, Mistake, Node};

/// Keys at the top of a file.
const TOP_KEYS: [&str; 2] = ["app", "functions"];

/// Keys of one function.
const KEYS: [&str; 28] = [
    "name",
    "image",
    "credentials",
    "archive",
    "oci-layout",
    "rootfs",
    "writable_root",
    "command",
    "workdir",
    "format",
    "format_options",
    "memory",
    "cpu",
    "timeout",
    "init_timeout",
    "idle_timeout",
    "concurrency",
    "min_containers",
    "max_containers",
    "network",
    "env",
    "idempotent",
    "triggers",
    "cors",
    "max_request",
    "max_response",
    "async",
    "schedules",
];

/// Keys of a function's `format_options`.
const OPTION_KEYS: [&str; 10] = [
    "cloudevents",
    "cloudevents_by_content_type",
    "base64_bodies",
    "cold",
    "open_function_variables",
    "handler",
    "stream_rate",
    "stream_burst",
    "snap_start",
    "opt",
];

/// Where a function's files come from: at most one of them.
const ROOT_KEYS: [&str; 4] = ["image", "archive", "oci-layout", "rootfs"];

/// A file of this name is STDIN.
const STDIN: &str = "-";

/// Reads files that are applied together. `-` is STDIN, whose relative paths mean the current directory.
///
/// # Errors
/// Every mistake of every file, in the order of their places.
pub fn load(files: &[PathBuf]) -> Result<Vec<FunctionSpec>, Vec<Mistake>> {
    let mut mistakes = Vec::new();
    let mut known = Known::default();
    let mut specs = Vec::new();
    for file in files {
        let (file, text) = match file.as_os_str() == STDIN {
            true => (Path::new("STDIN"), yaml::load_from(Path::new("STDIN"), std::io::stdin())),
            false => (&**file, yaml::load(file)),
        };
        match text {
            Ok(text) => specs.extend(parse(file, &text, &mut known, &mut mistakes)),
            Err(mistake) => mistakes.push(mistake),
        }
    }
    if mistakes.is_empty() { Ok(specs) } else { Err(mistakes) }
}

/// What must be unique over all files: names, and what triggers take, with the place that had it first.
#[derive(Debug, Default)]
struct Known {
    names: BTreeMap<String, String>,
    triggers: triggers::Claims,
}

fn parse(file: &Path, text: &str, known: &mut Known, mistakes: &mut Vec<Mistake>) -> Vec<FunctionSpec> {
    let mut reader = Reader { yaml: yaml::Reader::new(file), directory: directory_of(file) };
    let document = reader.yaml.document(text, "write one app a file");
    let specs = document.map(|document| reader.document(&document, known)).unwrap_or_default();
    mistakes.append(&mut reader.yaml.finish());
    specs
}

fn directory_of(file: &Path) -> PathBuf {
    let directory = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    directory
        .canonicalize()
        .or_else(|_| std::path::absolute(directory))
        .unwrap_or_else(|_| directory.to_owned())
}

/// A function's variables, and those whose values are secrets.
type Environment = (BTreeMap<String, String>, BTreeMap<String, SecretName>);

struct Reader<'a> {
    yaml: yaml::Reader<'a>,
    directory: PathBuf,
}

impl Reader<'_> {
    fn document(&mut self, document: &Node<'_>, known: &mut Known) -> Vec<FunctionSpec> {
        let top = match &document.data {
            YamlData::Mapping(top) => top,
            YamlData::Value(Scalar::Null) => {
                let text = "is empty: write `app: NAME` and `functions:` with a list";
                self.yaml.wrong(document.span.start, text);
                return Vec::new();
            }
            _ => {
                let text = "must be a mapping with the keys `app` and `functions`";
                self.yaml.wrong(document.span.start, text);
                return Vec::new();
            }
        };
        let has = |wanted: &str| top.iter().any(|(key, _)| key.data.as_str() == Some(wanted));
        if has("schema_version") && !has("functions") {
            let text = "is Fn's func.yaml and no function file: write `app: NAME` and `functions:`; docs/migrating-from-fn.md says what becomes of its keys";
            self.yaml.wrong(document.span.start, text);
            return Vec::new();
        }
        let (mut app, mut functions) = (None, None);
        for (key, value) in top {
            match key.data.as_str() {
                Some("app") => app = Some(value),
                Some("functions") => functions = Some(value),
                _ => self.yaml.unknown(key, &TOP_KEYS, "a function file"),
            }
        }
        let app = match app {
            None => {
                self.yaml.wrong(document.span.start, "`app` is missing: write `app: NAME` at the top");
                None
            }
            Some(node) => self.text(node, "app").filter(|name| self.name(node.span.start, "app", name)),
        };
        let Some(functions) = functions else {
            self.yaml.wrong(document.span.start, "`functions` is missing: write a list of functions");
            return Vec::new();
        };
        let Some(list) = self.yaml.list("`functions`", functions, "[{name: hello, …}]") else {
            return Vec::new();
        };
        // Without a valid app the functions are still checked, under a name that no message shows.
        let app = app.as_deref().unwrap_or("app");
        list.iter().filter_map(|node| self.function(app, node, known)).collect()
    }

    fn function(&mut self, app: &str, node: &Node<'_>, known: &mut Known) -> Option<FunctionSpec> {
        let map = self.yaml.mapping("a function", node, "`name: hello`")?;
        let before = self.yaml.mistakes();
        let mut fields: BTreeMap<&str, &Node<'_>> = BTreeMap::new();
        for (key, value) in map {
            let name = key.data.as_str().unwrap_or_default();
            if let Some(known) = KEYS.iter().find(|known| **known == name) {
                fields.insert(known, value);
            } else {
                self.yaml.unknown(key, &KEYS, "a function");
            }
        }
        let mut bad_fields = Vec::new();
        let spec = self.fields(app, node.span.start, &fields, &mut bad_fields);
        if bad_fields.contains(&"format") {
            // What goes with it cannot be judged.
            bad_fields.extend(["format_options", "concurrency"]);
        }
        if ROOT_KEYS.iter().any(|key| bad_fields.contains(key)) {
            bad_fields.extend(["command", "workdir", "credentials"]);
        }
        if let Err(problems) = spec.check() {
            for problem in problems.into_iter().filter(|p| !bad_fields.contains(&p.field)) {
                let block = fields.get(problem.field);
                let at = block.and_then(|block| within(block, &problem).or(Some(block.span.start)));
                self.yaml
                    .wrong(at.unwrap_or(node.span.start), format!("`{}` {}", problem.field, problem.text));
            }
        }
        if bad_fields.contains(&"name") {
            // Nobody else's.
            fields.remove("name");
        }
        self.unique(&spec, &fields, known);
        (self.yaml.mistakes() == before).then_some(spec)
    }

    /// All fields, wrong ones at their defaults and named in `bad`.
    fn fields(
        &mut self,
        app: &str,
        at: Marker,
        fields: &BTreeMap<&str, &Node<'_>>,
        bad: &mut Vec<&'static str>,
    ) -> FunctionSpec {
        let placeholder = FunctionName::new("app", "function").expect("both are names");
        let mut spec = FunctionSpec::new(placeholder, Vec::new(), self.directory.clone());
        match fields.get("name") {
            None => self.yaml.wrong(at, "`name` is missing: every function has one, like `name: hello`"),
            Some(node) => {
                let named = self.text(node, "name").filter(|name| self.name(node.span.start, "name", name));
                match named.and_then(|name| FunctionName::new(app, &name)) {
                    Some(name) => spec.name = name,
                    None => bad.push("name"),
                }
            }
        }
        // One line a field: how it is read, and where it goes.
        macro_rules! field {
            ($key:literal, $read:ident, $set:expr) => {
                if let Some(node) = fields.get($key) {
                    match self.$read(node, $key) {
                        Some(value) => $set(&mut spec, value),
                        None => bad.push($key),
                    }
                }
            };
        }
        let roots: Vec<_> = ROOT_KEYS.iter().filter_map(|key| Some((*key, *fields.get(key)?))).collect();
        if let [(first, _), (second, node), ..] = roots[..] {
            self.yaml.wrong(
                node.span.start,
                format!("`{second}` cannot stand beside `{first}`: a function has one root"),
            );
        }
        field!("rootfs", path, |s: &mut FunctionSpec, v| s.root = Root::Rootfs(v));
        field!("oci-layout", path, |s: &mut FunctionSpec, v| s.root = Root::OciLayout(v));
        field!("archive", path, |s: &mut FunctionSpec, v| s.root = Root::Archive(v));
        field!("image", image, |s: &mut FunctionSpec, v| s.root = Root::Image(v));
        field!("credentials", text, |s: &mut FunctionSpec, v| s.credentials = v);
        field!("writable_root", truth, |s: &mut FunctionSpec, v| s.writable_root = v);
        field!("workdir", path, |s: &mut FunctionSpec, v| s.workdir = v);
        field!("command", strings, |s: &mut FunctionSpec, v| s.command = v);
        field!("format", format, |s: &mut FunctionSpec, v| s.format = v);
        field!("format_options", options, |s: &mut FunctionSpec, v| s.format_options = v);
        field!("memory", size, |s: &mut FunctionSpec, v| s.memory = v);
        field!("cpu", cpu, |s: &mut FunctionSpec, v| s.cpu_millis = v);
        field!("timeout", millis, |s: &mut FunctionSpec, v| s.timeout_ms = v);
        field!("init_timeout", millis, |s: &mut FunctionSpec, v| s.init_timeout_ms = v);
        field!("idle_timeout", millis, |s: &mut FunctionSpec, v| s.idle_timeout_ms = v);
        field!("concurrency", count, |s: &mut FunctionSpec, v| s.concurrency = v);
        field!("min_containers", count, |s: &mut FunctionSpec, v| s.min_containers = v);
        field!("max_containers", count, |s: &mut FunctionSpec, v| s.max_containers = v);
        field!("network", network, |s: &mut FunctionSpec, v| s.network = v);
        field!("env", environment, |s: &mut FunctionSpec, v| (s.env, s.secrets) = v);
        field!("idempotent", truth, |s: &mut FunctionSpec, v| s.idempotent = v);
        field!("triggers", triggers, |s: &mut FunctionSpec, v| s.triggers = v);
        field!("cors", cors, |s: &mut FunctionSpec, v| s.cors = Some(v));
        field!("max_request", size, |s: &mut FunctionSpec, v| s.max_request = v);
        field!("max_response", size, |s: &mut FunctionSpec, v| s.max_response = v);
        field!("async", later, |s: &mut FunctionSpec, v| s.later = v);
        field!("schedules", schedules, |s: &mut FunctionSpec, v| s.schedules = v);
        if !roots.is_empty() && !fields.contains_key("workdir") {
            // The file's directory is a place of the host; in a root directory of its own a function starts at the top, and an
            // image says where.
            spec.workdir = if fields.contains_key("rootfs") { "/".into() } else { PathBuf::new() };
        }
        spec
    }

    fn unique(&mut self, spec: &FunctionSpec, fields: &BTreeMap<&str, &Node<'_>>, known: &mut Known) {
        if let Some(node) = fields.get("name") {
            let here = self.yaml.place(node.span.start);
            let name = spec.name.to_string();
            if let Some(first) = known.names.get(&name) {
                let text =
                    format!("there is a function `{name}` already, at {first}: give this one another name");
                self.yaml.wrong(node.span.start, text);
            } else {
                known.names.insert(name, here);
            }
        }
        if let Some(node) = fields.get("triggers") {
            self.unclaimed(spec, node, known);
        }
    }

    fn name(&mut self, at: Marker, key: &str, name: &str) -> bool {
        let good = stoker_core::ids::is_name(name);
        if !good {
            self.yaml.wrong(
                at,
                format!("`{key}` {name:?} is not a name: write 1 to 255 of a-z, A-Z, 0-9, - and _"),
            );
        }
        good
    }

    /// Any scalar, as text.
    fn text(&mut self, node: &Node<'_>, key: &str) -> Option<String> {
        self.yaml.text(&format!("`{key}`"), node)
    }

    fn by<T>(
        &mut self,
        node: &Node<'_>,
        key: &'static str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = self.text(node, key)?;
        read(&text).map_err(|problem| self.yaml.wrong(node.span.start, format!("`{key}`: {problem}"))).ok()
    }

    fn size(&mut self, node: &Node<'_>, key: &'static str) -> Option<u64> {
        self.by(node, key, |text| match text.parse::<u64>() {
            // 128 alone is 128 bytes to the parser, and never what was meant.
            Ok(number) if number > 0 => Err(format!("`{text}` has no unit: write it like {text}MiB")),
            _ => parse_size(text),
        })
    }

    fn cpu(&mut self, node: &Node<'_>, key: &'static str) -> Option<u32> {
        self.by(node, key, parse_cpu)
    }

    fn millis(&mut self, node: &Node<'_>, key: &'static str) -> Option<u64> {
        self.by(node, key, |text| match text.parse::<u64>() {
            Ok(_) => Err(format!("`{text}` has no unit: write it like {text}s")),
            Err(_) => parse_duration(text).map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
        })
    }

    fn count(&mut self, node: &Node<'_>, key: &'static str) -> Option<u32> {
        self.by(node, key, |text| text.parse().map_err(|_| format!("`{text}` is not a whole number")))
    }

    fn truth(&mut self, node: &Node<'_>, key: &'static str) -> Option<bool> {
        if let YamlData::Value(Scalar::Boolean(value)) = &node.data {
            return Some(*value);
        }
        self.by(node, key, |text| Err(format!("`{text}` must be true or false")))
    }

    fn format(&mut self, node: &Node<'_>, key: &'static str) -> Option<Format> {
        self.by(node, key, |text| {
            let names = Format::ALL.iter().map(|f| f.as_str());
            Format::parse(text).ok_or_else(|| match nearest(text, names.clone()) {
                Some(near) => format!("`{text}` is not a format: did you mean `{near}`?"),
                None => format!("`{text}` is not a format: write {}", or(names)),
            })
        })
    }

    fn image(&mut self, node: &Node<'_>, key: &'static str) -> Option<ImageRef> {
        self.by(node, key, ImageRef::parse)
    }

    fn options(&mut self, node: &Node<'_>, key: &'static str) -> Option<FormatOptions> {
        let map = self.yaml.mapping(&format!("`{key}`"), node, "{handler: func.handler}")?;
        let before = self.yaml.mistakes();
        let mut options = FormatOptions::default();
        for (name, value) in map {
            match name.data.as_str() {
                Some("cloudevents") => {
                    let read = |text: &str| {
                        CloudEvents::parse(text)
                            .ok_or_else(|| format!("`{text}` is not a version: write \"0.1\" or \"1.0\""))
                    };
                    options.cloudevents = self.by(value, "cloudevents", read).unwrap_or_default();
                }
                Some("handler") => options.handler = self.text(value, "handler").unwrap_or_default(),
                Some("opt") => options.opt = self.path(value, "opt").unwrap_or_default(),
                Some("stream_rate") => {
                    options.stream_rate = self.size(value, "stream_rate").unwrap_or_default();
                }
                Some("stream_burst") => {
                    options.stream_burst = self.size(value, "stream_burst").unwrap_or_default();
                }
                other => match OPTION_KEYS.iter().find(|flag| other == Some(flag)) {
                    None => self.yaml.unknown(name, &OPTION_KEYS, "format_options"),
                    Some(flag) => {
                        let on = self.truth(value, flag).unwrap_or_default();
                        match *flag {
                            "cloudevents_by_content_type" => options.cloudevents_by_content_type = on,
                            "base64_bodies" => options.base64_bodies = on,
                            "cold" => options.cold = on,
                            "snap_start" => options.snap_start = on,
                            _ => options.open_function_variables = on,
                        }
                    }
                },
            }
        }
        (self.yaml.mistakes() == before).then_some(options)
    }

    fn network(&mut self, node: &Node<'_>, key: &'static str) -> Option<Network> {
        // `network: none` is text in YAML, but `network: null` and `~` are nothing.
        self.by(node, key, |text| {
            let names = Network::ALL.iter().map(|n| n.as_str());
            Network::parse(text).ok_or_else(|| format!("`{text}` is not a network: write {}", or(names)))
        })
    }

    /// A path, relative to the file.
    fn path(&mut self, node: &Node<'_>, key: &'static str) -> Option<PathBuf> {
        let text = self.text(node, key)?;
        let path = self.directory.join(text);
        Some(path.canonicalize().unwrap_or(path))
    }

    fn strings(&mut self, node: &Node<'_>, key: &'static str) -> Option<Vec<String>> {
        let example = match node.data.as_str() {
            Some(text) => {
                let words: Vec<_> = text.split_whitespace().map(|word| format!("{word:?}")).collect();
                format!("[{}]", words.join(", "))
            }
            None => "[\"python3\", \"func.py\"]".to_owned(),
        };
        let list = self.yaml.list(&format!("`{key}`"), node, &example)?;
        let all: Vec<_> = list.iter().map(|item| self.text(item, key)).collect();
        all.into_iter().collect()
    }

    /// The variables, and those whose values are secrets.
    fn environment(&mut self, node: &Node<'_>, key: &'static str) -> Option<Environment> {
        let map = self.yaml.mapping(&format!("`{key}`"), node, "{NAME: value}")?;
        let mut all = Some(Environment::default());
        for (name, value) in map {
            if let YamlData::Mapping(_) = &value.data {
                match (self.text(name, key), self.secret(value), &mut all) {
                    (Some(name), Some(secret), Some(all)) => _ = all.1.insert(name, secret),
                    (Some(_), Some(_), None) => {}
                    _ => all = None,
                }
                continue;
            }
            let value = match &value.data {
                // `NAME:` alone is an empty variable.
                YamlData::Value(Scalar::Null) => Some(String::new()),
                _ => self.text(value, key),
            };
            match (self.text(name, key), value, &mut all) {
                (Some(name), Some(value), Some(all)) => _ = all.0.insert(name, value),
                (Some(_), Some(_), None) => {}
                _ => all = None,
            }
        }
        all
    }

    /// `{secret: NAME}`. What stands there instead is not repeated: it may be the secret itself.
    fn secret(&mut self, node: &Node<'_>) -> Option<SecretName> {
        let YamlData::Mapping(map) = &node.data else { return None };
        let only = map.iter().next().filter(|_| map.len() == 1);
        let named = only.filter(|(key, _)| key.data == YamlData::Value(Scalar::String("secret".into())));
        let Some((_, value)) = named else {
            self.yaml.wrong(node.span.start, "a variable is a text, or {secret: NAME/KEY}".to_owned());
            return None;
        };
        let text = self.text(value, "secret")?;
        SecretName::parse(&text).map_err(|why| self.yaml.wrong(value.span.start, why)).ok()
    }
}

/// Where the key of a block stands that a problem is about: its text begins with it.
fn within(block: &Node<'_>, problem: &Problem) -> Option<Marker> {
    let YamlData::Mapping(map) = &block.data else { return None };
    let (name, _) = problem.text.split_once([' ', ':'])?;
    map.iter().find(|(key, _)| key.data.as_str() == Some(name)).map(|(key, _)| key.span.start)
}

#[cfg(test)]
mod tests;
