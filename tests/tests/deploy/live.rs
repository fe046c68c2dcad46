//! A real fleet under load, a real Prometheus that scrapes it, a collector that takes its spans: every query of every dashboard and alert is
//! asked, and what comes is looked at.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;
use stoker_core::error::Code;
use stoker_core::function::FunctionSpec;
use stoker_proto::v1;
use stoker_tests::calls::{Call, Door};
use stoker_tests::cluster::load::Work;
use stoker_tests::cluster::{Cluster, Plan};
use stoker_tests::collector::{Collector, service_graph};
use stoker_tests::dashboards::metrics::sections;
use stoker_tests::dashboards::{Source, all, draw};
use stoker_tests::deploy;
use stoker_tests::functions::{probe, shell};
use stoker_tests::prometheus::Prometheus;

/// What stands for Grafana's window of rates: longer than the whole load.
const WINDOW: &str = "5m";

/// What calls are about to be made: warm ones, cold ones, some that wait, that fail, that come too late, that are for later.
async fn work(cluster: &Cluster) {
    let clients = &cluster.balancers[0].clients;
    let load = cluster.load(Work::of("seen").clients(4));
    load.more(100).await;
    load.end().await;
    for door in Door::ALL {
        clients.call(door, Call::of("seen").body("x")).await.unwrap();
    }
    // More at once than there are slots.
    let load = cluster.load(Work::of("other").word("sleep:30").clients(12));
    load.more(40).await;
    load.end().await;
    clients.call(Door::Invoke, Call::of("once").body("x")).await.unwrap();
    clients.call(Door::Invoke, Call::of("fails")).await.unwrap_err();
    let error = clients.call(Door::Invoke, Call::of("nobody")).await.unwrap_err();
    assert_eq!(error.code, Code::NotFound);
    let submit = v1::SubmitRequest { function: "t/seen".to_owned(), ..Default::default() };
    let call_id = clients.calls().submit(submit).await.unwrap().into_inner().call_id;
    clients.calls().wait_call(v1::WaitCallRequest { call_id }).await.unwrap();
}

fn functions() -> [FunctionSpec; 4] {
    [probe("seen"), probe("other"), shell("once", "cat"), shell("fails", "exit 3")]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_dashboards_and_alerts_ask_for_is_there() {
    let Some(collector) = Collector::start() else { return };
    let later = tempfile::tempdir().unwrap();
    let plan = Plan::new(1, 2)
        .room(2)
        .set("TELEMETRY_ENDPOINT", &collector.endpoint)
        .set("LATER_QUEUE", later.path().to_str().unwrap());
    let Some(cluster) = plan.start(functions()).await else { return };
    let rules = deploy::path("compose/rules.yaml");
    let jobs = [
        ("stoker-lb", cluster.balancers.iter().map(|balancer| balancer.admin).collect()),
        ("stoker-runner", cluster.runners.iter().map(|runner| runner.admin).collect()),
    ];
    let clients = &cluster.balancers[0].clients;
    let Some(prometheus) = Prometheus::start(clients, &jobs, Some(&rules)).await else { return };
    // From nothing to something: what grows is seen to grow.
    prometheus.catch_up().await;
    work(&cluster).await;
    prometheus.catch_up().await;

    everything_is_shown(&prometheus).await;
    every_panel_has_something(&prometheus).await;
    alerts_are_understood(&prometheus).await;
    let traces = exemplars(&prometheus).await;

    // Who scrapes goes before those who are scraped.
    drop(prometheus);
    cluster.end().await;
    let spans = collector.received();
    let known: BTreeSet<&str> = spans.iter().map(|span| span.trace()).collect();
    for trace in &traces {
        assert!(known.contains(trace.as_str()), "an exemplar leads to {trace}, which nobody has");
    }
    // What Tempo would draw.
    let graph = service_graph(&spans);
    let calls =
        |from: &str, to: &str| graph.get(&(from.to_owned(), to.to_owned())).copied().unwrap_or_default();
    assert!(calls("stoker-lb", "stoker-runner") > 100, "{graph:?}");
    assert!(calls("stoker-runner", "t/seen") > 100 && calls("stoker-runner", "t/once") > 0, "{graph:?}");
}

/// Every metric that is defined is shown, but for those that say when they are.
async fn everything_is_shown(prometheus: &Prometheus) {
    let answer = prometheus.ask("label/__name__/values", &[]).await;
    let stored: BTreeSet<&str> = answer.as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let mut defined = BTreeSet::new();
    for about in sections().iter().flat_map(|section| &section.metrics) {
        for series in about.series() {
            assert!(
                stored.contains(series.as_str()) || about.help.contains("shown where"),
                "nobody shows {series}"
            );
            defined.insert(series);
        }
    }
    for name in stored.iter().filter(|name| name.starts_with("stoker_") || name.starts_with("process_")) {
        assert!(defined.contains(*name), "{name} is shown and not defined");
    }
    // As Prometheus itself understood them.
    let metadata = prometheus.ask("metadata", &[]).await;
    for about in sections().iter().flat_map(|section| &section.metrics) {
        // It files counters under their family.
        let entries = metadata.get(about.name).or_else(|| metadata.get(format!("{}_total", about.name)));
        if let Some(entry) = entries.map(|entries| &entries[0]) {
            assert_eq!((&entry["type"], &entry["help"]), (&about.kind.as_str().into(), &about.help.into()));
            assert_eq!(entry["unit"], about.unit().unwrap_or_default(), "{}", about.name);
        }
    }
}

async fn every_panel_has_something(prometheus: &Prometheus) {
    let (lb, runner) = (prometheus.instances("stoker-lb"), prometheus.instances("stoker-runner"));
    assert_eq!((lb.len(), runner.len()), (1, 2));
    // One that had calls.
    let busiest = prometheus.query("topk(1, sum by (instance) (stoker_runner_calls_total))").await;
    let instance = busiest[0].0["instance"].as_str().unwrap().to_owned();
    let filled = |text: &str| {
        text.replace("$__rate_interval", WINDOW)
            .replace("$function", "t/seen")
            .replace("$instance", &instance)
    };
    let mut asked = 0;
    for board in all() {
        for panel in board.panels().filter(|panel| panel.source() == Source::Metrics) {
            for query in &panel.queries {
                let place = format!("{}, {}: {}", board.title, panel.title, query.text);
                let series = prometheus.query(&filled(&query.text)).await;
                assert!(!series.is_empty() || !query.always, "{place}: nothing");
                asked += 1;
            }
        }
    }
    println!("{asked} queries of panels were answered");
    // And what it is, where that is known. Of series that are younger than the load, growth is not all of it: what they had at the first
    // scrape that saw them did not grow.
    for (query, least, most) in [
        ("sum(stoker_lb_function_calls_total{function=\"t/seen\",outcome=\"ok\"})", 100.0, 1e4),
        ("sum(stoker_lb_function_calls_total{function=\"t/fails\",outcome=\"function\"})", 0.5, 3.0),
        ("sum(stoker_lb_calls_total{code=\"NOT_FOUND\"})", 0.5, 3.0),
        ("sum(stoker_lb_later_ended_total{state=\"done\"})", 0.5, 3.0),
        // Of a function that is launched ahead of its first call there is none.
        ("sum(stoker_runner_cold_starts_total{cause=\"first\"})", 0.5, 40.0),
        ("sum(stoker_runner_cold_starts_total{cause=~\"busy|evicted|first\"})", 0.5, 1e3),
        ("sum(stoker_runner_wait_seconds_count)", 4.0, 1e3),
        ("sum(stoker_lb_placement_tries_count)", 130.0, 1e4),
        (
            "histogram_quantile(0.99, sum by (le) (rate(stoker_lb_call_duration_seconds_bucket[5m])))",
            1e-5,
            30.0,
        ),
        ("sum(stoker_runner_memory_bytes{kind=\"total\"}) / 1024 / 1024", 256.0, 256.0),
        ("sum(stoker_runner_slots{kind=\"total\"})", 4.0, 1e6),
        ("min(stoker_lb_runners{state=\"ready\"})", 2.0, 2.0),
        ("max(stoker_etcd_interrupted)", 0.0, 0.0),
        ("time() - min(stoker_etcd_last_answer_timestamp_seconds)", 0.0, 15.0),
        (
            "sum(stoker_runner_calls_in_flight) + sum(stoker_lb_calls_in_flight) + sum(stoker_lb_queue_length)",
            0.0,
            0.0,
        ),
        ("sum(stoker_lb_panics_total)", 0.0, 0.0),
    ] {
        let series = prometheus.query(query).await;
        let [(_, value)] = &series[..] else { panic!("{query}: {series:?}") };
        assert!((least..=most).contains(value), "{query} is {value}, not from {least} to {most}");
    }
    if std::env::var_os("STOKER_TEST_WRITE").is_some() {
        let directory = deploy::path("../docs/pictures");
        std::fs::create_dir_all(&directory).unwrap();
        for board in all() {
            let picture = draw::board(&board, prometheus, filled).await;
            std::fs::write(directory.join(format!("{}.svg", board.uid)), picture).unwrap();
        }
    }
}

/// Prometheus evaluates every rule, and none of them wakes anybody over a fleet that is well.
async fn alerts_are_understood(prometheus: &Prometheus) {
    let answer = prometheus.ask("rules", &[]).await;
    let rules = answer["groups"][0]["rules"].as_array().unwrap();
    assert!(rules.len() >= 17, "{}", rules.len());
    for rule in rules {
        assert_eq!(rule["health"], "ok", "{rule}");
        assert!(rule["state"] != "firing", "{rule}");
    }
}

/// The traces to which histograms lead.
async fn exemplars(prometheus: &Prometheus) -> BTreeSet<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let (start, end) = ((now - 300).to_string(), (now + 1).to_string());
    let mut traces = BTreeSet::new();
    for histogram in [
        "stoker_lb_call_duration_seconds_bucket",
        "stoker_lb_function_duration_seconds_bucket",
        "stoker_runner_execution_seconds_bucket",
        "stoker_runner_wait_seconds_bucket",
    ] {
        let parameters = [("query", histogram), ("start", &start), ("end", &end)];
        let answer = prometheus.ask("query_exemplars", &parameters).await;
        let found =
            answer.as_array().unwrap().iter().flat_map(|series| series["exemplars"].as_array().unwrap());
        let found: BTreeSet<String> =
            found.map(|exemplar| exemplar["labels"]["trace_id"].as_str().unwrap().to_owned()).collect();
        assert!(!found.is_empty(), "{histogram} leads nowhere");
        traces.extend(found);
    }
    traces
}
