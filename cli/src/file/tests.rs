//! A good file in full, and a table of bad ones.

use super::*;
use stoker_core::function::{Cors, Trigger};

fn read(text: &str) -> Result<Vec<FunctionSpec>, Vec<String>> {
    let mut mistakes = Vec::new();
    let specs = parse(Path::new("/f/functions.yaml"), text, &mut Known::default(), &mut mistakes);
    if mistakes.is_empty() {
        Ok(specs)
    } else {
        Err(mistakes
            .iter()
            .map(|m| m.to_string().trim_start_matches("/f/functions.yaml:").to_owned())
            .collect())
    }
}

#[test]
fn every_key_is_read() {
    let text = r#"
app: demo
functions:
  - name: hello
    command: ["python3", func.py, 1.10, true]
    workdir: sub
    format: http-stream
    memory: 64MiB
    cpu: 250m
    timeout: 3s
    init_timeout: 2s
    idle_timeout: 1m
    concurrency: 4
    min_containers: 1
    max_containers: 20
    network: egress
    env: {GREETING: hi, VERSION: 1.10, NOTHING: , ON: yes}
    idempotent: true
    triggers:
      - http: /hello
      - {http: "/users/{id}", methods: [GET, PUT], hosts: shop.example, headers: {X-Kind: a}, query: {v: 1}}
      - http: /static/*
        cors: {origins: [https://shop.example], methods: PUT, headers: [X-A], expose: X-B, credentials: true, max_age: 10m}
    cors: {origins: "*"}
    max_request: 1MiB
    max_response: 2MiB
  - name: other
    rootfs: /r
    command: [x]
    cpu: 2
"#;
    let specs = read(text).unwrap();
    let hello = &specs[0];
    assert_eq!(hello.name.as_str(), "demo/hello");
    assert_eq!(hello.command, ["python3", "func.py", "1.10", "true"]);
    assert_eq!(hello.workdir, Path::new("/f/sub"));
    assert_eq!((hello.format, hello.memory, hello.cpu_millis), (Format::HttpStream, 64 << 20, 250));
    assert_eq!((hello.timeout_ms, hello.init_timeout_ms, hello.idle_timeout_ms), (3000, 2000, 60_000));
    assert_eq!((hello.concurrency, hello.min_containers, hello.max_containers), (4, 1, 20));
    assert_eq!((hello.network, hello.idempotent), (Network::Egress, true));
    let env: Vec<_> = hello.env.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(env, ["GREETING=hi", "NOTHING=", "ON=yes", "VERSION=1.10"]);
    let special = Trigger {
        methods: vec!["GET".into(), "PUT".into()],
        hosts: vec!["shop.example".into()],
        headers: [("x-kind".to_owned(), "a".to_owned())].into(),
        query: [("v".to_owned(), "1".to_owned())].into(),
        ..Trigger::new("/users/{id}")
    };
    assert_eq!(hello.triggers[..2], [Trigger::new("/hello"), special]);
    let cors = Cors {
        origins: vec!["https://shop.example".into()],
        methods: vec!["PUT".into()],
        headers: vec!["x-a".into()],
        expose: vec!["x-b".into()],
        credentials: true,
        max_age: 600,
    };
    assert_eq!(hello.triggers[2].cors, Some(cors));
    assert_eq!(hello.cors.as_ref().map(Cors::is_for_all), Some(true));
    assert_eq!((hello.max_request, hello.max_response), (1 << 20, 2 << 20));
    let other = &specs[1];
    assert_eq!(other.root, Root::Rootfs("/r".into()));
    assert_eq!((other.workdir.as_path(), other.cpu_millis), (Path::new("/"), 2000));
}

/// What has a name and what is written by it reads as if it were written out, numbers too.
#[test]
fn a_value_with_a_name_is_used_again() {
    let text = "app: d\nfunctions:\n- {name: a, command: &c [x], max_containers: &n 3, env: &e {V: &v 1.10, W: *v}}\n\
                - {name: b, command: *c, max_containers: *n, env: *e}";
    let [a, b] = &read(text).unwrap()[..] else { panic!("two functions") };
    for spec in [a, b] {
        assert_eq!((&spec.command[..], spec.max_containers), (&["x".to_owned()][..], 3));
        assert_eq!(spec.env.values().collect::<Vec<_>>(), ["1.10", "1.10"]);
    }
}

#[test]
fn bad_files() {
    let function =
        |lines: &str| format!("app: demo\nfunctions:\n  - name: a\n    command: [x]\n    {lines}\n");
    let table: &[(String, &[&str])] = &[
        (String::new(), &["1:1: is empty"]),
        ("- a".into(), &["1:1: must be a mapping"]),
        ("a: [".into(), &["is not YAML"]),
        ("app: demo".into(), &["1:1: `functions` is missing"]),
        ("functions: []".into(), &["1:1: `app` is missing"]),
        (
            "app: a b\nfunctions: 3".into(),
            &["1:6: `app` \"a b\" is not a name", "2:12: `functions` must be a list like [{name: hello, …}], not a number"],
        ),
        (
            "ap: demo\nfunctions: []".into(),
            &["1:1: `ap` is not a key of a function file: did you mean `app`?", "1:1: `app` is missing"],
        ),
        ("app: d\nfunctions: [3]".into(), &["2:13: a function must be a mapping"]),
        ("app: d\nfunctions: [{command: [x]}]".into(), &["2:13: `name` is missing"]),
        ("app: d\nfunctions: [{name: a}]".into(), &["2:13: `command` is missing"]),
        (function("memmory: 1MiB"), &["5:5: `memmory` is not a key of a function: did you mean `memory`?"]),
        (
            function("idle-timeout: 1s"),
            &["5:5: `idle-timeout` is not a key of a function: did you mean `idle_timeout`?"],
        ),
        (function("colour: red"), &["5:5: `colour` is not a key of a function: it has name, image"]),
        (function("async: {attempts: 3}"), &["5:13: `attempts` is not a key of async"]),
        (function("async: {max_attempts: 0}"), &["5:13: `async` max_attempts: 0 is not between 1 and 100"]),
        (function("async: {dead_letter: nowhere}"), &["5:26: `dead_letter`: `nowhere` is no target"]),
        (
            function("async: {max_attempts: 0, backoff: 5, dead_letter: nowhere}"),
            &[
                "5:13: `async` max_attempts: 0",
                "5:39: `backoff`: `5` has no unit: write it like 5s",
                "5:55: `dead_letter`: `nowhere` is no target",
            ],
        ),
        (function("async: {backoff: 5}"), &["5:22: `backoff`: `5` has no unit"]),
        (
            "app: d\nfunctions: [{name: a b, command: [x]}, {name: a/b, command: [x]}, {name: \"\", command: [x]}]".into(),
            &["`name` \"a b\" is not a name", "`name` \"a/b\" is not a name", "`name` \"\" is not a name"],
        ),
        (
            "app: d\nfunctions:\n- &a {name: a, command: [x], env: &e {A: b}}\n- {<<: *a, name: b, command: [x], env: *e}".into(),
            &["4:4: merge keys (`<<`) are not taken"],
        ),
        (
            "schema_version: 20180708\nname: hello\nversion: 0.0.1\nruntime: python\nentrypoint: x\n".into(),
            &["1:1: is Fn's func.yaml"],
        ),
        (function("schedules: [{cron: soon}, {body: x}]"), &["`schedules` cron: `soon`", "5:31: a schedule must have `cron`"]),
        (function("schedules: [{cron: soon}]"), &["5:16: `schedules` cron: `soon` is not understood"]),
        (function("schedules: [{body: x}]"), &["5:17: a schedule must have `cron`"]),
        (function("memory: 128"), &["5:13: `memory`: `128` has no unit: write it like 128MiB"]),
        (function("memory: 128mb"), &["5:13: `memory`: `128mb` is not a size"]),
        (function("memory: 1KiB"), &["5:13: `memory` 1KiB is not between 1MiB and 1TiB"]),
        (function("memory: [1]"), &["5:13: `memory` must be one value, not a list"]),
        (function("memory:"), &["`memory` has no value"]),
        (function("cpu: fast"), &["5:10: `cpu`: `fast` is not a share of CPU"]),
        (function("timeout: 30"), &["5:14: `timeout`: `30` has no unit: write it like 30s"]),
        (function("timeout: 0s"), &["5:14: `timeout` 0ms is not between"]),
        (function("timeout: 1.5s"), &["5:14: `timeout`: `1.5s` is not a duration"]),
        (function("concurrency: 4"), &["5:18: `concurrency` format default takes one call at a time"]),
        (function("concurrency: many"), &["5:18: `concurrency`: `many` is not a whole number"]),
        (function("min_containers: 100001"), &["5:21: `min_containers` 100001 is not between 0 and 100000"]),
        (
            function("format: http-strem"),
            &["5:13: `format`: `http-strem` is not a format: did you mean `http-stream`?"],
        ),
        (function("format: lamda"), &["5:13: `format`: `lamda` is not a format: did you mean `lambda`?"]),
        (
            function("format: xml"),
            &[
                "5:13: `format`: `xml` is not a format: write default, http, json, json-http, cloudevent, http-stream, mless or lambda",
            ],
        ),
        (function("format: cloud-event"), &["`cloud-event` is not a format: did you mean `cloudevent`?"]),
        (function("format: jsonhttp"), &["`jsonhttp` is not a format: did you mean `json-http`?"]),
        (
            // What depends on the format is not judged by a guess.
            function("format: mles\n    concurrency: 4\n    format_options: {handler: f.h}"),
            &["5:13: `format`: `mles` is not a format: did you mean `mless`?"],
        ),
        (
            function("format: json\n    concurrency: 4"),
            &["6:18: `concurrency` format json takes one call at a time"],
        ),
        (function("network: all"), &["5:14: `network`: `all` is not a network: write none, egress or host"]),
        (function("idempotent: maybe"), &["5:17: `idempotent`: `maybe` must be true or false"]),
        (function("env: [A]"), &["5:10: `env` must be a mapping"]),
        (function("env: {A: [1]}"), &["`env` must be one value, not a list"]),
        (function("env: {A=B: 1}"), &["5:10: `env` \"A=B\" cannot be an environment variable"]),
        (function("triggers: /x"), &["5:15: `triggers` must be a list"]),
        (function("triggers: [{http: x}]"), &["5:15: `triggers` \"x\" is not a path"]),
        (
            function("triggers: [{htp: /x}]"),
            &["a trigger must have `http`", "`htp` is not a key of a trigger: did you mean `http`?"],
        ),
        (
            function("triggers: [{http: /x}, {http: /x}]"),
            &["5:15: `triggers` /x takes the same requests as /x, and neither is more special"],
        ),
        (
            "app: d\nfunctions:\n- {name: a, command: [x], triggers: [{http: \"/u/{id}\"}]}\n\
             - {name: b, command: [x], triggers: [{http: /u/x}, {http: \"/u/{name}\"}]}"
                .into(),
            &[
                "4:52: `/u/{name}` is a trigger already, at /f/functions.yaml:3:38 as `/u/{id}`, and neither is more special",
            ],
        ),
        (
            function("triggers: [{http: /x, methods: get}]"),
            &["\"get\" is not a method in upper case, like GET"],
        ),
        (function("triggers: [{http: /x, cors: {origin: a}}]"), &["did you mean `origins`?"]),
        (
            function("cors: {origins: \"*\", credentials: true}"),
            &["5:26: `cors` credentials with the origin \"*\" would let every site act"],
        ),
        (function("max_request: 5"), &["5:18: `max_request`: `5` has no unit: write it like 5MiB"]),
        (function("name: b"), &["5:5: `name` stands here twice, first in line 3: write it once"]),
        (
            "app: d\nfunctions:\n- {name: a, command: [x]}\n- {name: a, command: [x]}".into(),
            &["4:10: there is a function `d/a` already, at /f/functions.yaml:3:10"],
        ),
        (
            "app: d\nfunctions:\n- {name: a, command: python3 f.py}".into(),
            &["`command` must be a list like [\"python3\", \"f.py\"], not text"],
        ),
        (function("memory: 3\n    timeout: 4\n    colour: red"), &["5:13", "6:14", "7:5"]),
    ];
    for (text, expected) in table {
        let mistakes = read(text).expect_err(text);
        assert_eq!(mistakes.len(), expected.len(), "{text}\n{mistakes:#?}");
        for (mistake, expected) in mistakes.iter().zip(*expected) {
            assert!(mistake.contains(expected), "{text}\n{mistake}\n{expected}");
        }
    }
}

#[test]
fn options_of_formats() {
    let function = |format: &str, options: &str| {
        format!(
            "app: d\nfunctions:\n- name: a\n  command: [x]\n  format: {format}\n  format_options:\n    {options}\n"
        )
    };
    let read_one = |format: &str, options: &str| {
        let mut specs = read(&function(format, options)).expect(options);
        specs.remove(0).format_options
    };
    let none = FormatOptions::default;
    for (format, options, expected) in [
        ("cloudevent", "cloudevents: \"1.0\"", FormatOptions { cloudevents: CloudEvents::V1_0, ..none() }),
        // A number to YAML, and meant as it is written.
        ("cloudevent", "cloudevents: 1.0", FormatOptions { cloudevents: CloudEvents::V1_0, ..none() }),
        ("cloudevent", "cloudevents: 0.1", none()),
        (
            "http-stream",
            "{cloudevents_by_content_type: true, cloudevents: 1.0}",
            FormatOptions { cloudevents: CloudEvents::V1_0, cloudevents_by_content_type: true, ..none() },
        ),
        ("json", "base64_bodies: true", FormatOptions { base64_bodies: true, ..none() }),
        ("json", "base64_bodies: false", none()),
        ("json-http", "cold: true", FormatOptions { cold: true, ..none() }),
        (
            "default",
            "open_function_variables: true",
            FormatOptions { open_function_variables: true, ..none() },
        ),
        ("http", "open_function_variables: true", FormatOptions { open_function_variables: true, ..none() }),
        ("mless", "handler: func.handler", FormatOptions { handler: "func.handler".into(), ..none() }),
        (
            "lambda",
            "{stream_rate: 2MiB, stream_burst: 6MiB, snap_start: true}",
            FormatOptions { stream_rate: 2 << 20, stream_burst: 6 << 20, snap_start: true, ..none() },
        ),
        ("lambda", "opt: /nowhere/opt", FormatOptions { opt: "/nowhere/opt".into(), ..none() }),
    ] {
        assert_eq!(read_one(format, options), expected, "{format}: {options}");
    }
    for (format, options, expected) in [
        ("json", "cold: true", "7:5: `format_options` cold belongs to json-http, not to json"),
        ("http", "base64_bodies: true", "7:5: `format_options` base64_bodies belongs to json, not to http"),
        (
            "http",
            "cloudevents: \"1.0\"",
            "7:5: `format_options` cloudevents belongs to cloudevent, not to http",
        ),
        (
            "mless",
            "{handler: f.h, cloudevents_by_content_type: true}",
            "7:20: `format_options` cloudevents_by_content_type belongs to default and http and json",
        ),
        (
            "cloudevent",
            "cloudevents_by_content_type: true",
            "7:5: `format_options` cloudevents_by_content_type belongs to",
        ),
        (
            "json",
            "open_function_variables: true",
            "7:5: `format_options` open_function_variables belongs to default and http, not to json",
        ),
        (
            "default",
            "handler: f.h",
            "7:5: `format_options` handler belongs to mless and lambda, not to default",
        ),
        ("lambda", "stream_rate: 1KiB", "7:5: `format_options` stream_rate is not between 32KiB and 64MiB"),
        (
            "lambda",
            "stream_burst: 1MiB",
            "7:5: `format_options` stream_burst does nothing without stream_rate",
        ),
        ("http", "snap_start: true", "7:5: `format_options` snap_start belongs to lambda, not to http"),
        ("http", "opt: /nowhere", "7:5: `format_options` opt belongs to lambda, not to http"),
        ("mless", "{}", "7:5: `format_options` handler is missing: format mless names one"),
        ("mless", "handler:", "`handler` has no value"),
        (
            "cloudevent",
            "cloudevents: 0.2",
            "7:18: `cloudevents`: `0.2` is not a version: write \"0.1\" or \"1.0\"",
        ),
        ("json-http", "cold: maybe", "7:11: `cold`: `maybe` must be true or false"),
        ("json-http", "cald: true", "7:5: `cald` is not a key of format_options: did you mean `cold`?"),
        ("json-http", "[cold]", "7:5: `format_options` must be a mapping like"),
    ] {
        let mistakes = read(&function(format, options)).expect_err(options);
        assert_eq!(mistakes.len(), 1, "{format}: {options}\n{mistakes:#?}");
        assert!(mistakes[0].contains(expected), "{}\n{expected}", mistakes[0]);
    }
    let missing =
        read("app: d\nfunctions: [{name: a, command: [x], format: mless}]").expect_err("no handler");
    assert!(missing[0].contains("`format_options` handler is missing"), "{missing:?}");
}

#[test]
fn roots() {
    let function = |lines: &str| format!("app: d\nfunctions:\n- name: a\n  {lines}\n");
    let image = ImageRef::parse("registry.example/team/hello:1").expect("an image");
    for (lines, root, workdir) in [
        ("image: registry.example/team/hello:1", Root::Image(image.clone()), ""),
        ("image: registry.example/team/hello:1\n  workdir: /w", Root::Image(image), "/w"),
        ("archive: hello.tar", Root::Archive("/f/hello.tar".into()), ""),
        ("oci-layout: sub/dir", Root::OciLayout("/f/sub/dir".into()), ""),
        ("command: [x]\n  rootfs: r", Root::Rootfs("/f/r".into()), "/"),
        ("command: [x]", Root::Host, "/f"),
    ] {
        let spec = read(&function(lines)).expect(lines).remove(0);
        assert_eq!((spec.root, spec.workdir.to_str()), (root, Some(workdir)), "{lines}");
    }
    let text = function("image: x\n  credentials: team\n  writable_root: true\n  env: {}");
    let spec = read(&text).expect("valid").remove(0);
    assert_eq!((spec.credentials.as_str(), spec.writable_root), ("team", true));
    for (lines, expected) in [
        ("image: UPPER", "4:10: `image`: `UPPER` is not an image: write a name like"),
        ("image: x@sha256:12", "its digest must be sha256: and 64 digits"),
        (
            "image: x\n  archive: y.tar",
            "5:12: `archive` cannot stand beside `image`: a function has one root",
        ),
        ("command: [x]\n  credentials: team", "5:16: `credentials` belongs to `image`"),
        ("image: x\n  credentials: a b", "5:16: `credentials` \"a b\" is not a name"),
        ("rootfs: /r", "`command` is missing"),
        (
            "image: x\n  writable_root: yes please",
            "5:18: `writable_root`: `yes please` must be true or false",
        ),
        ("image: [x]", "4:10: `image` must be one value, not a list"),
    ] {
        let mistakes = read(&function(lines)).expect_err(lines);
        assert_eq!(mistakes.len(), 1, "{lines}\n{mistakes:#?}");
        assert!(mistakes[0].contains(expected), "{}\n{expected}", mistakes[0]);
    }
}

#[test]
fn unreadable_files_are_mistakes_too() {
    let mistakes = load(&["/nowhere/f.yaml".into()]).unwrap_err();
    assert!(mistakes[0].to_string().starts_with("/nowhere/f.yaml: cannot be read"));
}
