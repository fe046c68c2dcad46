//! The Helm chart: rendered by Helm's own engine, held against the schemas of Kubernetes, and its variables against our settings.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use stoker_tests::deploy;

use super::takes;

/// The kit's programs; `None` where it is not installed.
fn kit(program: &str) -> Option<PathBuf> {
    let kits = std::env::var_os("STOKER_TEST_KITS").map(PathBuf::from);
    let found = kits.map(|kits| kits.join("helm/.venv/bin").join(program)).filter(|path| path.is_file());
    if found.is_none() {
        println!("left out: STOKER_TEST_KITS has no {program}");
    }
    found
}

/// What Helm makes of each of these values: first its findings on the chart itself.
fn rendered(values: &[Value]) -> Option<Vec<Value>> {
    let mut python = Command::new(kit("python")?)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/src/helm_render.py"))
        .arg(deploy::path("helm/stoker"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines: String = values.iter().map(|values| format!("{values}\n")).collect();
    python.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", output.status);
    let text = String::from_utf8(output.stdout).unwrap();
    let answers: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), values.len() + 1, "{text}");
    Some(answers)
}

/// The least that it takes, and everything that it has.
fn values() -> [Value; 2] {
    [
        json!({"etcd": {"endpoints": ["http://etcd:2379"]}, "tls": {"insecure": true}}),
        json!({
            "image": {"registry": "registry.example/", "tag": "1", "pullSecrets": [{"name": "pull"}]},
            "etcd": {
                "endpoints": ["https://etcd-0:2379", "https://etcd-1:2379"],
                "authSecret": "etcd-user", "tlsSecret": "etcd-tls",
            },
            "tls": {"balancerSecret": "balancer-tls", "runnerSecret": "runner-tls"},
            "access": {"secret": "access"},
            "telemetry": {"endpoint": "http://tempo:4317", "ratio": 0.1},
            "lb": {
                "autoscaling": {"enabled": true}, "env": {"STOKER_MAX_CALLS": "50000"},
                "nodeSelector": {"pool": "front"}, "tolerations": [{"key": "front", "operator": "Exists"}],
                "extraVolumes": [{"name": "audit", "emptyDir": {}}],
                "extraVolumeMounts": [{"name": "audit", "mountPath": "/var/log/stoker"}],
            },
            "runner": {
                "drainGrace": "5m", "kind": "StatefulSet", "memory": "4GiB", "cpu": "2", "zone": "a", "sandbox": "native",
                "registryCredentialsSecret": "registries", "state": {"hostPath": "/var/lib/stoker"},
                "functionSecrets": {"shop": {"db": "shop-db", "mail_key": "mail"}, "web": {"db": "web-db"}},
                "extraVolumes": [{"name": "code", "emptyDir": {}}],
                "extraVolumeMounts": [{"name": "code", "mountPath": "/srv/code"}],
            },
            "networkPolicy": {
                "clients": [{"podSelector": {"matchLabels": {"app": "web"}}}],
                "monitoring": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
            },
            "serviceMonitor": {"enabled": true, "tokenSecret": "scrape", "labels": {"release": "prometheus"}},
            "prometheusRule": {"enabled": true},
            "dashboards": {"enabled": true},
        }),
    ]
}

fn pods(manifests: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let all = manifests.as_array().unwrap().iter();
    all.filter_map(|one| Some((one["metadata"]["name"].as_str()?, one["spec"]["template"].get("spec")?)))
}

#[test]
fn the_chart_renders_what_kubernetes_takes() {
    let Some(answers) = rendered(&values()) else { return };
    assert_eq!(answers[0], json!({"lint": []}));
    let directory = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for (n, answer) in answers[1..].iter().enumerate() {
        let manifests = answer["manifests"].as_array().unwrap_or_else(|| panic!("{answer}"));
        for (m, manifest) in manifests.iter().enumerate() {
            // Those of the Prometheus operator are none of Kubernetes' own.
            if manifest["apiVersion"] == "monitoring.coreos.com/v1" {
                continue;
            }
            let file = directory.path().join(format!("{n}-{m}.json"));
            std::fs::write(&file, manifest.to_string()).unwrap();
            files.push(file);
        }
    }
    assert!(files.len() > 15, "{files:?}");
    let check = |files: &[PathBuf]| {
        Command::new(kit("kubernetes-validate")?).arg("--strict").args(files).output().ok()
    };
    let Some(output) = check(&files) else { return };
    super::is_content(&output);
    let wrong = directory.path().join("wrong.json");
    let mut manifest = answers[1]["manifests"][0].clone();
    manifest["spec"]["replicas"] = json!("two");
    std::fs::write(&wrong, manifest.to_string()).unwrap();
    assert!(!check(&[wrong]).unwrap().status.success(), "the checker takes anything");
}

#[test]
fn what_is_missing_or_misspelled_is_refused_with_what_would_be_right() {
    let etcd = json!({"endpoints": ["http://etcd:2379"]});
    let wrong = [
        (json!({}), "etcd.endpoints is empty"),
        (json!({"etcd": etcd}), "tls.insecure=true"),
        (json!({"etcd": etcd, "tls": {"runnerSecret": "one"}}), "belong together"),
        (
            json!({"etcd": etcd, "tls": {"balancerSecret": "one", "runnerSecret": "two"}}),
            "access.secret is not set",
        ),
        (
            json!({
                "etcd": etcd, "tls": {"insecure": true}, "access": {"secret": "access"},
                "serviceMonitor": {"enabled": true},
            }),
            "serviceMonitor.tokenSecret is not set",
        ),
        (json!({"etcd": etcd, "tls": {"insecure": true}, "runner": {"kidn": "DaemonSet"}}), "kidn"),
        (json!({"etcd": {"endpoints": ["etcd:2379"]}, "tls": {"insecure": true}}), "/etcd/endpoints/0"),
    ];
    let Some(answers) = rendered(&wrong.clone().map(|(values, _)| values)) else { return };
    for (answer, (_, says)) in answers[1..].iter().zip(wrong) {
        let text = answer["refused"].as_str().unwrap_or_else(|| panic!("taken: {answer}"));
        assert!(text.contains(says), "{text}");
    }
}

#[test]
fn the_variables_of_its_pods_are_settings() {
    let Some(answers) = rendered(&values()) else { return };
    for answer in &answers[1..] {
        let mut seen = 0;
        for (name, pod) in pods(&answer["manifests"]) {
            let container = &pod["containers"][0];
            let program = if name.ends_with("-lb") { "stoker-lb" } else { "stoker-runner" };
            let mut variables = BTreeMap::new();
            for variable in container["env"].as_array().unwrap() {
                let key = variable["name"].as_str().unwrap();
                let given = variable["value"].as_str().unwrap_or("given-by-kubernetes");
                if key.starts_with("STOKER_") {
                    variables.insert(key.to_owned(), given.replace("$(POD_IP)", "10.0.0.7"));
                }
            }
            // Settings of certificates are read with the files that they name, which are not here.
            let files: Vec<_> =
                variables.values().filter(|value| value.starts_with("/etc/stoker/")).cloned().collect();
            for file in &files {
                let mounted = container["volumeMounts"].as_array().unwrap().iter();
                let place = mounted
                    .filter_map(|mount| mount["mountPath"].as_str())
                    // Functions' secrets are mounted one by one below their directory.
                    .find(|place| file.starts_with(place) || place.starts_with(&format!("{file}/")));
                assert!(place.is_some(), "{name}: nothing is mounted at {file}");
            }
            takes(program, &variables, name);
            // Each volume that is mounted is there.
            for mount in container["volumeMounts"].as_array().into_iter().flatten() {
                let volumes = pod["volumes"].as_array().unwrap();
                assert!(volumes.iter().any(|volume| volume["name"] == mount["name"]), "{name}: {mount}");
            }
            seen += 1;
        }
        assert_eq!(seen, 2);
    }
}

#[test]
fn balancers_have_no_privileges_and_runners_are_reached_by_balancers_alone() {
    let Some(answers) = rendered(&values()) else { return };
    for answer in &answers[1..] {
        let (_, pod) = pods(&answer["manifests"]).find(|(name, _)| name.ends_with("-lb")).unwrap();
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        let container = &pod["containers"][0]["securityContext"];
        assert_eq!(container["capabilities"], json!({"drop": ["ALL"]}));
        assert_eq!(
            (&container["readOnlyRootFilesystem"], &container["allowPrivilegeEscalation"]),
            (&json!(true), &json!(false))
        );
        for (_, pod) in pods(&answer["manifests"]) {
            assert_eq!(pod["automountServiceAccountToken"], false);
            // A Service named `stoker-…` would otherwise make variables that are taken for settings.
            assert_eq!(pod["enableServiceLinks"], false);
            // Kubernetes gives the process the time that it gives its calls, and some more.
            let variables = pod["containers"][0]["env"].as_array().unwrap();
            let grace = variables.iter().find(|variable| variable["name"] == "STOKER_DRAIN_GRACE").unwrap();
            let seconds = match grace["value"].as_str().unwrap() {
                "5m" => 300,
                text => text.strip_suffix('s').unwrap().parse().unwrap(),
            };
            assert!(pod["terminationGracePeriodSeconds"].as_u64().unwrap() >= seconds + 15, "{pod}");
        }
        let policies =
            answer["manifests"].as_array().unwrap().iter().filter(|one| one["kind"] == "NetworkPolicy");
        let policy = policies
            .clone()
            .find(|one| one["metadata"]["name"].as_str().unwrap().ends_with("-runner"))
            .unwrap();
        let calls = policy["spec"]["ingress"]
            .as_array()
            .unwrap()
            .iter()
            .find(|rule| rule["ports"][0]["port"] == "grpc")
            .unwrap();
        let labels = &calls["from"][0]["podSelector"]["matchLabels"];
        assert_eq!(labels["app.kubernetes.io/component"], "balancer");
    }
}

#[test]
fn prometheus_knows_whom_it_asks_and_functions_their_secrets() {
    let Some(answers) = rendered(&values()) else { return };
    let manifests = answers[2]["manifests"].as_array().unwrap();
    let monitors: Vec<_> = manifests.iter().filter(|one| one["kind"] == "ServiceMonitor").collect();
    assert_eq!(monitors.len(), 2);
    for monitor in monitors {
        let (endpoint, labels) =
            (&monitor["spec"]["endpoints"][0], &monitor["spec"]["selector"]["matchLabels"]);
        let (job, secret, host) = match labels["app.kubernetes.io/component"].as_str() {
            Some("balancer") => ("stoker-lb", "balancer-tls", "stoker-balancer"),
            _ => ("stoker-runner", "runner-tls", "stoker-runner"),
        };
        // Rules ask for jobs by these names; the token goes to nobody else than who has the fleet's certificate.
        assert_eq!(endpoint["relabelings"], json!([{"targetLabel": "job", "replacement": job}]));
        let tls = json!({"ca": {"secret": {"name": secret, "key": "ca.crt"}}, "serverName": host});
        assert_eq!((&endpoint["scheme"], &endpoint["tlsConfig"]), (&json!("https"), &tls));
        assert_eq!(endpoint["authorization"]["credentials"]["name"], "scrape");
    }
    let (_, pod) = pods(&answers[2]["manifests"]).find(|(name, _)| name.ends_with("-runner")).unwrap();
    let volumes = pod["volumes"].as_array().unwrap();
    let mut mounted = BTreeMap::new();
    for mount in pod["containers"][0]["volumeMounts"].as_array().unwrap() {
        let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]).unwrap();
        if let Some(place) = mount["mountPath"].as_str().unwrap().strip_prefix("/etc/stoker/secrets/") {
            mounted.insert(place, volume["secret"]["secretName"].as_str().unwrap());
        }
    }
    let should = [("shop/db", "shop-db"), ("shop/mail_key", "mail"), ("web/db", "web-db")];
    assert_eq!(mounted, BTreeMap::from(should));
}
