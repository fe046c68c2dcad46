//! What others see of a cluster: one trace per call over all its processes, and numbers that dashboards and rules can use.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use stoker_core::error::Code;
use stoker_tests::calls::{Call, Door};
use stoker_tests::cluster::{Cluster, Plan};
use stoker_tests::collector::{Collector, Span, python};
use stoker_tests::deploy;
use stoker_tests::functions::{function, probe};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_trace_per_call_from_the_client_into_the_function() {
    let Some(collector) = Collector::start() else { return };
    let plan = Plan::new(1, 1).set("TELEMETRY_ENDPOINT", &collector.endpoint);
    let Some(cluster) = plan.start([probe("traced")]).await else { return };
    // What the function was given, by trace.
    let mut given: HashMap<String, String> = HashMap::new();
    for (n, door) in Door::ALL.into_iter().enumerate() {
        let trace = format!("0af7651916cd43dd8448eb211c803{n:03x}");
        let parent = format!("00-{trace}-b7ad6b7169203{n:03x}-01");
        let call = Call::of("traced").probe("report").trace(&parent);
        let report = cluster.balancers[0].clients.call(door, call).await.unwrap().json();
        let headers = report["headers"].as_array().unwrap();
        let header = headers
            .iter()
            .find(|header| header[0].as_str().is_some_and(|name| name.eq_ignore_ascii_case("traceparent")));
        let header = header.unwrap_or_else(|| panic!("{door:?}: no traceparent in {report:#}"));
        given.insert(trace, header[1].as_str().unwrap().to_owned());
    }
    // A caller that asks for no trace gets none.
    let unsampled = "00-0af7651916cd43dd8448eb211c80fff0-b7ad6b7169203331-00";
    let call = Call::of("traced").probe("report").trace(unsampled);
    let report = cluster.balancers[0].clients.call(Door::Invoke, call).await.unwrap();
    assert!(report.text().contains("0af7651916cd43dd8448eb211c80fff0"), "{}", report.text());
    // Servers that end have sent all they had.
    cluster.end().await;
    let spans = collector.received();
    assert!(spans.iter().all(|span| !span.trace().ends_with("fff0")), "a trace that nobody asked for");
    for (n, door) in Door::ALL.into_iter().enumerate() {
        let trace = format!("0af7651916cd43dd8448eb211c803{n:03x}");
        let of: Vec<&Span> = spans.iter().filter(|span| span.trace() == trace).collect();
        let client = format!("b7ad6b7169203{n:03x}");
        one_chain(door, &of, &client, &given[&trace]);
        // The first call found nothing warm, the others did.
        let launches = of.iter().filter(|span| span.name().contains("launch")).count();
        assert_eq!(launches > 0, n == 0, "{door:?}: {of:#?}");
    }
}

/// Client → balancer → offer → runner → execution → function, without a gap.
fn one_chain(door: Door, spans: &[&Span], client: &str, given: &str) {
    let ids: BTreeMap<&str, &&Span> = spans.iter().map(|span| (span.id(), span)).collect();
    assert_eq!(ids.len(), spans.len(), "{door:?}: two spans of one id: {spans:#?}");
    let of = |service: &str, kind: &str| -> Vec<&&Span> {
        spans.iter().filter(|span| span.service == service && span.kind() == kind).collect()
    };
    let servers = of("stoker-lb", "SPAN_KIND_SERVER");
    let [balancer] = servers[..] else { panic!("{door:?}: {spans:#?}") };
    assert_eq!(balancer.parent(), client, "{door:?}: {balancer:#?}");
    let servers = of("stoker-runner", "SPAN_KIND_SERVER");
    let [runner] = servers[..] else { panic!("{door:?}: {spans:#?}") };
    // Tempo draws an edge between services from a CLIENT span and the SERVER span that is its child.
    let offer = ids.get(runner.parent()).unwrap_or_else(|| panic!("{door:?}: {spans:#?}"));
    assert_eq!((offer.service.as_str(), offer.kind()), ("stoker-lb", "SPAN_KIND_CLIENT"), "{door:?}");
    let is_below = |span: &Span, above: &Span| {
        let mut at = span;
        while let Some(parent) = ids.get(at.parent()) {
            if parent.id() == above.id() {
                return true;
            }
            at = parent;
        }
        false
    };
    assert!(is_below(offer, balancer), "{door:?}: {spans:#?}");
    let parts: Vec<&str> = given.split('-').collect();
    assert_eq!(parts[1], balancer.trace(), "{door:?}: the function got another trace: {given}");
    let execution = ids.get(parts[2]).unwrap_or_else(|| panic!("{door:?}: {given} is no span of {spans:#?}"));
    assert_eq!(execution.service, "stoker-runner", "{door:?}");
    assert!(is_below(execution, runner), "{door:?}: {spans:#?}");
    assert!(execution.lines.iter().any(|line| line.starts_with("faas.")), "{door:?}: {execution:#?}");
    for span in spans {
        assert!(
            span.id() == balancer.id() || is_below(span, balancer),
            "{door:?}: {span:#?} hangs in the air"
        );
        assert_ne!(span.field("Status code"), "STATUS_CODE_ERROR", "{door:?}: {span:#?}");
    }
}

/// What an independent parser reads from a server's admin port.
async fn scrape(cluster: &Cluster, admin: std::net::SocketAddr) -> Option<Value> {
    let python = python()?;
    let page = cluster.page(admin, "/metrics").await;
    assert_eq!(page.status, 200, "{page:?}");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/read_scrape.py");
    let mut child = Command::new(python)
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&page.body).unwrap();
    let out = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}\n{}", String::from_utf8_lossy(&page.body));
    Some(serde_json::from_slice(&out.stdout).unwrap())
}

/// Names of series as queries use them. A family without series yet still promises them.
fn names(scrape: &Value) -> BTreeSet<String> {
    let series = scrape["series"].as_object().unwrap().keys();
    let mut names: BTreeSet<String> =
        series.map(|series| series.split('{').next().unwrap_or_default().to_owned()).collect();
    for (family, kind) in scrape["families"].as_object().unwrap() {
        let suffixes: &[&str] = match kind.as_str() {
            Some("counter") => &["_total"],
            Some("histogram") => &["_bucket", "_count", "_sum"],
            _ => &[""],
        };
        names.extend(suffixes.iter().map(|suffix| format!("{family}{suffix}")));
    }
    names
}

fn value(scrape: &Value, series: &str) -> f64 {
    scrape["series"][series].as_f64().unwrap_or_else(|| panic!("{series} in {:#}", scrape["series"]))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_are_right_and_everything_that_deploy_uses_is_there() {
    if python().is_none() {
        println!("left out: STOKER_TEST_TOOLS names no Python with prometheus_client");
        return;
    }
    // Somewhere to send traces to, so that their numbers are shown; nobody listens there.
    let plan = Plan::new(1, 1).set("TELEMETRY_ENDPOINT", "http://127.0.0.1:9");
    let fails = function("fails", &["sh", "-c", "exit 3"]);
    let Some(cluster) = plan.start([probe("counted"), fails]).await else { return };
    let clients = &cluster.balancers[0].clients;
    for door in Door::ALL.into_iter().cycle().take(20) {
        clients.call(door, Call::of("counted").body("x")).await.unwrap();
    }
    let error = clients.call(Door::Invoke, Call::of("nobody")).await.unwrap_err();
    assert_eq!(error.code, Code::NotFound);
    clients.call(Door::Invoke, Call::of("fails")).await.unwrap_err();

    let balancer = scrape(&cluster, cluster.balancers[0].admin).await.unwrap();
    let runner = scrape(&cluster, cluster.runners[0].admin).await.unwrap();
    // Calls are counted once each, by door and by outcome.
    let sum = |scrape: &Value, name: &str, label: &str| -> f64 {
        let series = scrape["series"].as_object().unwrap().iter();
        series
            .filter(|(series, _)| series.starts_with(&format!("{name}{{")) && series.contains(label))
            .map(|(_, value)| value.as_f64().unwrap())
            .sum()
    };
    let is = |what: &str, seen: f64, expected: f64| {
        assert!((seen - expected).abs() < 1e-9, "{what}: {seen}, not {expected}\n{balancer:#}\n{runner:#}");
    };
    is("answered by the balancer", sum(&balancer, "stoker_lb_calls_total", "code=OK"), 20.0);
    is("refused by the balancer", sum(&balancer, "stoker_lb_calls_total", "code=NOT_FOUND"), 1.0);
    is("timed by the balancer", sum(&balancer, "stoker_lb_call_duration_seconds_count", ""), 22.0);
    is("in flight", value(&balancer, "stoker_lb_calls_in_flight{}"), 0.0);
    is("queued", value(&balancer, "stoker_lb_queue_length{}"), 0.0);
    is("runners", value(&balancer, "stoker_lb_runners{state=ready}"), 1.0);
    is(
        "answered by the runner",
        sum(&runner, "stoker_runner_calls_total", "code=OK,function=t/counted"),
        20.0,
    );
    is("cold starts", sum(&runner, "stoker_runner_cold_starts_total", "cause=first,function=t/counted"), 1.0);
    is("memory", value(&runner, "stoker_runner_memory_bytes{kind=total}"), f64::from(512 << 20));
    for scrape in [&balancer, &runner] {
        assert!(value(scrape, "process_resident_memory_bytes{}") > 0.0);
    }

    // Every name in a panel or a rule is one of theirs, or of those who have certificates.
    let mut known: BTreeSet<String> = names(&balancer).union(&names(&runner)).cloned().collect();
    known.extend(stoker_runtime::tls::LISTED.iter().map(|about| about.name.to_owned()));
    for (place, query) in deploy::queries() {
        for name in deploy::metrics(&query) {
            assert!(known.contains(name), "{place}: {name} is shown by no server; there are {known:#?}");
        }
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evictions_are_counted() {
    if python().is_none() {
        println!("left out: STOKER_TEST_TOOLS names no Python with prometheus_client");
        return;
    }
    let functions = [probe("first"), probe("second")];
    let Some(cluster) = Plan::new(1, 1).room(1).start(functions).await else { return };
    // Room for one container: the second function's takes the place of the first one's.
    let clients = &cluster.balancers[0].clients;
    for function in ["first", "second", "first"] {
        clients.probe(function, "echo").await;
    }
    let runner = scrape(&cluster, cluster.runners[0].admin).await.unwrap();
    assert!(
        value(&runner, "stoker_runner_containers_ended_total{why=evicted}") >= 2.0,
        "{:#}",
        runner["series"]
    );
    cluster.end().await;
}
