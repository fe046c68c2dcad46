//! What people write, and what they are told about it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::kind::{ADDRESS, COUNT, CPU, DURATION, MAP, RATIO, SERVER, SERVERS, SIZE, TEXT, TRUTH};
use super::*;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Sandbox {
    Auto,
    Native,
}

static NAME: Key<String> = Key::required("name", TEXT, "How it is called");
static ZONE: Maybe<String> = Key::required("zone", TEXT, "Where it is").optional();
static GRPC: Key<SocketAddr> =
    Key::new("listen.grpc", ADDRESS, "127.0.0.1:7070", "Where gRPC is served").flag("listen");
static ETCD: Key<Vec<String>> =
    Key::new("etcd.endpoints", SERVERS, "", "Members of etcd").flag("etcd").variables(&["STOKER_ETCD"]);
static PASSWORD: Maybe<String> = Key::required("etcd.password", TEXT, "Its password").secret().optional();
static MEMORY: Key<u64> =
    Key::found("runner.memory", SIZE, || Ok("2GiB".to_owned()), "What it gives out").flag("memory");
static CPUS: Key<u32> = Key::new("runner.cpu", CPU, "2", "What it gives out").flag("cpu");
static SANDBOX: Key<Sandbox> = Key::new(
    "runner.sandbox",
    Kind::choice("auto|native", &[("auto", Sandbox::Auto), ("native", Sandbox::Native)]),
    "auto",
    "How functions are kept apart",
);
static LABELS: Key<BTreeMap<String, String>> =
    Key::new("runner.labels", MAP, "", "What placement can ask for");
static GRACE: Key<Duration> = Key::new("runner.grace", DURATION, "30s", "Time to finish");
static FREEZE: Key<bool> = Key::new("runner.freeze", TRUTH, "true", "Idle containers stand still");
static STREAMS: Key<usize> = Key::new("runner.streams", COUNT, "1", "Streams");
static RATE: Key<f64> = Key::new("telemetry.ratio", RATIO, "1", "Share of calls that are traced")
    .variables(&["OTEL_TRACES_SAMPLER_ARG"]);
static ENDPOINT: Maybe<String> = Key::required("telemetry.endpoint", SERVER, "Where traces go").optional();

static PROGRAM: Program = Program {
    name: "stoker-test",
    version: "1.2.3",
    about: "A program for tests.",
    examples: "  stoker-test --name one",
    tables: &[
        &[&NAME, &ZONE],
        &[&GRPC, &ETCD, &PASSWORD],
        &[&MEMORY, &CPUS, &SANDBOX, &LABELS, &GRACE, &FREEZE, &STREAMS, &RATE, &ENDPOINT],
    ],
};

/// Reads these flags and variables and a file with this text; `FILE` in a flag is its path.
fn load(file: &str, variables: &[(&str, &str)], flags: &[&str]) -> Result<Outcome, Vec<String>> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("stoker.yaml");
    std::fs::write(&path, file).unwrap();
    let path = path.to_str().unwrap();
    let flags = flags.iter().map(|flag| flag.replace("FILE", path).into());
    let variables = variables.iter().map(|(name, value)| (name.into(), value.replace("FILE", path).into()));
    let shown = |text: String| text.replace(path, "stoker.yaml");
    match PROGRAM.load(flags, variables) {
        Ok(Outcome::Say(text)) => Ok(Outcome::Say(shown(text))),
        Ok(run) => Ok(run),
        Err(Mistakes(all)) => Err(all.iter().map(|mistake| shown(mistake.to_string())).collect()),
    }
}

fn run(file: &str, variables: &[(&str, &str)], flags: &[&str]) -> Settings {
    match load(file, variables, flags) {
        Ok(Outcome::Run(settings)) => settings,
        other => panic!("{other:?}"),
    }
}

fn say(file: &str, variables: &[(&str, &str)], flags: &[&str]) -> String {
    match load(file, variables, flags) {
        Ok(Outcome::Say(text)) => text,
        other => panic!("{other:?}"),
    }
}

#[test]
fn defaults() {
    let settings = run("", &[], &["--name", "one"]);
    assert_eq!(settings.get(&NAME), "one");
    assert_eq!(settings.maybe(&ZONE), None);
    assert_eq!(settings.get(&GRPC), SocketAddr::from(([127, 0, 0, 1], 7070)));
    assert_eq!(settings.get(&ETCD), Vec::<String>::new());
    assert_eq!((settings.get(&MEMORY), settings.get(&CPUS)), (2 << 30, 2000));
    assert_eq!(settings.get(&SANDBOX), Sandbox::Auto);
    assert_eq!(settings.get(&GRACE), Duration::from_secs(30));
    assert!(settings.get(&FREEZE) && settings.get(&LABELS).is_empty());
}

#[test]
fn a_flag_beats_a_variable_beats_the_file_beats_the_default() {
    let file = "name: file\nrunner: {memory: 1GiB, cpu: 1, grace: 10s}\n";
    let variables = [("STOKER_RUNNER_CPU", "3"), ("STOKER_RUNNER_GRACE", "20s")];
    let settings = run(file, &variables, &["--config", "FILE", "--runner-grace=40s"]);
    assert_eq!(settings.get(&NAME), "file");
    assert_eq!(settings.get(&MEMORY), 1 << 30);
    assert_eq!(settings.get(&CPUS), 3000);
    assert_eq!(settings.get(&GRACE), Duration::from_secs(40));
    assert_eq!(settings.get(&SANDBOX), Sandbox::Auto);
    let named = run(file, &[("STOKER_CONFIG", "FILE")], &[]);
    assert_eq!(named.get(&NAME), "file", "a variable can name the file");
}

#[test]
fn lists_maps_and_switches() {
    let two = vec!["http://a:2379".to_owned(), "http://b:2379".to_owned()];
    let labels =
        BTreeMap::from([("disk", "ssd"), ("note", "a,b=c")].map(|(k, v)| (k.to_owned(), v.to_owned())));
    for (file, variables, flags) in [
        (
            "etcd: {endpoints: [\"http://a:2379\", http://b:2379]}\nrunner:\n  labels: {disk: ssd, note: 'a,b=c'}\n  freeze: false",
            &[][..],
            &[][..],
        ),
        (
            "",
            &[
                ("STOKER_ETCD_ENDPOINTS", "http://a:2379, http://b:2379"),
                ("STOKER_RUNNER_LABELS", "disk=ssd,note=a%2Cb=c"),
                ("STOKER_RUNNER_FREEZE", "false"),
            ],
            &[],
        ),
        (
            "",
            &[("STOKER_ETCD", "http://a:2379,http://b:2379"), ("STOKER_RUNNER_FREEZE", "true")],
            &["--runner-labels", "disk=ssd", "--runner-labels", "note=a%2Cb=c", "--runner-freeze=false"],
        ),
        (
            "etcd: {endpoints: [http://c:1]}",
            &[],
            &[
                "--etcd",
                "http://a:2379",
                "--etcd=http://b:2379",
                "--runner-labels",
                "disk=ssd,note=a%2Cb=c",
                "--runner-freeze=false",
            ],
        ),
    ] {
        let flags = [&["--name=x", "--config", "FILE"], flags].concat();
        let settings = run(file, variables, &flags);
        assert_eq!(settings.get(&ETCD), two, "{file} {variables:?} {flags:?}");
        assert_eq!(settings.get(&LABELS), labels, "{file} {variables:?} {flags:?}");
        assert!(!settings.get(&FREEZE), "{file} {variables:?} {flags:?}");
    }
    assert!(run("", &[("STOKER_RUNNER_FREEZE", "false")], &["--runner-freeze", "--name", "x"]).get(&FREEZE));
    let said = ["--runner-freeze", "false", "--name", "x"];
    assert!(!run("", &[("STOKER_RUNNER_FREEZE", "true")], &said).get(&FREEZE));
    let own_first =
        [("STOKER_TELEMETRY_RATIO", "0.5"), ("OTEL_TRACES_SAMPLER_ARG", "0.1"), ("STOKER_NAME", "x")];
    assert_eq!(run("", &own_first, &[]).get(&RATE), 0.5);
    assert_eq!(run("", &own_first[1..], &[]).get(&RATE), 0.1);
}

#[test]
fn texts_stay_as_they_are_written() {
    let settings = run("name: 1.10\nzone: 'no'\n", &[], &["--config=FILE"]);
    assert_eq!((settings.get(&NAME), settings.maybe(&ZONE)), ("1.10".to_owned(), Some("no".to_owned())));
    let empty = run("# nothing\n", &[("STOKER_ZONE", ""), ("STOKER_NAME", "é")], &["--config=FILE"]);
    assert_eq!((empty.get(&NAME), empty.maybe(&ZONE)), ("é".to_owned(), None), "empty is not set");
}

#[test]
fn every_mistake_of_every_layer_at_once() {
    let file = "\
nmae: one
zone:
listen: 7070
grpc: 127.0.0.1:1
runner:
  memory: 128
  cpu: lots
  sandbox: nativ
  labels: [a]
  turbo: true
etcd:
  endpoints:
    - http://good:1
    - https://bad:1
    - {a: b}
  password: [hidden]
";
    let variables = [
        ("STOKER_RUNNER_GRACE", "30"),
        ("STOKER_RUNER_CPU", "1"),
        ("STOKER_ETCD_SERVICE_HOST", "10.0.0.1"),
        ("OTEL_TRACES_SAMPLER_ARG", "2"),
        ("STOKER_TELEMETRY_ENDPOINT", "http://me:hunter2@host"),
        ("PATH", "/bin"),
    ];
    let flags = [
        "--config",
        "FILE",
        "--listen",
        "7070",
        "--lisen",
        "x",
        "--runner-streams=0",
        "extra",
        "--cpu=1",
        "--cpu=2",
        "--runner-labels",
        "x,a=1,a=2",
        "--runner-freeze=perhaps",
        "--zone",
    ];
    let mistakes = load(file, &variables, &flags).unwrap_err();
    let expected = [
        "stoker.yaml:1:1: `nmae` is not a key of the file: did you mean `name`?",
        "stoker.yaml:2:5: `zone` has no value: leave it out for the default",
        "stoker.yaml:3:9: `listen` must be a mapping like `key: value`, not a number",
        "stoker.yaml:4:1: `grpc` is not a key of the file: write `grpc` under `listen`",
        "stoker.yaml:6:11: `runner.memory`: `128` has no unit: write it like 128MiB",
        "stoker.yaml:7:8: `runner.cpu`: `lots` is not a share of CPU: write thousandths of a core like 250m, or cores like 0.5",
        "stoker.yaml:8:12: `runner.sandbox`: `nativ` is not a choice: did you mean `native`?",
        "stoker.yaml:9:11: `runner.labels` must be a mapping like {name: text}, not a list",
        "stoker.yaml:10:3: `turbo` is not a key of `runner`: it has cpu, freeze, grace, labels, memory, sandbox, streams",
        "stoker.yaml:15:7: `etcd.endpoints` must be one value, not a mapping",
        "stoker.yaml:16:13: `etcd.password` must be one value, not a list",
        "variable STOKER_RUNER_CPU: there is no such variable: did you mean `STOKER_RUNNER_CPU`?",
        "variable STOKER_RUNNER_GRACE: `runner.grace`: `30` has no unit: write it like 30s",
        "variable OTEL_TRACES_SAMPLER_ARG: `telemetry.ratio`: `2` is not a number from 0 to 1: write 0.05 for a twentieth",
        "variable STOKER_TELEMETRY_ENDPOINT: `telemetry.endpoint`: has a user or a password in it, where everybody sees it: leave them out",
        "flag --lisen: there is no such flag: did you mean `--listen`?",
        "flag --cpu: stands here twice: write it once",
        "flag --zone: has no value: write --zone TEXT",
        "flag --listen: `listen.grpc`: `7070` is not an address: write an IP address and a port, like 127.0.0.1:7070, or 0.0.0.0:7070 for all",
        "flag --runner-labels: `runner.labels`: `x` has no name: write it like name=text",
        "flag --runner-labels: `runner.labels`: `a` stands here twice",
        "flag --runner-freeze: `runner.freeze`: `perhaps` is neither true nor false",
        "flag --runner-streams: `runner.streams`: `0` is not a number from 1: write it like 8",
        "`extra` is not a flag: every setting has a name, like --config FILE",
        "`name` is missing: write --name TEXT, STOKER_NAME, or a line in the file",
    ];
    assert_eq!(mistakes, expected, "got\n{}", mistakes.join("\n"));
}

#[test]
fn several_values_in_one_text_are_told_how_they_stand_in_a_file() {
    for (file, told) in [
        ("etcd: {endpoints: 'http://a:1, http://b:2'}", "a list: write [http://a:1, http://b:2], not text"),
        ("etcd: {endpoints: http://a:1}", "a list: write [http://a:1], not text"),
        ("etcd: {endpoints: ''}", "a list: write [], not text"),
        ("etcd: {endpoints: [http://a:1, http://b:2]}", ""),
        // What would be refused all the same, and is no address to be shown.
        ("etcd: {endpoints: 'a, http://me:hunter2@b'}", "a list like [a, b], not text"),
        ("etcd: {endpoints: {a: b}}", "a list like [a, b], not a mapping"),
        ("runner: {labels: 'disk=ssd, note=a: b'}", "a mapping: write {disk: ssd, note: \"a: b\"}, not text"),
        ("runner: {labels: disk}", "a mapping like {name: text}, not text"),
        ("runner: {labels: [disk=ssd]}", "a mapping like {name: text}, not a list"),
    ] {
        let file = format!("name: x\n{file}");
        match load(&file, &[], &["--config", "FILE"]) {
            Ok(_) => assert_eq!(told, "", "{file}"),
            Err(mistakes) => {
                assert!(
                    mistakes.len() == 1 && mistakes[0].contains(&format!("` must be {told}")),
                    "{mistakes:?}"
                );
            }
        }
    }
}

#[test]
fn a_password_in_a_url_is_never_shown() {
    for wrong in [
        "http://me:hunter2@host",
        "http://me:hunter 2@host",
        "http://me:hun/ter2@host:x",
        "ftp://me:hunter2@host",
        "me:hunter2@host",
    ] {
        let told = load("name: a", &[("STOKER_TELEMETRY_ENDPOINT", wrong)], &["--config", "FILE"]);
        let told = told.unwrap_err().join("\n");
        assert!(told.contains("has a user or a password in it") && !told.contains("hun"), "{wrong}: {told}");
    }
    assert!(
        load("name: a", &[("STOKER_TELEMETRY_ENDPOINT", "http://host/v1/@x")], &["--config", "FILE"]).is_ok()
    );
}

#[test]
fn mistakes_of_whole_files() {
    for (file, flags, expected) in [
        ("a: [", &["--config", "FILE"][..], "stoker.yaml:"),
        (
            "- a",
            &["--config", "FILE"],
            "stoker.yaml:1:1: the file must be a mapping like `key: value`, not a list",
        ),
        ("name: a\n---\nname: b", &["--config", "FILE"], "stoker.yaml:3:1: is a second document"),
        ("name: a\nname: b", &["--config", "FILE"], "stoker.yaml:"),
        ("name: a", &["--config", "FILE", "--config", "FILE"], "flag --config: stands here twice"),
        ("name: a", &["--config"], "flag --config: has no value: write --config FILE"),
        ("name: a", &["--config", "/nowhere/at/all"], "/nowhere/at/all: cannot be read: No such file"),
    ] {
        let mistakes = load(file, &[], flags).unwrap_err();
        assert!(mistakes[0].starts_with(expected), "{file:?}: {mistakes:?}");
        let unread = mistakes[0].starts_with("stoker.yaml:") || mistakes[0].contains("cannot be read");
        let missing = mistakes.iter().any(|mistake| mistake.contains("is missing"));
        assert!(!(unread && missing), "it may stand in that file: {mistakes:?}");
    }
}

#[test]
fn a_value_that_is_overridden_must_be_right_too() {
    let mistakes = load(
        "runner: {memory: x}",
        &[("STOKER_RUNNER_MEMORY", "y")],
        &["--config", "FILE", "--name=a", "--memory=1GiB"],
    );
    let mistakes = mistakes.unwrap_err();
    assert_eq!(mistakes.len(), 2, "{mistakes:?}");
    assert!(
        mistakes[0].starts_with("stoker.yaml:1:18") && mistakes[1].starts_with("variable"),
        "{mistakes:?}"
    );
}

const FULL: &str = "\
name: runner-1  # main
listen:
  grpc: 0.0.0.0:7170
runner: {labels: {disk: ssd, 'odd key': 'a: b'}}
etcd: {password: hunter2}
";

const PRINTED: &str = "\
# stoker-test 1.2.3: the settings in effect
name: runner-1  # stoker.yaml:1:7
zone: \"north # 1\"  # flag --zone
listen:
  grpc: 0.0.0.0:7170  # stoker.yaml:3:9
etcd:
  endpoints: [http://a:1, http://b:2]  # variable STOKER_ETCD
  # password: secret, not shown  # stoker.yaml:5:18
runner:
  memory: 2GiB  # default
  cpu: 250m  # flag --cpu
  sandbox: auto  # default
  labels: {disk: ssd, \"odd key\": \"a: b\"}  # stoker.yaml:4:18
  grace: 30s  # default
  freeze: true  # default
  streams: 1  # default
telemetry:
  ratio: 1  # default
  # endpoint: not set
";

#[test]
fn printed_settings_say_who_said_them_and_can_be_used_again() {
    let variables = [("STOKER_ETCD", "http://a:1,http://b:2")];
    let flags = ["--config", "FILE", "--zone", "north # 1", "--cpu", "250m"];
    let printed = say(FULL, &variables, &[&flags[..], &["--print-config"]].concat());
    assert_eq!(printed, PRINTED);
    let (first, again) = (run(FULL, &variables, &flags), run(&printed, &[], &["--config", "FILE"]));
    let values = |settings: &Settings| {
        let mut json = settings.to_json();
        json.as_object_mut().unwrap().remove("etcd.password");
        json.as_object_mut().unwrap().values_mut().for_each(|told| *told = told["value"].take());
        json
    };
    assert_eq!(values(&first), values(&again));
    assert!(!values(&first)["zone"].is_null());
}

#[test]
fn secrets_are_never_shown() {
    static PORT: Key<u64> = Key::new("port", SIZE, "1MiB", "A size").secret();
    static SECRETIVE: Program =
        Program { name: "s", version: "1", about: "", examples: "", tables: &[&[&PORT, &PASSWORD]] };
    let wrong = SECRETIVE.load(["--port=hunter2".into()], []).unwrap_err().to_string();
    assert_eq!(wrong, "flag --port: `port`: is not valid; it is a secret and not shown: write SIZE\n");
    let Ok(Outcome::Run(settings)) =
        SECRETIVE.load(["--port=7MiB".into(), "--etcd-password=hunter2".into()], [])
    else {
        panic!("both are right")
    };
    assert_eq!((settings.get(&PORT), settings.maybe(&PASSWORD)), (7 << 20, Some("hunter2".to_owned())));
    for shown in [settings.to_yaml(), settings.to_json().to_string(), format!("{settings:?}")] {
        assert!(!shown.contains("7MiB") && !shown.contains("hunter2"), "{shown}");
    }
    let json = settings.to_json();
    assert_eq!(json["port"], serde_json::json!({ "value": null, "secret": true, "origin": "flag --port" }));
}

#[test]
fn json_has_the_shapes_of_the_values() {
    let json = run(FULL, &[("STOKER_ETCD", "http://a:1")], &["--config", "FILE"]).to_json();
    assert_eq!(json["listen.grpc"]["value"], "0.0.0.0:7170");
    assert_eq!(
        json["etcd.endpoints"],
        serde_json::json!({ "value": ["http://a:1"], "origin": "variable STOKER_ETCD" })
    );
    assert_eq!(json["runner.labels"]["value"], serde_json::json!({ "disk": "ssd", "odd key": "a: b" }));
    assert_eq!(json["zone"], serde_json::json!({ "value": null, "origin": "not set" }));
}

#[test]
fn help_has_every_key_its_variable_and_its_default() {
    let help = say("", &[], &["--nonsense", "--help"]);
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for key in PROGRAM.keys() {
        let spec = key.spec();
        assert!(help.contains(&format!("--{} <", spec.flag())), "{} in\n{help}", spec.name);
        for variable in spec.variables() {
            assert!(help.contains(&variable), "{variable} in\n{help}");
        }
    }
    for part in [
        "default 2GiB",
        "default 127.0.0.1:7070",
        "--print-config",
        "STOKER_CONFIG",
        "stoker-test --name one",
    ] {
        assert!(help.contains(part), "{part} in\n{help}");
    }
    assert_eq!(say("", &[], &["-V"]), "stoker-test 1.2.3\n");
}

#[test]
fn mistakes_between_values_have_a_place_too() {
    let settings = run("name: one\n", &[], &["--config", "FILE"]);
    let mistake = settings.mistake(&NAME, "is taken: choose another").to_string();
    assert!(mistake.ends_with("stoker.yaml:1:7: `name`: is taken: choose another"), "{mistake}");
}
