//! Tables and JSON on STDOUT, words to the user on STDERR, and a little colour where a person looks.

use std::io::{IsTerminal as _, Write as _};

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::{Value, json};
use stoker_core::Format;
use stoker_core::units::{format_cpu, format_size};
use stoker_proto::{convert, v1};

use crate::failure::Failure;

/// Colours, or none: `NO_COLOR` (any text) and pipes turn them off.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    on: bool,
}

impl Style {
    pub fn stdout() -> Self {
        Self { on: colours() && std::io::stdout().is_terminal() }
    }

    pub fn stderr() -> Self {
        Self { on: colours() && std::io::stderr().is_terminal() }
    }

    #[cfg(test)]
    pub fn plain() -> Self {
        Self { on: false }
    }

    pub fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    pub fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    pub fn red(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Whether colours are wanted.
pub fn colours() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A table without lines, as wide as the terminal allows.
pub fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header.to_vec());
    rows.into_iter().for_each(|row| _ = table.add_row(row));
    table.lines().map(|line| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned() + "\n").collect()
}

/// Writes a text to STDOUT.
pub fn print(text: &str) -> Result<(), Failure> {
    write(text.as_bytes())
}

/// Whether STDOUT and STDERR are read in one place: a terminal, a file, a pipe.
pub fn is_in_one_place() -> bool {
    let place = |stat: rustix::io::Result<rustix::fs::Stat>| stat.map(|stat| (stat.st_dev, stat.st_ino)).ok();
    let out = place(rustix::fs::fstat(std::io::stdout()));
    out.is_some() && out == place(rustix::fs::fstat(std::io::stderr()))
}

/// Writes bytes to STDOUT, all of them at once. A reader that went away (`| head`) ends the command, and nobody is told.
pub fn write(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|error| match error.kind() {
        std::io::ErrorKind::BrokenPipe => Failure::reader_gone(),
        _ => Failure::usage(format!("the output cannot be written: {error}"), "check where STDOUT goes"),
    })
}

/// Writes a value to STDOUT, for people to read and programs to parse.
pub fn print_json(value: &Value) -> Result<(), Failure> {
    print(&format!("{value:#}\n"))
}

/// Writes a text to STDERR. If that is closed, or its terminal is gone, there is nobody to tell.
pub fn say(text: &str) {
    std::io::stderr().lock().write_all(text.as_bytes()).ok();
}

/// A function's text without what would steer the reader's terminal.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// A size for people: two digits of the fitting unit.
pub fn human_size(bytes: u64) -> String {
    if bytes >= 10 << 30 {
        format!("{:.1}GiB", bytes as f64 / f64::from(1 << 30))
    } else if bytes >= 10 << 20 {
        format!("{}MiB", bytes >> 20)
    } else {
        format_size(bytes)
    }
}

/// Microseconds for people.
pub fn human_us(us: u64) -> String {
    match us {
        0 => "-".to_owned(),
        1..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{:.2} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}

pub fn resources(r: Option<&v1::Resources>) -> Value {
    let r = r.copied().unwrap_or_default();
    json!({"memory": r.memory, "cpu_millis": r.cpu_millis, "slots": r.slots})
}

pub fn cpu(millis: u32) -> String {
    if millis == 0 { "no limit".to_owned() } else { format_cpu(millis) }
}

/// Where the time of a call went, in microseconds.
pub fn timings(t: Option<&v1::Timings>) -> Value {
    let t = t.copied().unwrap_or_default();
    json!({
        "wait_us": t.wait_us, "image_us": t.image_us, "create_us": t.create_us, "start_us": t.start_us, "init_us": t.init_us,
        "thaw_us": t.thaw_us, "first_byte_us": t.first_byte_us, "execution_us": t.execution_us, "cold": t.cold,
        "cold_cause": convert::cold(&t).map(stoker_core::call::Cold::label),
    })
}

/// Where a function's files come from.
pub fn root(f: &v1::Function) -> String {
    let kinds = [
        ("image", &f.image),
        ("archive", &f.archive),
        ("OCI layout", &f.oci_layout),
        ("directory", &f.rootfs),
    ];
    let mut text = match kinds.into_iter().find(|(_, value)| !value.is_empty()) {
        Some((kind, value)) => format!("{kind} {value}"),
        None => "the host's files".to_owned(),
    };
    text += if f.writable_root { ", writable" } else { ", read-only" };
    if !f.credentials.is_empty() {
        text += &format!(", fetched with the credentials {}", f.credentials);
    }
    text
}

/// What a function chose about its format, as its file writes it.
pub fn options(f: &v1::Function) -> Vec<(&'static str, Value)> {
    let Some(o) = &f.format_options else { return Vec::new() };
    let flags = [
        ("cloudevents_by_content_type", o.cloudevents_by_content_type),
        ("base64_bodies", o.base64_bodies),
        ("cold", o.cold),
        ("open_function_variables", o.open_function_variables),
        ("snap_start", o.snap_start),
    ];
    let mut options = Vec::new();
    if f.format == Format::CloudEvent.as_str() || o.cloudevents_by_content_type {
        options.push(("cloudevents", Value::from(o.cloudevents.as_str())));
    }
    options.extend(flags.into_iter().filter(|(_, on)| *on).map(|(key, on)| (key, on.into())));
    for (key, text) in [("handler", &o.handler), ("opt", &o.opt)] {
        if !text.is_empty() {
            options.push((key, text.as_str().into()));
        }
    }
    for (key, size) in [("stream_rate", o.stream_rate), ("stream_burst", o.stream_burst)] {
        if size > 0 {
            options.push((key, format_size(size).into()));
        }
    }
    options
}

/// How a function's asynchronous calls are made, where it says anything of that.
fn later(l: &v1::Later) -> Value {
    let ms = |d: Option<prost_types::Duration>| d.map(|d| convert::duration(d).as_millis() as u64);
    json!({
        "max_attempts": l.max_attempts, "backoff_ms": ms(l.backoff), "max_age_ms": ms(l.max_age),
        "result_ttl_ms": ms(l.result_ttl), "delay_ms": ms(l.delay), "dead_letter": l.dead_letter,
        "on_success": l.on_success, "on_failure": l.on_failure,
    })
}

fn trigger(trigger: &v1::Trigger) -> Value {
    json!({
        "http": trigger.http, "methods": trigger.methods, "hosts": trigger.hosts,
        "headers": std::collections::BTreeMap::from_iter(&trigger.headers),
        "query": std::collections::BTreeMap::from_iter(&trigger.query), "cors": trigger.cors.as_ref().map(cors),
    })
}

fn cors(cors: &v1::Cors) -> Value {
    json!({
        "origins": cors.origins, "methods": cors.methods, "headers": cors.headers, "expose": cors.expose,
        "credentials": cors.credentials, "max_age_s": cors.max_age,
    })
}

/// Everything known of a function.
pub fn function(description: &v1::FunctionDescription) -> Value {
    let f = description.function.clone().unwrap_or_default();
    let ms = |d: Option<prost_types::Duration>| d.map_or(0, |d| convert::duration(d).as_millis() as u64);
    json!({
        "app": f.app, "name": f.name, "id": description.id, "digest": description.digest,
        "revision": description.revision, "traffic": crate::rollout::split_json(description.traffic.as_ref()),
        "command": f.command, "workdir": f.workdir, "rootfs": f.rootfs, "image": f.image, "archive": f.archive,
        "oci_layout": f.oci_layout, "credentials": f.credentials, "writable_root": f.writable_root, "format": f.format,
        "format_options": options(&f).into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<serde_json::Map<_, _>>(),
        "memory": f.memory, "cpu_millis": f.cpu_millis, "timeout_ms": ms(f.timeout),
        "init_timeout_ms": ms(f.init_timeout), "idle_timeout_ms": ms(f.idle_timeout),
        "concurrency": f.concurrency, "min_containers": f.min_containers, "max_containers": f.max_containers,
        "network": f.network, "env": std::collections::BTreeMap::from_iter(f.env), "secrets": std::collections::BTreeMap::from_iter(f.secrets), "idempotent": f.idempotent,
        "triggers": f.triggers.iter().map(trigger).collect::<Vec<_>>(), "cors": f.cors.as_ref().map(cors),
        "max_request": f.max_request, "max_response": f.max_response,
        "async": f.later.as_ref().map(later),
        "schedules": f.schedules.iter().map(|s| json!({"cron": s.cron, "body": s.body})).collect::<Vec<_>>(),
        "containers": {"idle": description.idle, "busy": description.busy, "waiting": description.waiting},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_for_people() {
        assert_eq!([0, 5, 1_500, 2_000_000].map(human_us), ["-", "5 µs", "1.50 ms", "2.00 s"]);
        assert_eq!([1 << 20, 100 << 20, 16 << 30].map(human_size), ["1MiB", "100MiB", "16.0GiB"]);
    }

    #[test]
    fn where_files_come_from_and_what_was_chosen_is_said_as_the_file_does() {
        let host = v1::Function { format: "json".into(), ..Default::default() };
        assert_eq!((root(&host).as_str(), options(&host).len()), ("the host's files, read-only", 0));
        let image = v1::Function {
            image: "r.example/x:1@sha256:00".into(),
            credentials: "team".into(),
            writable_root: true,
            format: "mless".into(),
            format_options: Some(v1::FormatOptions { handler: "f.h".into(), ..Default::default() }),
            ..Default::default()
        };
        let text = "image r.example/x:1@sha256:00, writable, fetched with the credentials team";
        assert_eq!((root(&image).as_str(), options(&image)), (text, vec![("handler", "f.h".into())]));
        let events = v1::FormatOptions {
            cloudevents: "1.0".into(),
            cloudevents_by_content_type: true,
            ..Default::default()
        };
        let forced = v1::Function { format_options: Some(events), rootfs: "/r".into(), ..host };
        assert_eq!(root(&forced), "directory /r, read-only");
        let json = function(&v1::FunctionDescription { function: Some(forced), ..Default::default() });
        let expected = json!({"cloudevents": "1.0", "cloudevents_by_content_type": true});
        assert_eq!(json["format_options"], expected);
    }

    #[test]
    fn control_characters_are_not_passed_on() {
        assert_eq!(printable("a\x1b[31m\tb"), "a\u{fffd}[31m\tb");
    }

    #[test]
    fn tables_have_no_trailing_space() {
        let text =
            table(&["A", "LONGER"], vec![vec!["1".into(), "2".into()], vec!["333".into(), "4".into()]]);
        assert!(text.lines().all(|line| line.trim_end() == line), "{text:?}");
        assert_eq!(text.lines().count(), 3);
    }
}
