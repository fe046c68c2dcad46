//! A function, with every field checked.

mod later;
mod triggers;

use std::collections::BTreeMap;
use std::time::Duration;

use stoker_core::function::{
    CloudEvents, Format, FormatOptions, FunctionName, FunctionSpec, Network, Problem, Root, limits,
};
use stoker_core::image::ImageRef;
use stoker_core::later::Schedule;
use stoker_core::machine::Listed as _;
use stoker_core::secret::SecretName;

use super::to_duration;
use crate::v1;

/// A function, with every field checked. Numbers and durations that are absent (0) take their defaults; `cpu_millis` 0 is no
/// limit and `idle_timeout` absent is the default.
///
/// # Errors
/// Every problem at once, each with the name of its field.
pub fn function(f: v1::Function) -> Result<FunctionSpec, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut bad = |field: &'static str, text: String| problems.push(Problem { field, text });
    let name = FunctionName::new(&f.app, &f.name);
    if name.is_none() {
        bad(
            "name",
            format!("`{}/{}` is not a name: app and name are 1 to 255 of [a-zA-Z0-9_-]", f.app, f.name),
        );
    }
    let secrets = secrets(f.secrets, &mut bad);
    let format = Format::parse(if f.format.is_empty() { "default" } else { &f.format });
    if format.is_none() {
        bad(
            "format",
            format!("`{}` is not a format: write {}", f.format, words(Format::ALL, Format::as_str)),
        );
    }
    let format_options = format_options(f.format_options.unwrap_or_default(), &mut bad);
    let root = root(
        [("rootfs", f.rootfs), ("image", f.image), ("archive", f.archive), ("oci-layout", f.oci_layout)],
        &mut bad,
    );
    let network = Network::parse(if f.network.is_empty() { "none" } else { &f.network });
    if network.is_none() {
        bad("network", format!("`{}` is not a network: write none, egress or host", f.network));
    }
    let mut ms = |field, value: Option<prost_types::Duration>, default| match value {
        None => default,
        Some(d) => match Duration::try_from(d) {
            Ok(d) => u64::try_from(d.as_millis()).unwrap_or(u64::MAX),
            Err(_) => {
                bad(field, "is negative".to_owned());
                default
            }
        },
    };
    let timeout_ms = ms("timeout", f.timeout, limits::DEFAULT_TIMEOUT_MS);
    let init_timeout_ms = ms("init_timeout", f.init_timeout, limits::DEFAULT_INIT_TIMEOUT_MS);
    let idle_timeout_ms = ms("idle_timeout", f.idle_timeout, limits::DEFAULT_IDLE_TIMEOUT_MS);
    let asynchronous = later::read(f.later.unwrap_or_default(), |text| bad("async", text));
    let or = |value: u32, default: u32| if value == 0 { default } else { value };
    let spec = FunctionSpec {
        name: name.unwrap_or_else(|| FunctionName::new("x", "x").expect("x is a name")),
        workdir: if f.workdir.is_empty() && !root.is_image() { "/".into() } else { f.workdir.into() },
        root,
        credentials: f.credentials,
        writable_root: f.writable_root,
        command: f.command,
        format: format.unwrap_or_default(),
        format_options,
        memory: if f.memory == 0 { limits::DEFAULT_MEMORY } else { f.memory },
        cpu_millis: f.cpu_millis,
        timeout_ms,
        init_timeout_ms,
        idle_timeout_ms,
        concurrency: or(f.concurrency, 1),
        min_containers: f.min_containers,
        max_containers: or(f.max_containers, limits::DEFAULT_MAX_CONTAINERS),
        network: network.unwrap_or_default(),
        env: f.env.into_iter().collect(),
        secrets,
        idempotent: f.idempotent,
        triggers: f.triggers.into_iter().map(triggers::read).collect(),
        cors: f.cors.map(triggers::read_cors),
        max_request: f.max_request,
        max_response: f.max_response,
        later: asynchronous,
        schedules: f.schedules.into_iter().map(|s| Schedule { cron: s.cron, body: s.body }).collect(),
    };
    if let Err(more) = spec.check() {
        problems.extend(more);
    }
    if problems.is_empty() { Ok(spec) } else { Err(problems) }
}

/// The secrets of a function by the variables that have them.
fn secrets(
    named: impl IntoIterator<Item = (String, String)>,
    bad: &mut impl FnMut(&'static str, String),
) -> BTreeMap<String, SecretName> {
    let mut secrets = BTreeMap::new();
    for (key, name) in named {
        match SecretName::parse(&name) {
            Ok(name) => _ = secrets.insert(key, name),
            // Without the text: it may be the secret itself.
            Err(why) => bad("env", format!("{key:?}: {why}")),
        }
    }
    secrets
}

fn format_options(o: v1::FormatOptions, bad: &mut impl FnMut(&'static str, String)) -> FormatOptions {
    let events = CloudEvents::parse(if o.cloudevents.is_empty() { "0.1" } else { &o.cloudevents });
    if events.is_none() {
        let versions = words(CloudEvents::ALL, CloudEvents::as_str);
        bad("format_options", format!("cloudevents is {:?}: write {versions}", o.cloudevents));
    }
    FormatOptions {
        cloudevents: events.unwrap_or_default(),
        cloudevents_by_content_type: o.cloudevents_by_content_type,
        base64_bodies: o.base64_bodies,
        cold: o.cold,
        open_function_variables: o.open_function_variables,
        handler: o.handler,
        stream_rate: o.stream_rate,
        stream_burst: o.stream_burst,
        snap_start: o.snap_start,
        version: o.version,
        opt: o.opt.into(),
    }
}

/// The one root that a function has, of those that can be said; without one it is the host's.
fn root(said: [(&'static str, String); 4], bad: &mut impl FnMut(&'static str, String)) -> Root {
    let roots: Vec<_> = said.into_iter().filter(|(_, value)| !value.is_empty()).collect();
    if let [(first, _), (second, _), ..] = &roots[..] {
        bad(second, format!("cannot stand beside {first}: a function has one root"));
    }
    match roots.into_iter().next() {
        None => Root::Host,
        Some(("image", text)) => match ImageRef::parse(&text) {
            Ok(image) => Root::Image(image),
            Err(problem) => {
                bad("image", problem);
                Root::Host
            }
        },
        Some(("archive", path)) => Root::Archive(path.into()),
        Some(("oci-layout", path)) => Root::OciLayout(path.into()),
        Some((_, path)) => Root::Rootfs(path.into()),
    }
}

/// `a, b or c`.
fn words<T: Copy>(all: &[T], name: impl Fn(T) -> &'static str) -> String {
    let names: Vec<_> = all.iter().map(|value| name(*value)).collect();
    match names.split_last() {
        Some((last, others)) if !others.is_empty() => format!("{} or {last}", others.join(", ")),
        _ => names.concat(),
    }
}

fn to_format_options(o: &FormatOptions) -> v1::FormatOptions {
    v1::FormatOptions {
        cloudevents: o.cloudevents.as_str().to_owned(),
        cloudevents_by_content_type: o.cloudevents_by_content_type,
        base64_bodies: o.base64_bodies,
        cold: o.cold,
        open_function_variables: o.open_function_variables,
        handler: o.handler.clone(),
        stream_rate: o.stream_rate,
        stream_burst: o.stream_burst,
        snap_start: o.snap_start,
        version: o.version,
        opt: o.opt.to_string_lossy().into_owned(),
    }
}

/// A function for the wire.
#[must_use]
pub fn to_function(s: &FunctionSpec) -> v1::Function {
    let root = |key: &str| match s.root.written() {
        Some((its, value)) if its == key => value,
        _ => String::new(),
    };
    let ms = |ms| Some(to_duration(Duration::from_millis(ms)));
    v1::Function {
        app: s.name.app().to_owned(),
        name: s.name.function().to_owned(),
        command: s.command.clone(),
        workdir: s.workdir.to_string_lossy().into_owned(),
        rootfs: root("rootfs"),
        image: root("image"),
        archive: root("archive"),
        oci_layout: root("oci-layout"),
        credentials: s.credentials.clone(),
        writable_root: s.writable_root,
        format: s.format.as_str().to_owned(),
        format_options: (s.format_options != FormatOptions::default())
            .then(|| to_format_options(&s.format_options)),
        memory: s.memory,
        cpu_millis: s.cpu_millis,
        timeout: ms(s.timeout_ms),
        init_timeout: ms(s.init_timeout_ms),
        idle_timeout: ms(s.idle_timeout_ms),
        concurrency: s.concurrency,
        min_containers: s.min_containers,
        max_containers: s.max_containers,
        network: s.network.as_str().to_owned(),
        env: s.env.clone().into_iter().collect(),
        secrets: s.secrets.iter().map(|(key, name)| (key.clone(), name.to_string())).collect(),
        idempotent: s.idempotent,
        triggers: s.triggers.iter().map(triggers::write).collect(),
        cors: s.cors.as_ref().map(triggers::write_cors),
        max_request: s.max_request,
        max_response: s.max_response,
        later: (!s.later.is_default()).then(|| later::write(&s.later)),
        schedules: s
            .schedules
            .iter()
            .map(|s| v1::Schedule { cron: s.cron.clone(), body: s.body.clone() })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stoker_core::function::{Cors, Trigger};

    #[test]
    fn functions_survive_the_way() {
        let mut spec =
            FunctionSpec::new(FunctionName::new("a", "b").unwrap(), vec!["x".into()], "/somewhere".into());
        spec.root = Root::Rootfs("/r".into());
        spec.writable_root = true;
        spec.format = Format::HttpStream;
        spec.concurrency = 4;
        spec.env.insert("K".into(), "V".into());
        spec.secrets.insert("S".into(), SecretName::parse("db/password").expect("a name"));
        spec.triggers.push(Trigger {
            methods: vec!["GET".into()],
            hosts: vec!["*.example".into()],
            headers: [("v".to_owned(), "1".to_owned())].into(),
            query: [("q".to_owned(), "2".to_owned())].into(),
            cors: Some(Cors { origins: vec!["*".into()], max_age: 5, ..Cors::default() }),
            ..Trigger::new("/t/{id}")
        });
        spec.cors = Some(Cors {
            origins: vec!["https://a.example".into()],
            methods: vec!["PUT".into()],
            headers: vec!["x-a".into()],
            expose: vec!["x-b".into()],
            credentials: true,
            max_age: 0,
        });
        (spec.max_request, spec.max_response) = (5, 6);
        assert_eq!(function(to_function(&spec)), Ok(spec.clone()));
        assert_eq!(function(to_function(&spec)).unwrap().digest(), spec.digest());
        spec.root = Root::Image(ImageRef::parse("r.example/x:1").unwrap());
        (spec.command, spec.workdir, spec.credentials) = (Vec::new(), "".into(), "team".into());
        (spec.format, spec.concurrency) = (Format::Mless, 1);
        spec.format_options = FormatOptions { handler: "f.h".into(), ..FormatOptions::default() };
        assert_eq!(function(to_function(&spec)), Ok(spec.clone()));
        for root in [Root::Archive("/a.tar".into()), Root::OciLayout("/l".into()), Root::Rootfs("/r".into())]
        {
            (spec.root, spec.command, spec.workdir) = (root, vec!["x".into()], "/".into());
            spec.credentials.clear();
            assert_eq!(function(to_function(&spec)), Ok(spec.clone()));
        }
        let two = v1::Function { image: "x".into(), ..to_function(&spec) };
        assert_eq!(function(two).unwrap_err()[0].field, "image");
    }
}
