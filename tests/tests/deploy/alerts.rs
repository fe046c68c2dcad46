//! Alerts: each fires when it should and not before, and has a page that says what to do.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::{Value, json};
use stoker_tests::deploy;

use super::{checked, is_content};

/// When an alert must be quiet, and when it must have fired with these labels. Series have a value every 15 s.
struct Case {
    alert: &'static str,
    series: &'static [(&'static str, &'static str)],
    quiet: &'static str,
    fires: &'static str,
    labels: &'static [(&'static str, &'static str)],
}

const LB: (&str, &str) = ("job", "stoker-lb");
const B1: (&str, &str) = ("instance", "b1");

const CASES: [Case; 20] = [
    Case {
        alert: "StokerDown",
        series: &[
            (r#"up{job="stoker-lb",instance="b1"}"#, "1x8 0x40"),
            (r#"up{job="stoker-runner",instance="r1"}"#, "1x50"),
            (r#"up{job="node",instance="b1"}"#, "0x50"),
        ],
        quiet: "2m30s",
        fires: "4m",
        labels: &[LB, B1],
    },
    // Those that are gone altogether, or are scraped as another job than rules and dashboards ask for.
    Case {
        alert: "StokerDown",
        series: &[
            (r#"up{job="stoker-lb",instance="b1"}"#, "1x50"),
            (r#"up{job="stoker-runner",instance="r1"}"#, "1x8 _x40"),
        ],
        quiet: "2m",
        fires: "10m",
        labels: &[("job", "stoker-runner")],
    },
    Case {
        alert: "StokerNoRunner",
        series: &[
            (r#"stoker_lb_runners{state="ready",instance="b1"}"#, "2x8 0x40"),
            (r#"stoker_lb_runners{state="ready",instance="b2"}"#, "2x50"),
            (r#"stoker_lb_runners{state="lost",instance="b1"}"#, "0x8 2x40"),
        ],
        quiet: "2m",
        fires: "3m",
        labels: &[B1],
    },
    Case {
        alert: "StokerPlatformErrors",
        series: &[
            (r#"stoker_lb_function_calls_total{outcome="ok"}"#, "0+100x200"),
            (r#"stoker_lb_function_calls_total{outcome="function"}"#, "0+50x200"),
            (r#"stoker_lb_function_calls_total{outcome="platform"}"#, "0x40 0+5x160"),
        ],
        quiet: "10m",
        fires: "25m",
        labels: &[],
    },
    Case {
        alert: "StokerFull",
        series: &[
            (r#"stoker_lb_calls_total{code="OK"}"#, "0+100x200"),
            (r#"stoker_lb_calls_total{code="OVERLOADED"}"#, "0x20 0+1x180"),
        ],
        quiet: "12m",
        fires: "30m",
        labels: &[],
    },
    Case {
        alert: "StokerQueueOld",
        series: &[
            (r#"stoker_lb_queue_oldest_seconds{instance="b1"}"#, "1x8 30x60"),
            (r#"stoker_lb_queue_oldest_seconds{instance="b2"}"#, "0 30 0 30 0 30 0x60"),
        ],
        quiet: "5m",
        fires: "8m",
        labels: &[B1],
    },
    Case {
        alert: "StokerColdStarts",
        series: &[
            ("stoker_runner_calls_total", "0+100x400"),
            (r#"stoker_runner_cold_starts_total{cause="once"}"#, "0+90x400"),
            (r#"stoker_runner_cold_starts_total{cause="expired"}"#, "0x120 0+40x280"),
        ],
        quiet: "35m",
        fires: "1h35m",
        labels: &[],
    },
    Case {
        alert: "StokerLaunchesFail",
        series: &[
            (r#"stoker_runner_launch_failures_total{blame="platform",instance="r1"}"#, "0x8 0+1x60"),
            (r#"stoker_runner_launch_failures_total{blame="function",instance="r2"}"#, "0+1x68"),
        ],
        quiet: "4m",
        fires: "12m",
        labels: &[("instance", "r1")],
    },
    Case {
        alert: "StokerRunnersLost",
        series: &[
            (r#"stoker_lb_offers_total{result="finished"}"#, "0+100x80"),
            (r#"stoker_lb_offers_total{result="lost"}"#, "0x8 0+1x72"),
        ],
        quiet: "4m",
        fires: "12m",
        labels: &[],
    },
    Case {
        alert: "StokerEtcdAway",
        series: &[
            (r#"stoker_etcd_interrupted{part="fleet",job="stoker-lb",instance="b1"}"#, "0x8 1x40"),
            (r#"stoker_etcd_interrupted{part="fleet",job="stoker-lb",instance="b2"}"#, "0x8 1 0x40"),
        ],
        quiet: "2m30s",
        fires: "5m",
        labels: &[LB, B1, ("part", "fleet")],
    },
    Case {
        alert: "StokerEtcdBehind",
        series: &[
            (r#"stoker_etcd_revision{part="fleet",job="stoker-lb",instance="b1"}"#, "10+1x20 30x260"),
            // Told only now and then where etcd is.
            (
                r#"stoker_etcd_revision{part="fleet",job="stoker-lb",instance="b2"}"#,
                "10x39 50x40 90x40 130x40 170x40 210x80",
            ),
            (r#"stoker_etcd_revision{part="fleet",job="stoker-lb",instance="b3"}"#, "10+1x280"),
            // Has not been looked at for long enough.
            (r#"stoker_etcd_revision{part="fleet",job="stoker-lb",instance="b4"}"#, "_x100 10x180"),
        ],
        quiet: "30m",
        fires: "45m",
        labels: &[LB, B1, ("part", "fleet")],
    },
    Case {
        alert: "StokerFewRunners",
        series: &[
            (r#"stoker_lb_zone_runners{zone="a",instance="b1"}"#, "2x100"),
            (r#"stoker_lb_zone_desired_runners{zone="a",instance="b1"}"#, "2x8 3x92"),
            (r#"stoker_lb_zone_runners{zone="b",instance="b1"}"#, "2x100"),
            (r#"stoker_lb_zone_desired_runners{zone="b",instance="b1"}"#, "2x100"),
        ],
        quiet: "10m",
        fires: "20m",
        labels: &[("zone", "a")],
    },
    Case {
        alert: "StokerLaterOld",
        series: &[("stoker_lb_later_oldest_seconds", "0x8 400x80")],
        quiet: "10m",
        fires: "14m",
        labels: &[],
    },
    Case {
        alert: "StokerLaterDead",
        series: &[
            (r#"stoker_lb_later_ended_total{state="done"}"#, "0+1x40"),
            (r#"stoker_lb_later_ended_total{state="dead"}"#, "0x8 1x32"),
        ],
        quiet: "1m",
        fires: "4m",
        labels: &[],
    },
    Case {
        alert: "StokerPanics",
        series: &[
            (r#"stoker_lb_panics_total{instance="b1"}"#, "0x8 1x32"),
            (r#"stoker_lb_panics_total{instance="b2"}"#, "3x40"),
        ],
        quiet: "1m",
        fires: "4m",
        labels: &[B1],
    },
    Case {
        alert: "StokerSpansDropped",
        series: &[
            (r#"stoker_telemetry_spans_total{outcome="sent",job="stoker-lb",instance="b1"}"#, "0+9x200"),
            (
                r#"stoker_telemetry_spans_total{outcome="dropped",job="stoker-lb",instance="b1"}"#,
                "0x8 0+1x192",
            ),
        ],
        quiet: "20m",
        fires: "45m",
        labels: &[LB, B1],
    },
    Case {
        alert: "StokerLogsDropped",
        series: &[(r#"stoker_log_lines_dropped_total{job="stoker-lb",instance="b1"}"#, "0x8 0+1x192")],
        quiet: "8m",
        fires: "20m",
        labels: &[LB, B1],
    },
    Case {
        alert: "StokerCertificateEnds",
        series: &[
            // At first 23 days are left, then less than 6 of 40.
            (
                r#"stoker_tls_certificate_not_after_timestamp_seconds{job="stoker-lb",instance="b1"}"#,
                "2000000x8 500000x60",
            ),
            (
                r#"stoker_tls_certificate_not_before_timestamp_seconds{job="stoker-lb",instance="b1"}"#,
                "-3000000x68",
            ),
            // Renewed every hour.
            (
                r#"stoker_tls_certificate_not_after_timestamp_seconds{job="stoker-lb",instance="b2"}"#,
                "3600x68",
            ),
            (r#"stoker_tls_certificate_not_before_timestamp_seconds{job="stoker-lb",instance="b2"}"#, "0x68"),
        ],
        quiet: "11m",
        fires: "14m",
        labels: &[LB, B1],
    },
    Case {
        alert: "StokerFilesShort",
        series: &[
            (r#"process_open_fds{job="stoker-lb",instance="b1"}"#, "100x8 900x60"),
            (r#"process_max_fds{job="stoker-lb",instance="b1"}"#, "1000x68"),
            (r#"process_open_fds{job="node",instance="b1"}"#, "900x68"),
            (r#"process_max_fds{job="node",instance="b1"}"#, "1000x68"),
        ],
        quiet: "6m",
        fires: "8m",
        labels: &[LB, B1],
    },
    Case {
        alert: "StokerConnectionsFull",
        series: &[
            (r#"stoker_lb_connections_failed_total{why="full",job="stoker-lb",instance="b1"}"#, "0x8 0+1x60"),
            (r#"stoker_lb_connections_failed_total{why="silent",job="stoker-lb",instance="b2"}"#, "0+1x68"),
            (r#"stoker_lb_connections_failed_total{why="tls",job="stoker-lb",instance="b2"}"#, "0+1x68"),
        ],
        quiet: "6m",
        fires: "10m",
        labels: &[LB, B1],
    },
];

/// The rules, without what is for people.
fn rules() -> Value {
    let mut rules = deploy::yaml(&deploy::path("compose/rules.yaml"));
    for group in rules["groups"].as_array_mut().unwrap() {
        for rule in group["rules"].as_array_mut().unwrap() {
            rule.as_object_mut().unwrap().remove("annotations");
        }
    }
    rules
}

fn alerts() -> Vec<Value> {
    let rules = deploy::yaml(&deploy::path("compose/rules.yaml"));
    let groups = rules["groups"].as_array().unwrap();
    groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

#[test]
fn each_fires_when_it_should_and_not_before() {
    let alerts = alerts();
    let names: BTreeSet<&str> = alerts.iter().filter_map(|alert| alert["alert"].as_str()).collect();
    assert_eq!(names, CASES.iter().map(|case| case.alert).collect::<BTreeSet<_>>());
    let directory = tempfile::tempdir().unwrap();
    // JSON is YAML.
    std::fs::write(directory.path().join("rules.yaml"), rules().to_string()).unwrap();
    let cases: Vec<Value> = CASES
        .iter()
        .map(|case| {
            let rule = alerts.iter().find(|alert| alert["alert"] == case.alert).unwrap();
            let mut labels = json!({"severity": rule["labels"]["severity"]});
            for (name, value) in case.labels {
                labels[*name] = json!(value);
            }
            let series = |(series, values): &(&str, &str)| json!({"series": series, "values": values});
            let at = |time: &str, alerts: Value| json!({"eval_time": time, "alertname": case.alert, "exp_alerts": alerts});
            json!({
                "interval": "15s",
                "input_series": case.series.iter().map(series).collect::<Vec<_>>(),
                "alert_rule_test": [at(case.quiet, json!([])), at(case.fires, json!([{"exp_labels": labels}]))],
            })
        })
        .collect();
    let tests = json!({"rule_files": ["rules.yaml"], "evaluation_interval": "15s", "tests": cases});
    let file = directory.path().join("tests.yaml");
    std::fs::write(&file, tests.to_string()).unwrap();
    if let Some(output) = checked(Command::new("promtool").args(["test", "rules"]).arg(file)) {
        is_content(&output);
    }
}

#[test]
fn each_has_a_page_and_each_page_an_alert() {
    let pages = deploy::path("../docs/operations");
    let mut wanted = BTreeSet::from(["README.md".to_owned()]);
    let index = deploy::text(&pages.join("README.md"));
    for alert in alerts() {
        let name = alert["alert"].as_str().unwrap();
        let page = format!("{name}.md");
        let url = alert["annotations"]["runbook_url"].as_str().unwrap_or_default();
        assert!(url.ends_with(&format!("/docs/operations/{page}")), "{name} leads to {url}");
        assert!(
            !alert["annotations"]["summary"].as_str().unwrap_or_default().is_empty(),
            "{name} says nothing"
        );
        let severity = alert["labels"]["severity"].as_str().unwrap_or_default();
        assert!(["page", "ticket"].contains(&severity), "{name}: {severity}");
        let text = deploy::text(&pages.join(&page));
        assert!(text.starts_with(&format!("# {name}\n")), "{page} is about something else");
        for part in ["**Who notices.**", "**Look**", "**Do**"] {
            assert!(text.contains(part), "{page} has no {part}");
        }
        let row = format!("| [{name}]({page}) | {severity} |");
        assert!(index.contains(&row), "the index of pages has no line {row}");
        wanted.insert(page);
    }
    let there = std::fs::read_dir(&pages).unwrap().flatten();
    let there: BTreeSet<String> = there.map(|entry| entry.file_name().into_string().unwrap()).collect();
    assert_eq!(there, wanted, "pages of no alert");
}
