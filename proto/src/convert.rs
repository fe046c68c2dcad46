//! Receiver-side checks: a generated message becomes a word of the domain, or a sentence that says what is wrong with it.
//! And the other way, which cannot fail.

mod later;
mod triggers;

use std::collections::BTreeMap;
use std::time::Duration;

use stoker_core::call::{Cold, Header, HeaderProblem, Headers, Intent, RequestHead, ResponseHead, Timings};
use stoker_core::capacity::{Capacity, RunnerState, Warmth};
use stoker_core::error::{Code, Error, Refusal, Report, Retry};
use stoker_core::function::{
    CloudEvents, Digest, Format, FormatOptions, FunctionName, FunctionSpec, Network, Problem, Root,
};
use stoker_core::ids::{Incarnation, RunnerName};
use stoker_core::image::ImageRef;
use stoker_core::later::Schedule;
use stoker_core::machine::Listed as _;
use stoker_core::resources::Resources;
use stoker_core::secret::SecretName;

use crate::{runner, v1};

/// What is wrong with a message, for its sender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong(pub String);

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Wrong {}

fn wrong(text: impl Into<String>) -> Wrong {
    Wrong(text.into())
}

// === heads ===

/// Checks a request's head.
///
/// # Errors
/// `InvalidRequest` or `HeadersTooLarge`, the caller's fault.
pub fn request_head(head: v1::RequestHead) -> Result<RequestHead, Error> {
    let method = if head.method.is_empty() { "POST".to_owned() } else { head.method };
    if method.len() > 32 || !method.bytes().all(|b| b.is_ascii_alphabetic() || b == b'-' || b == b'_') {
        return Err(Error::new(Code::InvalidRequest, "method: 1 to 32 letters, `-` or `_` are one"));
    }
    if head.url.len() > 16 * 1024 {
        return Err(Error::new(Code::HeadersTooLarge, "url: longer than 16384 bytes"));
    }
    if head.url.bytes().any(|b| b <= b' ' || b == 0x7f) {
        return Err(Error::new(Code::InvalidRequest, "url: has a blank or a control character"));
    }
    let intent = match v1::Intent::try_from(head.intent) {
        Ok(v1::Intent::HttpRequest) => Intent::HttpRequest,
        _ => Intent::Invoke,
    };
    let headers = headers(head.headers);
    headers.check().map_err(|problem| match problem {
        HeaderProblem::Invalid(text) => Error::new(Code::InvalidRequest, format!("headers: {text}")),
        HeaderProblem::TooLarge(text) => Error::new(Code::HeadersTooLarge, format!("headers: {text}")),
    })?;
    Ok(RequestHead { intent, method, url: head.url, headers })
}

/// A request's head for the wire.
#[must_use]
pub fn to_request_head(head: RequestHead) -> v1::RequestHead {
    let intent = match head.intent {
        Intent::Invoke => v1::Intent::Invoke,
        Intent::HttpRequest => v1::Intent::HttpRequest,
    };
    v1::RequestHead {
        intent: intent.into(),
        method: head.method,
        url: head.url,
        headers: to_headers(head.headers),
    }
}

/// An answer's head, from a runner that we trust to have checked it.
#[must_use]
pub fn response_head(head: v1::ResponseHead) -> ResponseHead {
    ResponseHead {
        status: u16::try_from(head.status).ok().filter(|s| (100..1000).contains(s)).unwrap_or(200),
        headers: headers(head.headers),
    }
}

/// An answer's head for the wire.
#[must_use]
pub fn to_response_head(head: ResponseHead) -> v1::ResponseHead {
    v1::ResponseHead { status: head.status.into(), headers: to_headers(head.headers) }
}

/// What follows a body.
///
/// # Errors
/// What is wrong with it.
pub fn trailers(list: Vec<v1::Header>) -> Result<Headers, String> {
    let trailers = headers(list);
    match trailers.check_trailers() {
        Ok(()) => Ok(trailers),
        Err(HeaderProblem::Invalid(text) | HeaderProblem::TooLarge(text)) => Err(format!("trailers: {text}")),
    }
}

/// What follows a body, for the wire.
#[must_use]
pub fn to_trailers(trailers: Headers) -> Vec<v1::Header> {
    to_headers(trailers)
}

fn headers(list: Vec<v1::Header>) -> Headers {
    Headers(list.into_iter().map(|h| Header { name: h.name, value: h.value }).collect())
}

fn to_headers(headers: Headers) -> Vec<v1::Header> {
    headers.0.into_iter().map(|h| v1::Header { name: h.name, value: h.value }).collect()
}

// === times ===

/// A duration; negative ones are zero.
#[must_use]
pub fn duration(d: prost_types::Duration) -> Duration {
    Duration::try_from(d).unwrap_or_default()
}

/// A duration for the wire.
#[must_use]
pub fn to_duration(d: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(d.as_secs()).unwrap_or(i64::MAX),
        nanos: d.subsec_nanos() as i32,
    }
}

/// Phase times for the wire.
#[must_use]
pub fn to_timings(t: &Timings) -> v1::Timings {
    let us = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
    v1::Timings {
        wait_us: us(t.wait),
        image_us: us(t.image),
        create_us: us(t.create),
        start_us: us(t.start),
        init_us: us(t.init),
        thaw_us: us(t.thaw),
        first_byte_us: us(t.first_byte),
        execution_us: us(t.execution),
        cold: t.cold.is_some(),
        cold_cause: t.cold.map_or(v1::ColdCause::Unspecified, to_cold_cause).into(),
    }
}

fn to_cold_cause(cold: Cold) -> v1::ColdCause {
    match cold {
        Cold::First => v1::ColdCause::First,
        Cold::Busy => v1::ColdCause::Busy,
        Cold::Expired => v1::ColdCause::Expired,
        Cold::Evicted => v1::ColdCause::Evicted,
        Cold::Broken => v1::ColdCause::Broken,
        Cold::Once => v1::ColdCause::Once,
        Cold::Drained => v1::ColdCause::Drained,
    }
}

/// Why a call was cold, where its runner says.
#[must_use]
pub fn cold(timings: &v1::Timings) -> Option<Cold> {
    match timings.cold_cause() {
        v1::ColdCause::Unspecified => None,
        v1::ColdCause::First => Some(Cold::First),
        v1::ColdCause::Busy => Some(Cold::Busy),
        v1::ColdCause::Expired => Some(Cold::Expired),
        v1::ColdCause::Evicted => Some(Cold::Evicted),
        v1::ColdCause::Broken => Some(Cold::Broken),
        v1::ColdCause::Once => Some(Cold::Once),
        v1::ColdCause::Drained => Some(Cold::Drained),
    }
}

// === errors ===

macro_rules! same_names {
    ($($name:ident),+ $(,)?) => {
        fn to_code(code: Code) -> v1::ErrorCode {
            match code { $(Code::$name => v1::ErrorCode::$name),+ }
        }
        fn code(code: v1::ErrorCode) -> Code {
            match code {
                v1::ErrorCode::Unspecified => Code::Internal,
                $(v1::ErrorCode::$name => Code::$name),+
            }
        }
    };
}
same_names!(
    InvalidRequest,
    NotFound,
    RequestTooLarge,
    HeadersTooLarge,
    MethodNotAllowed,
    Unsupported,
    Unauthenticated,
    PermissionDenied,
    RateLimited,
    Cancelled,
    DeadlineExceeded,
    ResourcesImpossible,
    Overloaded,
    Unavailable,
    RunnerLost,
    Internal,
    FunctionTimeout,
    FunctionFailed,
    FunctionInvalidResponse,
    FunctionCrashed,
    FunctionOutOfMemory,
    FunctionInitFailed,
    FunctionInitTimeout,
    ResponseTooLarge,
    ResponseHeadersTooLarge,
);

/// A call's error. A code of a newer peer counts as internal.
#[must_use]
pub fn call_error(e: v1::CallError) -> Error {
    let retry = match v1::Retry::try_from(e.retry) {
        Ok(v1::Retry::Elsewhere) => Retry::Elsewhere,
        Ok(v1::Retry::After) => Retry::After(e.retry_after.map(duration).unwrap_or_default()),
        _ => Retry::Never,
    };
    Error {
        code: v1::ErrorCode::try_from(e.code).map_or(Code::Internal, code),
        message: e.message,
        retry,
        may_have_started: e.may_have_started,
        log_tail: e.log_tail,
        report: e
            .report
            .map(|r| Box::new(Report { kind: r.kind, content_type: r.content_type, body: r.body })),
    }
}

/// A call's error for the wire.
#[must_use]
pub fn to_call_error(e: &Error) -> v1::CallError {
    use stoker_core::Blame;
    let (retry, retry_after) = match e.retry {
        Retry::Never => (v1::Retry::Never, None),
        Retry::Elsewhere => (v1::Retry::Elsewhere, None),
        Retry::After(wait) => (v1::Retry::After, Some(to_duration(wait))),
    };
    let blame = match e.blame() {
        Blame::Caller => v1::Blame::Caller,
        Blame::Function => v1::Blame::Function,
        Blame::Platform => v1::Blame::Platform,
    };
    v1::CallError {
        code: to_code(e.code).into(),
        message: e.message.clone(),
        blame: blame.into(),
        retry: retry.into(),
        retry_after,
        may_have_started: e.may_have_started,
        log_tail: e.log_tail.clone(),
        report: e.report.as_ref().map(|report| v1::ErrorReport {
            kind: report.kind.clone(),
            content_type: report.content_type.clone(),
            body: report.body.clone(),
        }),
    }
}

/// A refusal's reason; one of a newer peer counts as full.
#[must_use]
pub fn refusal(reason: i32) -> Refusal {
    use runner::v1::RefusalReason as R;
    match R::try_from(reason) {
        Ok(R::Draining) => Refusal::Draining,
        Ok(R::TooLarge) => Refusal::TooLarge,
        Ok(R::Expired) => Refusal::Expired,
        Ok(R::LaunchFailed) => Refusal::LaunchFailed,
        Ok(R::NoneIdle) => Refusal::NoneIdle,
        Ok(R::Full | R::Unspecified) | Err(_) => Refusal::Full,
    }
}

/// A refusal's reason for the wire.
#[must_use]
pub fn to_refusal(reason: Refusal) -> runner::v1::RefusalReason {
    use runner::v1::RefusalReason as R;
    match reason {
        Refusal::Full => R::Full,
        Refusal::Draining => R::Draining,
        Refusal::TooLarge => R::TooLarge,
        Refusal::Expired => R::Expired,
        Refusal::LaunchFailed => R::LaunchFailed,
        Refusal::NoneIdle => R::NoneIdle,
    }
}

// === capacity ===

fn resources(r: Option<v1::Resources>) -> Resources {
    r.map(|r| Resources { memory: r.memory, cpu_millis: r.cpu_millis, slots: r.slots }).unwrap_or_default()
}

fn to_resources(r: Resources) -> Option<v1::Resources> {
    Some(v1::Resources { memory: r.memory, cpu_millis: r.cpu_millis, slots: r.slots })
}

/// How warm a function is.
///
/// # Errors
/// A digest that is none.
pub fn warmth(w: &v1::Warmth) -> Result<(Digest, Warmth), Wrong> {
    let digest = Digest::from_slice(&w.digest).ok_or_else(|| wrong("a digest is not 32 bytes"))?;
    Ok((digest, Warmth { idle: w.idle, busy: w.busy, waiting: w.waiting }))
}

/// How warm a function is, for the wire.
#[must_use]
pub fn to_warmth(digest: &Digest, w: Warmth) -> v1::Warmth {
    v1::Warmth { digest: digest.0.to_vec().into(), idle: w.idle, busy: w.busy, waiting: w.waiting }
}

/// A runner's record.
///
/// # Errors
/// A name or a digest that is none.
pub fn capacity(c: v1::Capacity) -> Result<Capacity, Wrong> {
    Ok(Capacity {
        runner: RunnerName::new(&c.runner)
            .ok_or_else(|| wrong(format!("{:?} is not a runner's name", c.runner)))?,
        incarnation: Incarnation(c.incarnation),
        address: c.address,
        zone: c.zone,
        labels: c.labels.into_iter().collect(),
        sequence: c.sequence,
        state: match v1::RunnerState::try_from(c.state) {
            Ok(v1::RunnerState::Draining) => RunnerState::Draining,
            _ => RunnerState::Ready,
        },
        total: resources(c.total),
        free: resources(c.free),
        reclaimable: resources(c.reclaimable),
        in_flight: c.in_flight,
        waiting: c.waiting,
        functions: c.functions.iter().map(warmth).collect::<Result<_, _>>()?,
    })
}

/// A runner's record for the wire.
#[must_use]
pub fn to_capacity(c: &Capacity) -> v1::Capacity {
    v1::Capacity {
        runner: c.runner.as_str().to_owned(),
        incarnation: c.incarnation.0,
        address: c.address.clone(),
        zone: c.zone.clone(),
        labels: c.labels.clone().into_iter().collect(),
        sequence: c.sequence,
        state: match c.state {
            RunnerState::Ready => v1::RunnerState::Ready,
            RunnerState::Draining => v1::RunnerState::Draining,
        }
        .into(),
        total: to_resources(c.total),
        free: to_resources(c.free),
        reclaimable: to_resources(c.reclaimable),
        in_flight: c.in_flight,
        waiting: c.waiting,
        functions: c.functions.iter().map(|(digest, w)| to_warmth(digest, *w)).collect(),
    }
}

// === functions ===

/// A function, with every field checked. Numbers and durations that are absent (0) take their defaults; `cpu_millis` 0 is no
/// limit and `idle_timeout` absent is the default.
///
/// # Errors
/// Every problem at once, each with the name of its field.
pub fn function(f: v1::Function) -> Result<FunctionSpec, Vec<Problem>> {
    use stoker_core::function::limits;
    let mut problems = Vec::new();
    let mut bad = |field: &'static str, text: String| problems.push(Problem { field, text });
    let name = FunctionName::new(&f.app, &f.name);
    if name.is_none() {
        bad(
            "name",
            format!("`{}/{}` is not a name: app and name are 1 to 255 of [a-zA-Z0-9_-]", f.app, f.name),
        );
    }
    let mut secrets = BTreeMap::new();
    for (key, name) in f.secrets {
        match SecretName::parse(&name) {
            Ok(name) => _ = secrets.insert(key, name),
            // Without the text: it may be the secret itself.
            Err(why) => bad("env", format!("{key:?}: {why}")),
        }
    }
    let format = Format::parse(if f.format.is_empty() { "default" } else { &f.format });
    if format.is_none() {
        bad(
            "format",
            format!("`{}` is not a format: write {}", f.format, words(Format::ALL, Format::as_str)),
        );
    }
    let options = f.format_options.unwrap_or_default();
    let events =
        CloudEvents::parse(if options.cloudevents.is_empty() { "0.1" } else { &options.cloudevents });
    if events.is_none() {
        let versions = words(CloudEvents::ALL, CloudEvents::as_str);
        bad("format_options", format!("cloudevents is {:?}: write {versions}", options.cloudevents));
    }
    let roots: Vec<_> =
        [("rootfs", f.rootfs), ("image", f.image), ("archive", f.archive), ("oci-layout", f.oci_layout)]
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .collect();
    if let [(first, _), (second, _), ..] = &roots[..] {
        bad(second, format!("cannot stand beside {first}: a function has one root"));
    }
    let root = match roots.into_iter().next() {
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
    };
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
        format_options: FormatOptions {
            cloudevents: events.unwrap_or_default(),
            cloudevents_by_content_type: options.cloudevents_by_content_type,
            base64_bodies: options.base64_bodies,
            cold: options.cold,
            open_function_variables: options.open_function_variables,
            handler: options.handler,
            stream_rate: options.stream_rate,
            stream_burst: options.stream_burst,
            snap_start: options.snap_start,
            version: options.version,
            opt: options.opt.into(),
        },
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
    use proptest::prelude::*;
    use stoker_core::function::{Cors, Trigger};

    #[test]
    fn errors_survive_the_way() {
        for code in Code::ALL {
            let error = Error::new(*code, "m")
                .retry(Retry::After(Duration::from_millis(7)))
                .log_tail("t".into())
                .report(Report {
                    kind: "Function.X".into(),
                    content_type: "text/x".into(),
                    body: "b".into(),
                });
            assert_eq!(call_error(to_call_error(&error)), error);
        }
        for reason in Refusal::ALL {
            assert_eq!(refusal(to_refusal(*reason).into()), *reason);
        }
        assert_eq!(call_error(v1::CallError { code: 9999, ..Default::default() }).code, Code::Internal);
    }

    #[test]
    fn a_cold_call_says_why() {
        for cold in Cold::ALL {
            let told = to_timings(&Timings { cold: Some(cold), ..Timings::default() });
            assert_eq!((told.cold, super::cold(&told)), (true, Some(cold)));
        }
        let warm = to_timings(&Timings::default());
        assert_eq!((warm.cold, cold(&warm)), (false, None));
    }

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

    proptest! {
        /// Whatever a peer sends, checking it ends in a value or in a sentence.
        #[test]
        fn no_message_breaks_the_checks(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            use prost::Message as _;
            if let Ok(f) = v1::Function::decode(&bytes[..]) { _ = function(f); }
            if let Ok(h) = v1::RequestHead::decode(&bytes[..]) { _ = request_head(h); }
            if let Ok(h) = v1::ResponseHead::decode(&bytes[..]) { _ = response_head(h); }
            if let Ok(c) = v1::Capacity::decode(&bytes[..]) { _ = capacity(c); }
            if let Ok(e) = v1::CallError::decode(&bytes[..]) { _ = call_error(e); }
        }

        #[test]
        fn request_heads_survive_the_way(
            http in any::<bool>(), method in "[A-Z]{1,10}", url in "/[a-z0-9/?=&]{0,40}",
            headers in prop::collection::vec(("[a-zA-Z-]{1,12}", "[ -~]{0,20}"), 0..10),
        ) {
            let mut head = RequestHead {
                intent: if http { Intent::HttpRequest } else { Intent::Invoke }, method, url, ..Default::default()
            };
            headers.into_iter().for_each(|(k, v)| head.headers.push(k, v));
            prop_assert_eq!(request_head(to_request_head(head.clone())), Ok(head));
        }
    }
}
