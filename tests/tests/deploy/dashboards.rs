//! Dashboards and the page of metrics: as the code makes them, in languages that others can read, and of nothing that does not exist.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use stoker_runtime::telemetry::names;
use stoker_tests::dashboards::metrics::{has_label, page, sections, series};
use stoker_tests::dashboards::{Look, Source, all};
use stoker_tests::deploy;

use super::{checked, is_content};

/// Compares a file with what it should be, or writes it.
fn is(path: &Path, should: &str) {
    if std::env::var_os("STOKER_TEST_WRITE").is_some() {
        std::fs::write(path, should).unwrap();
        return;
    }
    let is = std::fs::read_to_string(path).unwrap_or_default();
    let differs = is.lines().zip(should.lines()).find(|(is, should)| is != should);
    assert!(
        is == should,
        "{} is stale: run this test with STOKER_TEST_WRITE=1\n{differs:#?}",
        path.display()
    );
}

#[test]
fn dashboards_are_what_the_definitions_make_of_them() {
    let directory = deploy::path("compose/grafana/dashboards");
    for board in all() {
        is(&directory.join(format!("{}.json", board.uid)), &board.json());
    }
    let names: BTreeSet<String> = all().iter().map(|board| format!("{}.json", board.uid)).collect();
    let there = std::fs::read_dir(&directory).unwrap().flatten();
    let there: BTreeSet<String> = there
        .map(|entry| entry.file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".json"))
        .collect();
    assert_eq!(there, names, "files that nothing makes");
}

#[test]
fn the_page_of_metrics_is_what_the_definitions_say() {
    is(&deploy::path("../docs/metrics.md"), &page());
}

#[test]
fn metrics_are_called_as_prometheus_wants_it() {
    let mut names = BTreeSet::new();
    for about in sections().iter().flat_map(|section| &section.metrics) {
        let name = about.name;
        assert!(names.insert(name), "{name} is defined twice");
        assert!(name.starts_with("stoker_") || name.starts_with("process_"), "{name}");
        assert!(name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'), "{name}");
        assert!(!["_total", "_count", "_sum", "_bucket"].iter().any(|end| name.ends_with(end)), "{name}");
        assert!(about.help.len() > 8 && !about.help.ends_with('.'), "{name}: {}", about.help);
        assert!(about.labels.iter().all(|(label, values)| !label.is_empty() && !values.is_empty()), "{name}");
    }
}

/// Every selector of a query: a series, and the labels that it is asked for.
fn selectors(query: &str) -> Vec<(String, Vec<String>)> {
    let known = series();
    let mut found = Vec::new();
    for name in deploy::metrics(query) {
        let after = query.split(name).nth(1).unwrap_or_default();
        let inside = after.strip_prefix('{').and_then(|rest| rest.split('}').next()).unwrap_or_default();
        let labels = inside.split("\",").filter_map(|part| part.split(['=', '!']).next());
        let labels = labels.map(|label| label.trim().to_owned()).filter(|label| !label.is_empty());
        assert!(known.iter().any(|known| known == name), "no program shows {name}: {query}");
        found.push((name.to_owned(), labels.collect()));
    }
    found
}

#[test]
fn queries_name_metrics_and_labels_that_exist() {
    for (place, query) in deploy::queries() {
        let selectors = selectors(&query);
        for (series, labels) in &selectors {
            for label in labels {
                assert!(has_label(series, label), "{place}: {series} has no label {label}");
            }
        }
        for grouped in query.split(" by (").skip(1).chain(query.split(" on (").skip(1)) {
            let (labels, _) = grouped.split_once(')').unwrap();
            for label in labels.split(',').map(str::trim) {
                let known = selectors.iter().any(|(series, _)| has_label(series, label));
                assert!(known, "{place}: nothing in it has a label {label}: {query}");
            }
        }
    }
}

#[test]
fn every_query_can_be_parsed() {
    // promtool reads queries only as rules. What Grafana puts in for its variables is put in here.
    let rules: Vec<Value> = deploy::queries()
        .into_iter()
        .enumerate()
        .map(|(n, (_, query))| json!({"record": format!("query:{n}"), "expr": query.replace("$__rate_interval", "1m")}))
        .collect();
    let file = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
    // JSON is YAML.
    serde_json::to_writer(&file, &json!({"groups": [{"name": "queries", "rules": rules}]})).unwrap();
    if let Some(output) = checked(Command::new("promtool").args(["check", "rules"]).arg(file.path())) {
        is_content(&output);
    }
    let broken = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
    let rules = json!([{"record": "query:broken", "expr": "sum(rate(stoker_lb_calls_total[1m])"}]);
    serde_json::to_writer(&broken, &json!({"groups": [{"name": "queries", "rules": rules}]})).unwrap();
    if let Some(output) = checked(Command::new("promtool").args(["check", "rules"]).arg(broken.path())) {
        assert!(!output.status.success(), "the checker takes anything");
    }
}

/// What is asked of traces, and where.
fn trace_queries() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for board in all() {
        for panel in board.panels().filter(|panel| panel.look == Look::Traces) {
            let place = format!("{}, {}", board.title, panel.title);
            found.extend(panel.queries.iter().map(|query| (place.clone(), query.text.clone())));
        }
    }
    assert!(found.len() >= 7, "{found:?}");
    found
}

#[test]
fn queries_of_traces_are_of_their_language() {
    let kit = std::env::var_os("STOKER_TEST_KITS").map(|kits| PathBuf::from(kits).join("traceql"));
    let Some(kit) = kit.filter(|kit| kit.join("node_modules/@grafana/lezer-traceql").is_dir()) else {
        println!("left out: STOKER_TEST_KITS has no grammar of TraceQL");
        return;
    };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/src/check_traceql.mjs");
    let check = |queries: &[&str]| -> Vec<bool> {
        let mut node = Command::new("node")
            .arg(script)
            .arg(kit.join("node_modules/@grafana/lezer-traceql"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        node.stdin.take().unwrap().write_all(json!(queries).to_string().as_bytes()).unwrap();
        let output = node.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let ours = trace_queries();
    let texts: Vec<&str> = ours.iter().map(|(_, text)| text.as_str()).collect();
    for ((place, text), right) in ours.iter().zip(check(&texts)) {
        assert!(right, "{place}: {text}");
    }
    let wrong = ["{ span.faas.name == }", "{ name = \"queue\" && }", "span.x"];
    assert_eq!(check(&wrong), [false; 3], "the checker takes anything");
}

#[test]
fn queries_of_traces_name_what_spans_have() {
    let has = |names: &[names::Described], name: &str| names.iter().any(|described| described.name == name);
    for (place, text) in trace_queries() {
        let words = text.split([' ', '{', '}', '(', ')']).filter(|word| !word.is_empty());
        for attribute in words.filter_map(|word| word.strip_prefix("span.")) {
            assert!(has(names::ATTRIBUTES, attribute), "{place}: no span has {attribute}");
        }
        for name in text.split("name = \"").skip(1).filter_map(|rest| rest.split('"').next()) {
            let name = name.trim();
            assert!(has(names::SPANS, name) || name == "$function", "{place}: no span is called {name}");
        }
    }
}

/// The data sources that Grafana is given.
fn sources() -> Vec<Value> {
    let file = deploy::yaml(&deploy::path("compose/grafana/provisioning/datasources/stoker.yaml"));
    file["datasources"].as_array().unwrap().clone()
}

#[test]
fn panels_and_their_data_sources_fit_together() {
    let sources = sources();
    for source in Source::ALL {
        assert!(sources.iter().any(|given| given["type"] == source.kind()), "there is no {}", source.kind());
    }
    for board in all() {
        let dashboard: Value = serde_json::from_str(&board.json()).unwrap();
        let panels = dashboard["panels"].as_array().unwrap();
        let mut ids: Vec<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), panels.len(), "{}: two panels have one id", board.title);
        let variables = dashboard["templating"]["list"].as_array().unwrap();
        let mut covered = BTreeSet::new();
        for panel in panels {
            let (title, place) = (&panel["title"], |key: &str| panel["gridPos"][key].as_u64().unwrap());
            assert!(place("x") + place("w") <= 24, "{title} is beside the page");
            for cell in (place("y")..place("y") + place("h"))
                .flat_map(|y| (place("x")..place("x") + place("w")).map(move |x| (x, y)))
            {
                assert!(covered.insert(cell), "{}: {title} covers another", board.title);
            }
            if panel["type"] == "row" {
                continue;
            }
            assert!(!panel["targets"].as_array().unwrap().is_empty(), "{title} asks for nothing");
            let uid = panel["datasource"]["uid"].as_str().unwrap();
            let chosen = |variable: &&Value| uid == format!("${{{}}}", variable["name"].as_str().unwrap());
            let variable =
                variables.iter().find(chosen).unwrap_or_else(|| panic!("{title}: nothing chooses {uid}"));
            assert_eq!(variable["query"], panel["datasource"]["type"], "{title}");
        }
    }
}

/// From metrics to traces, from traces to metrics and logs, from logs to traces: each by something that is there.
#[test]
fn what_is_seen_leads_on() {
    let sources = sources();
    let of = |kind: &str| sources.iter().find(|source| source["type"] == kind).unwrap();
    let (metrics, traces, logs) = (of("prometheus"), of("tempo"), of("loki"));
    let exemplars = &metrics["jsonData"]["exemplarTraceIdDestinations"][0];
    assert_eq!((&exemplars["name"], &exemplars["datasourceUid"]), (&json!("trace_id"), &traces["uid"]));
    assert_eq!(logs["jsonData"]["derivedFields"][0]["datasourceUid"], traces["uid"]);
    let to = &traces["jsonData"];
    assert_eq!(to["serviceMap"]["datasourceUid"], metrics["uid"]);
    assert_eq!(to["tracesToLogsV2"]["datasourceUid"], logs["uid"]);
    assert_eq!(to["tracesToMetrics"]["datasourceUid"], metrics["uid"]);
    // What a span hands to those queries is an attribute that it has.
    let has = |name: &str| names::ATTRIBUTES.iter().any(|described| described.name == name);
    for way in ["tracesToMetrics", "tracesToLogsV2"] {
        for tag in to[way]["tags"].as_array().unwrap() {
            let key = tag["key"].as_str().unwrap();
            assert!(has(key) || key.starts_with("service."), "{way}: no span has {key}");
        }
    }
    for query in to["tracesToMetrics"]["queries"].as_array().unwrap() {
        let text = query["query"].as_str().unwrap();
        assert!(!selectors(text).is_empty(), "{text}");
    }
}

/// Their numbers are of one day; what they show is what there is.
#[test]
fn pictures_are_of_these_dashboards() {
    let page = deploy::text(&deploy::path("../docs/dashboards.md"));
    for board in all() {
        let name = format!("pictures/{}.svg", board.uid);
        assert!(page.contains(&format!("({name})")), "docs/dashboards.md has no picture of {}", board.title);
        let picture = deploy::text(&deploy::path("../docs").join(&name));
        for panel in board.panels() {
            let title = panel.title.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
            assert!(
                picture.contains(&format!(">{title}</text>")),
                "{name} has no {:?}: run what_dashboards_and_alerts_ask_for_is_there with STOKER_TEST_WRITE=1",
                panel.title
            );
        }
    }
}

#[test]
fn dashboards_are_of_the_types_that_grafana_publishes() {
    let kit = std::env::var_os("STOKER_TEST_KITS").map(|kits| PathBuf::from(kits).join("grafana"));
    let compiler = |kit: &Path| kit.join("node_modules/.bin/tsc");
    let Some(kit) = kit.filter(|kit| compiler(kit).is_file()) else {
        println!("left out: STOKER_TEST_KITS has no Grafana schema");
        return;
    };
    let check = |dashboards: &[String]| {
        // Beside the types, where the compiler looks for them.
        let directory = tempfile::tempdir_in(&kit).unwrap();
        let mut program =
            "import { type Dashboard, MappingType, SpecialValueMatch, ThresholdsMode } from '@grafana/schema';\n"
                .to_owned();
        for (n, dashboard) in dashboards.iter().enumerate() {
            program += &format!("export const dashboard{n} = {} satisfies Dashboard;\n", dashboard.trim());
        }
        // What is one of a few words is none to the compiler before it is called by its name.
        for (word, name) in [
            (r#""type": "special""#, r#""type": MappingType.SpecialValue"#),
            (r#""match": "null+nan""#, r#""match": SpecialValueMatch.NullAndNan"#),
            (r#""mode": "absolute""#, r#""mode": ThresholdsMode.Absolute"#),
        ] {
            program = program.replace(word, name);
        }
        std::fs::write(directory.path().join("check.ts"), program).unwrap();
        let options =
            ["--noEmit", "--strict", "--skipLibCheck", "--module", "esnext", "--moduleResolution", "bundler"];
        let mut command = Command::new(compiler(&kit));
        checked(command.args(options).args(["--target", "es2022", "check.ts"]).current_dir(directory.path()))
    };
    let boards = all().map(|board| board.json());
    if let Some(output) = check(&boards) {
        is_content(&output);
    }
    let mut wrong: Value = serde_json::from_str(&boards[0]).unwrap();
    wrong["schemaVersion"] = json!("forty-one");
    if let Some(output) = check(&[wrong.to_string()]) {
        assert!(!output.status.success(), "the checker takes anything");
    }
}
