//! What `deploy/` holds, checked as far as it can be without the programs it is for: by their own checkers where they are here, and
//! against what our programs take and show.

#![expect(clippy::unwrap_used, reason = "tests, though clippy does not see it in their helpers")]

mod alerts;
mod chart;
mod dashboards;
mod debian;
mod docker;
mod live;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use stoker_tests::{deploy, program};

/// What a checker says; `None` where it is not installed.
fn checked(command: &mut Command) -> Option<Output> {
    match command.output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("left out: {:?} is not here", command.get_program());
            None
        }
        Err(error) => panic!("{command:?}: {error}"),
    }
}

fn is_content(output: &Output) {
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
}

#[test]
fn every_yaml_and_json_file_can_be_read() {
    // Templates are read when Helm has filled them in.
    let templates = deploy::path("helm/stoker/templates");
    for file in deploy::files().into_iter().filter(|file| !file.starts_with(&templates)) {
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("yaml" | "yml") => assert!(!deploy::yaml(&file).is_null(), "{} is empty", file.display()),
            Some("json") => drop(serde_json::from_str::<Value>(&deploy::text(&file)).unwrap()),
            _ => {}
        }
    }
}

#[test]
fn prometheus_takes_its_configuration_and_rules() {
    for (what, file) in [("config", "compose/prometheus.yaml"), ("rules", "compose/rules.yaml")] {
        let Some(output) = checked(Command::new("promtool").args(["check", what]).arg(deploy::path(file)))
        else {
            return;
        };
        is_content(&output);
    }
}

/// What one of our programs makes of these variables: every key with its value and where that came from.
fn effective(name: &str, variables: &BTreeMap<String, String>, arguments: &[&str]) -> String {
    let output = Command::new(program(name))
        .arg("--print-config")
        .args(arguments)
        .env_clear()
        .envs(variables)
        .output()
        .unwrap();
    is_content(&output);
    String::from_utf8(output.stdout).unwrap()
}

fn takes(name: &str, variables: &BTreeMap<String, String>, place: &str) {
    let shown = effective(name, variables, &[]);
    for variable in variables.keys() {
        assert!(
            shown.contains(&format!("variable {variable}")),
            "{place}: {name} has no {variable}\n{shown}"
        );
    }
}

#[test]
fn compose_starts_what_there_is_with_settings_that_exist() {
    let file = deploy::path("compose/compose.yaml");
    let compose = deploy::yaml(&file);
    let services = compose["services"].as_object().unwrap();
    let program_of = |name: &str| match name.split('-').next() {
        Some("balancer") => Some("stoker-lb"),
        Some("runner") => Some("stoker-runner"),
        _ => None,
    };
    let count = |program: &str| services.keys().filter(|name| program_of(name) == Some(program)).count();
    assert_eq!((count("stoker-lb"), count("stoker-runner")), (2, 3));
    for (name, service) in services {
        assert!(service["image"].is_string() || service["build"].is_object(), "{name} has nothing to run");
        if let Some(dockerfile) = service["build"]["dockerfile"].as_str() {
            let context = file.parent().unwrap().join(service["build"]["context"].as_str().unwrap());
            assert!(context.join(dockerfile).is_file(), "{name}: {dockerfile}");
        }
        for volume in service["volumes"].as_array().into_iter().flatten() {
            let from = volume.as_str().unwrap().split(':').next().unwrap();
            if from.starts_with('.') {
                assert!(file.parent().unwrap().join(from).exists(), "{name}: {from} is not there");
            } else {
                assert!(compose["volumes"].as_object().unwrap().contains_key(from), "{name}: {from}");
            }
        }
        for needed in service["depends_on"].as_object().into_iter().flat_map(|needs| needs.keys()) {
            assert!(services.contains_key(needed), "{name} needs {needed}");
        }
        for port in service["ports"].as_array().into_iter().flatten() {
            assert!(port.as_str().unwrap().starts_with("127.0.0.1:"), "{name} is open to everybody: {port}");
        }
        if let Some(program) = program_of(name) {
            let variables = service["environment"].as_object().unwrap().iter();
            let variables: BTreeMap<_, _> =
                variables.map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned())).collect();
            assert_eq!(variables["STOKER_NAME"], *name);
            takes(program, &variables, name);
        }
    }
    // Prometheus asks exactly those servers, at their admin ports.
    let prometheus = deploy::yaml(&deploy::path("compose/prometheus.yaml"));
    for job in prometheus["scrape_configs"].as_array().unwrap() {
        let program = job["job_name"].as_str().unwrap();
        let targets: Vec<&str> = job["static_configs"][0]["targets"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|target| target.as_str()?.split(':').next())
            .collect();
        assert_eq!(targets.len(), count(program), "{targets:?}");
        assert!(targets.iter().all(|target| program_of(target) == Some(program)), "{targets:?}");
    }
}

/// Instructions of a Dockerfile, with continued lines joined.
fn instructions(file: &Path) -> Vec<(String, String)> {
    let joined = deploy::text(file).replace("\\\n", " ");
    let lines = joined.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (word, rest) = line.split_once(' ').unwrap_or_else(|| panic!("{}: {line}", file.display()));
            (word.to_owned(), rest.trim().to_owned())
        })
        .collect()
}

#[test]
fn images_are_made_of_what_there_is() {
    const KNOWN: [&str; 11] = [
        "FROM",
        "WORKDIR",
        "COPY",
        "RUN",
        "ARG",
        "ENV",
        "VOLUME",
        "EXPOSE",
        "STOPSIGNAL",
        "ENTRYPOINT",
        "USER",
    ];
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(deploy::path(".."))
        .output()
        .unwrap();
    is_content(&metadata);
    let metadata: Value = serde_json::from_slice(&metadata.stdout).unwrap();
    let files: Vec<PathBuf> =
        deploy::files().into_iter().filter(|file| file.to_string_lossy().ends_with(".Dockerfile")).collect();
    assert!(files.len() >= 3, "{files:?}");
    for file in files {
        let name = file.display();
        let all = instructions(&file);
        for (word, _) in &all {
            assert!(KNOWN.contains(&word.as_str()), "{name}: {word}");
        }
        let stages: Vec<&str> = all
            .iter()
            .filter(|(word, _)| word == "FROM")
            .filter_map(|(_, rest)| rest.split(" AS ").nth(1))
            .collect();
        for (_, rest) in all.iter().filter(|(word, rest)| word == "COPY" && rest.starts_with("--from=")) {
            let stage = rest.trim_start_matches("--from=").split(' ').next().unwrap();
            assert!(stages.contains(&stage), "{name}: there is no stage {stage}");
        }
        // What is built exists, and is what is copied and started.
        let build = all.iter().find_map(|(_, rest)| rest.strip_prefix("deploy/docker/build.sh "));
        let Some((package, place)) = build.and_then(|words| words.split_once(' ')) else { continue };
        let binary = package;
        let packages = metadata["packages"].as_array().unwrap();
        let found =
            packages.iter().find(|p| p["name"] == package).unwrap_or_else(|| panic!("{name}: {package}"));
        let targets = found["targets"].as_array().unwrap();
        assert!(
            targets.iter().any(|t| t["name"] == binary && t["kind"][0] == "bin"),
            "{name}: no program {binary}"
        );
        // By itself, or with what it is linked with.
        let taken = format!("{place}/{binary} ");
        let takes_it = |(word, rest): &(String, String)| {
            rest.contains(&taken) && (word == "COPY" || rest.starts_with("deploy/docker/root.sh "))
        };
        assert!(all.iter().any(takes_it), "{name}");
        let entry = all.iter().find(|(word, _)| word == "ENTRYPOINT").unwrap();
        assert_eq!(serde_json::from_str::<Vec<String>>(&entry.1).unwrap(), [binary]);
        // Its variables are settings.
        let variables =
            all.iter().filter(|(word, _)| word == "ENV").flat_map(|(_, rest)| rest.split_whitespace());
        let mut variables: BTreeMap<String, String> = variables
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        variables.insert("STOKER_ETCD".to_owned(), "http://etcd:2379".to_owned());
        if binary == "stoker-runner" {
            variables.insert("STOKER_ADVERTISE".to_owned(), "http://runner:7170".to_owned());
        }
        takes(binary, &variables, &name.to_string());
    }
}

#[test]
fn a_root_of_one_program_runs_it() {
    let root = tempfile::tempdir().unwrap();
    let made =
        Command::new(deploy::path("docker/root.sh")).arg(program("stoker-lb")).arg(root.path()).output();
    is_content(&made.unwrap());
    let inside = |words: &[&str]| {
        // In user namespaces of its own, so that it takes no root.
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "chroot"]).arg(root.path()).args(words);
        checked(&mut command)
    };
    let Some(version) = inside(&["/usr/local/bin/stoker-lb", "--version"]) else { return };
    is_content(&version);
    assert!(String::from_utf8_lossy(&version.stdout).starts_with("stoker-lb "));
    assert!(root.path().join("etc/ssl/certs/ca-certificates.crt").is_file());
    let shell = inside(&["/bin/sh", "-c", "true"]).unwrap();
    assert!(!shell.status.success(), "it has a shell");
}

#[test]
fn units_are_what_systemd_takes() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["stoker-lb", "stoker-runner"] {
        let unit = deploy::text(&deploy::path(&format!("systemd/{name}.service")));
        let installed = format!("/usr/local/bin/{name}");
        assert!(unit.contains(&format!("ExecStart={installed} --config /etc/stoker/")), "{unit}");
        // Where the program is here.
        let unit = unit.replace(&installed, &program(name).to_string_lossy());
        let file = directory.path().join(format!("{name}.service"));
        std::fs::write(&file, unit).unwrap();
        let Some(output) = checked(Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&file))
        else {
            return;
        };
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // It looks at units of the system as well, which are none of ours.
        let ours: Vec<&str> = said.lines().filter(|line| line.contains(name)).collect();
        assert!(ours.is_empty(), "{said}");
    }
}

#[test]
fn the_configuration_files_for_hosts_are_taken() {
    for name in ["lb", "runner"] {
        let file = deploy::path(&format!("systemd/{name}.yaml"));
        let shown =
            effective(&format!("stoker-{name}"), &BTreeMap::new(), &["--config", file.to_str().unwrap()]);
        let keys = deploy::yaml(&file);
        for key in keys.as_object().unwrap().keys() {
            assert!(shown.contains(&format!("{key}:")), "{name}: {key}\n{shown}");
        }
    }
}
