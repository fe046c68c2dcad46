//! What a collector receives of calls: it is a real OTLP server, with the messages that OpenTelemetry publishes.

use opentelemetry_proto::tonic::collector::trace::v1 as collector;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use stoker_runtime::metrics::Metrics;
use stoker_runtime::telemetry::{Config as Sending, Keep, Telemetry, names};

use crate::stage::*;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

struct Collector(mpsc::Sender<Span>);

#[tonic::async_trait]
impl collector::trace_service_server::TraceService for Collector {
    async fn export(
        &self,
        request: Request<collector::ExportTraceServiceRequest>,
    ) -> Result<Response<collector::ExportTraceServiceResponse>, Status> {
        let groups = request.into_inner().resource_spans.into_iter();
        groups.flat_map(|of| of.scope_spans).flat_map(|of| of.spans).for_each(|span| {
            // Room for more than any test makes; fails otherwise when the test is over.
            self.0.try_send(span).ok();
        });
        Ok(Response::new(collector::ExportTraceServiceResponse::default()))
    }
}

/// A balancer whose spans go to a collector.
struct Traced {
    stage: Stage,
    telemetry: Telemetry,
    metrics: Metrics,
    spans: mpsc::Receiver<Span>,
}

async fn traced(config: Config, plays: Vec<Play>) -> Traced {
    traced_keeping(Keep::default(), config, plays).await
}

/// The same, where some calls are sent though nobody samples them.
async fn traced_keeping(keep: Keep, config: Config, plays: Vec<Play>) -> Traced {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    let (send, spans) = mpsc::channel(1000);
    let service = collector::trace_service_server::TraceServiceServer::new(Collector(send));
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    let telemetry = Telemetry::start(&Sending {
        endpoint: Some(endpoint),
        logs: false,
        timeout: Duration::from_secs(30),
        keep,
        resource: [("service.name".to_owned(), "stoker-lb".to_owned())].into(),
        ..Sending::default()
    })
    .expect("it starts");
    let metrics = Metrics::default();
    let config = Config { tracer: telemetry.tracer(), metrics: metrics.clone(), ..config };
    Traced { stage: stage(config, plays).await, telemetry, metrics, spans }
}

impl Traced {
    /// Ends the balancer, and gives what the collector received.
    async fn received(mut self) -> (Vec<Span>, String) {
        self.stage.balancer.stop(Duration::from_secs(60)).await;
        assert!(self.telemetry.stop(Duration::from_secs(60)).await, "all of it was sent");
        let mut spans = Vec::new();
        while let Ok(span) = self.spans.try_recv() {
            documented(&span);
            spans.push(span);
        }
        (spans, self.metrics.text())
    }
}

/// What a span says is said where the list of names has it.
fn documented(span: &Span) {
    let on = |name: &str| {
        let one = names::ATTRIBUTES.iter().find(|one| one.name == name);
        one.unwrap_or_else(|| panic!("{name} is not listed")).on
    };
    let (service, method) = span.name.rsplit_once('/').unwrap_or(("", &span.name));
    for attribute in &span.attributes {
        let on = on(&attribute.key);
        let fits = match span.kind() {
            SpanKind::Client => on.contains("Engage (stoker-lb)") || on.contains("CallService, Engage"),
            SpanKind::Server if service == "stoker.v1.CallService" => on.contains("CallService"),
            SpanKind::Server => on.contains("HTTP"),
            _ => on.contains(method),
        };
        assert!(fits || on.starts_with("any"), "{} on {}: {on}", attribute.key, span.name);
    }
    let listed = names::SPANS.iter().any(|one| one.name == span.name)
        || names::ROUTES.iter().any(|(_, route)| span.name.ends_with(route.path));
    assert!(listed, "{} is not listed", span.name);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attribute(span: &Span, name: &str) -> String {
    let value = span.attributes.iter().find(|a| a.key == name).and_then(|a| a.value.clone()?.value);
    match value {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}

fn failed(span: &Span) -> bool {
    span.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error)
}

fn of_kind(spans: &[Span], kind: SpanKind) -> Vec<&Span> {
    let mut found: Vec<_> = spans.iter().filter(|span| span.kind() == kind).collect();
    found.sort_by_key(|span| span.start_time_unix_nano);
    found
}

/// Tells what it was offered, and answers as it is told.
fn telling(
    tell: mpsc::Sender<wire::Offer>,
    answer: impl Fn(&wire::Offer) -> Out + Send + Sync + 'static,
) -> Play {
    let answer = Arc::new(answer);
    play(move |mut s| {
        let (tell, answer) = (tell.clone(), answer.clone());
        async move {
            while let Some(offer) = s.offer().await {
                let said = answer(&offer);
                tell.send(offer).await.expect("the test reads");
                s.send(said).await;
            }
        }
    })
}

fn finished(offer: &wire::Offer) -> Out {
    Out::Finished(Box::new(wire::Finished { call: offer.call, head: ok(), ..Default::default() }))
}

fn refused(offer: &wire::Offer) -> Out {
    Out::Refused(Box::new(wire::Refused {
        call: offer.call,
        reason: wire::RefusalReason::Draining.into(),
        detail: "on its way out".into(),
        ..Default::default()
    }))
}

#[tokio::test]
async fn one_trace_from_the_client_to_the_runner_by_every_door() {
    let (tell, mut offers) = mpsc::channel(16);
    let traced = traced(config(), vec![telling(tell, finished)]).await;
    let stage = &traced.stage;
    let mut client = stage.client().await;
    let mut ask = Request::new(v1::InvokeRequest { function: "a/f".into(), ..Default::default() });
    ask.metadata_mut().insert("traceparent", PARENT.parse().expect("a value"));
    ask.metadata_mut().insert("tracestate", "v=1".parse().expect("a value"));
    let called = client.invoke(ask).await.expect("an answer").into_inner();
    let answer = stage
        .http(&format!(
            "PUT /t/a/hello/x HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntraceparent: {PARENT}\r\n\r\n"
        ))
        .await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let start = v1::SessionStart {
        function: "a/f".into(),
        complete: true,
        traceparent: PARENT.into(),
        ..Default::default()
    };
    let frame = Some(v1::session_request::Frame::Start(start));
    let session = client.session(tokio_stream::once(v1::SessionRequest { call: 1, frame })).await;
    session.expect("a stream").into_inner().message().await.expect("no error").expect("an outcome");
    let told: Vec<_> =
        [offers.recv().await, offers.recv().await, offers.recv().await].into_iter().flatten().collect();
    let (spans, _) = traced.received().await;
    let (servers, clients) = (of_kind(&spans, SpanKind::Server), of_kind(&spans, SpanKind::Client));
    assert_eq!((servers.len(), clients.len(), spans.len()), (3, 3, 6), "{spans:#?}");
    for ((server, client), offer) in servers.iter().zip(&clients).zip(&told) {
        assert_eq!(
            (hex(&server.trace_id).as_str(), hex(&server.parent_span_id).as_str()),
            (TRACE, "b7ad6b7169203331")
        );
        assert_eq!((hex(&client.trace_id).as_str(), &client.parent_span_id), (TRACE, &server.span_id));
        assert_eq!(
            offer.traceparent,
            format!("00-{TRACE}-{}-01", hex(&client.span_id)),
            "the offer is below its span"
        );
        assert!(!failed(server) && !failed(client));
        assert_eq!(client.name, "stoker.runner.v1.RunnerService/Engage");
        assert_eq!(
            (attribute(client, "stoker.runner").as_str(), attribute(client, "faas.invoked_name").as_str()),
            ("r0", "a/f")
        );
        let inside = server.start_time_unix_nano <= client.start_time_unix_nano
            && client.end_time_unix_nano <= server.end_time_unix_nano;
        assert!(inside, "{server:?} {client:?}");
    }
    assert_eq!(told[0].tracestate, "v=1");
    assert_eq!(attribute(servers[0], "faas.invocation_id"), called.call_id);
    assert_eq!(attribute(servers[0], "rpc.response.status_code"), "OK");
    assert_eq!(attribute(servers[1], "http.response.status_code"), "200");
    let names: Vec<_> = servers.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(
        names,
        ["stoker.v1.CallService/Invoke", "PUT /t/{app}/{source}", "stoker.v1.CallService/Session"]
    );
    for (name, value) in [
        ("http.request.method", "PUT"),
        ("http.route", "/t/{app}/{source}"),
        ("url.path", "/t/a/hello/x"),
        ("url.scheme", "http"),
        ("network.peer.address", "127.0.0.1"),
        ("network.protocol.version", "1.1"),
        ("faas.trigger", "http"),
    ] {
        assert_eq!(attribute(servers[1], name), value, "{name}");
    }
    assert_eq!(attribute(servers[0], "rpc.method"), "stoker.v1.CallService/Invoke");
}

#[tokio::test]
async fn each_offer_says_why_it_was_refused_and_a_wait_is_seen() {
    let (tell, mut offers) = mpsc::channel(16);
    let tries = std::sync::atomic::AtomicUsize::new(0);
    // Refuses once, then answers.
    let play = telling(tell, move |offer| match tries.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
        0 => refused(offer),
        _ => finished(offer),
    });
    let traced = traced(config(), vec![play]).await;
    let stage = &traced.stage;
    let ((), answer) = tokio::join!(
        async {
            offers.recv().await.expect("an offer");
            let watch = stage.fleet().await.watch_fleet(v1::WatchFleetRequest {}).await;
            let mut watch = watch.expect("a stream").into_inner();
            while watch.message().await.expect("no error").expect("more").queued == 0 {}
            let ask = v1::UncordonRunnerRequest { runner: "r0".into() };
            stage.fleet().await.uncordon_runner(ask).await.expect("news of it");
        },
        stage.invoke("a/f", "x")
    );
    answer.expect("the second offer is taken");
    let (spans, metrics) = traced.received().await;
    let (servers, clients, inside) = (
        of_kind(&spans, SpanKind::Server),
        of_kind(&spans, SpanKind::Client),
        of_kind(&spans, SpanKind::Internal),
    );
    assert_eq!((servers.len(), clients.len(), inside.len()), (1, 2, 1), "{spans:#?}");
    assert!(servers[0].parent_span_id.is_empty(), "a trace of our own");
    assert_eq!(
        (attribute(clients[1], "stoker.offer").as_str(), attribute(clients[1], "server.address").as_str()),
        ("2", "127.0.0.1")
    );
    assert_eq!(attribute(servers[0], "stoker.offers"), "2");
    assert!(failed(clients[0]) && !failed(clients[1]) && !failed(servers[0]), "{spans:#?}");
    assert_eq!(attribute(clients[0], "error.type"), "refused_draining");
    assert_eq!(clients[0].status.as_ref().map(|status| status.message.as_str()), Some("on its way out"));
    assert_eq!((inside[0].name.as_str(), &inside[0].parent_span_id), ("queue", &servers[0].span_id));
    assert!(inside[0].end_time_unix_nano <= clients[1].start_time_unix_nano, "the wait ends with the turn");
    for line in [
        "stoker_lb_offers_total{result=\"refused_draining\"} 1",
        "stoker_lb_offers_total{result=\"finished\"} 1",
        "stoker_lb_queue_wait_seconds_count 1",
        "stoker_lb_calls_total{door=\"invoke\",code=\"OK\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    let exemplar = format!("trace_id=\"{}\"", hex(&servers[0].trace_id));
    assert!(metrics.contains(&exemplar), "{exemplar} in {metrics}");
}

#[tokio::test]
async fn failures_are_those_of_whom_they_blame() {
    let (tell, mut offers) = mpsc::channel(16);
    let failing = telling(tell, |offer| {
        let error = stoker_core::Error::new(stoker_core::Code::FunctionFailed, "it says no");
        Out::Finished(Box::new(wire::Finished {
            call: offer.call,
            error: Some(convert::to_call_error(&error)),
            ..Default::default()
        }))
    });
    let traced = traced(config(), vec![failing]).await;
    traced.stage.invoke("a/f", "x").await.expect_err("it fails");
    offers.recv().await.expect("an offer");
    traced.stage.invoke("a/none", "x").await.expect_err("there is none");
    let answer =
        traced.stage.http("POST /invoke/a/none HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    let (spans, metrics) = traced.received().await;
    let (servers, clients) = (of_kind(&spans, SpanKind::Server), of_kind(&spans, SpanKind::Client));
    let told: Vec<_> = servers
        .iter()
        .map(|span| (attribute(span, "error.type"), attribute(span, "stoker.blame"), failed(span)))
        .collect();
    let told: Vec<_> =
        told.iter().map(|(kind, blame, failed)| (kind.as_str(), blame.as_str(), *failed)).collect();
    assert_eq!(
        told,
        [
            ("FUNCTION_FAILED", "function", true),
            ("NOT_FOUND", "caller", false),
            ("NOT_FOUND", "caller", false)
        ]
    );
    assert_eq!(attribute(clients[0], "stoker.blame"), "function");
    assert_eq!((clients.len(), failed(clients[0])), (1, true));
    assert_eq!(attribute(servers[0], "rpc.response.status_code"), "UNKNOWN");
    assert_eq!(attribute(servers[2], "http.response.status_code"), "404");
    for line in [
        "stoker_lb_calls_total{door=\"invoke\",code=\"FUNCTION_FAILED\"} 1",
        "stoker_lb_calls_total{door=\"invoke\",code=\"NOT_FOUND\"} 1",
        "stoker_lb_calls_total{door=\"http\",code=\"NOT_FOUND\"} 1",
        "stoker_lb_runners{state=\"ready\"} ",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}

#[tokio::test]
async fn what_nobody_samples_passes_on_as_it_came() {
    let (tell, mut offers) = mpsc::channel(16);
    let traced = traced(config(), vec![telling(tell, finished)]).await;
    let unsampled = format!("{}00", &PARENT[..53]);
    let mut ask = Request::new(v1::InvokeRequest { function: "a/f".into(), ..Default::default() });
    ask.metadata_mut().insert("traceparent", unsampled.parse().expect("a value"));
    traced.stage.client().await.invoke(ask).await.expect("an answer");
    assert_eq!(offers.recv().await.expect("an offer").traceparent, unsampled);
    let (spans, metrics) = traced.received().await;
    assert!(spans.is_empty(), "{spans:#?}");
    assert!(metrics.contains("stoker_lb_calls_total{door=\"invoke\",code=\"OK\"} 1"), "{metrics}");
}

#[tokio::test]
async fn a_call_that_fails_is_sent_though_nobody_sampled_it() {
    let (tell, mut offers) = mpsc::channel(16);
    let play = telling(tell, |offer| {
        if offer.body != "fail" {
            return finished(offer);
        }
        let error = stoker_core::Error::new(stoker_core::Code::FunctionFailed, "it says no");
        let error = Some(convert::to_call_error(&error));
        Out::Finished(Box::new(wire::Finished { call: offer.call, error, ..Default::default() }))
    });
    let keep = Keep { failed: true, slow: None };
    let traced = traced_keeping(keep, config(), vec![play]).await;
    let unsampled = format!("{}00", &PARENT[..53]);
    for body in ["well", "fail"] {
        let mut ask = Request::new(v1::InvokeRequest {
            function: "a/f".into(),
            body: body.into(),
            ..Default::default()
        });
        ask.metadata_mut().insert("traceparent", unsampled.parse().expect("a value"));
        let answer = traced.stage.client().await.invoke(ask).await;
        assert_eq!(answer.is_ok(), body == "well");
    }
    let told = [offers.recv().await, offers.recv().await].map(|offer| offer.expect("an offer").traceparent);
    assert!(told.iter().all(|told| told.starts_with(&PARENT[..36]) && told.ends_with("-00")), "{told:?}");
    let (spans, metrics) = traced.received().await;
    let (servers, clients) = (of_kind(&spans, SpanKind::Server), of_kind(&spans, SpanKind::Client));
    assert_eq!((servers.len(), clients.len(), spans.len()), (1, 1, 2), "{spans:#?}");
    assert_eq!(attribute(servers[0], "stoker.kept"), "failed");
    assert_eq!(told[1], format!("00-{TRACE}-{}-00", hex(&clients[0].span_id)));
    assert!(failed(servers[0]) && servers[0].flags & 1 == 0);
    assert!(metrics.contains(&format!("trace_id=\"{TRACE}\"")), "its number leads there: {metrics}");
}

#[tokio::test]
async fn what_others_say_of_a_trace_is_continued() {
    let (tell, mut offers) = mpsc::channel(16);
    let traced = traced(config(), vec![telling(tell, finished)]).await;
    let amazon = "Root=1-0af76519-16cd43dd8448eb211c80319c;Parent=b7ad6b7169203331;Sampled=1";
    let event = "ce-specversion: 1.0\r\nce-id: 1\r\nce-source: s\r\nce-type: t";
    let other = "00-00000000000000000000000000000007-0000000000000007-01";
    for (path, headers) in [
        ("/invoke/a/f", format!("x-amzn-trace-id: {amazon}")),
        // Who says both means the first.
        ("/invoke/a/f", format!("traceparent: {PARENT}\r\nx-amzn-trace-id: Root=1-0-0;Parent=1")),
        ("/ce/a/f", format!("{event}\r\nce-traceparent: {PARENT}")),
        ("/ce/a/f", format!("{event}\r\ntraceparent: {PARENT}\r\nce-traceparent: {other}")),
    ] {
        let ask = format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n\r\n");
        let answer = traced.stage.http(&ask).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let told = offers.recv().await.expect("an offer").traceparent;
        assert!(told.starts_with(&PARENT[..36]) && told.ends_with("-01"), "{headers}: {told}");
    }
    let (spans, _) = traced.received().await;
    let servers = of_kind(&spans, SpanKind::Server);
    assert!(servers.iter().all(|span| hex(&span.parent_span_id) == "b7ad6b7169203331"), "{servers:#?}");
    let links: Vec<_> =
        servers.iter().map(|span| span.links.iter().map(|l| hex(&l.trace_id)).collect::<Vec<_>>()).collect();
    let none: Vec<String> = Vec::new();
    assert_eq!(links, [none.clone(), none.clone(), none, vec![format!("{:032x}", 7)]]);
}

#[tokio::test]
async fn a_call_for_later_is_one_trace_with_its_attempts() {
    let directory = tempfile::tempdir().expect("a directory");
    let (tell, mut offers) = mpsc::channel(16);
    let queue =
        stoker_queue::disk::Config { reserve: 0, ..stoker_queue::disk::Config::new(directory.path()) };
    let config = Config { later: stoker_lb::CallQueue::Disk(queue), ..config() };
    let traced = traced(config, vec![telling(tell, finished)]).await;
    let mut client = traced.stage.client().await;
    let mut ask = Request::new(v1::SubmitRequest { function: "a/f".into(), ..Default::default() });
    ask.metadata_mut().insert("traceparent", PARENT.parse().expect("a value"));
    let id = client.submit(ask).await.expect("it is accepted").into_inner().call_id;
    let offer = offers.recv().await.expect("an offer");
    let mut ask = Request::new(v1::WaitCallRequest { call_id: id.clone() });
    ask.set_timeout(Duration::from_secs(60));
    client.wait_call(ask).await.expect("it ends");
    let (spans, _) = traced.received().await;
    let of = |kind| of_kind(&spans, kind);
    let submit =
        of(SpanKind::Server).into_iter().find(|span| hex(&span.parent_span_id) == "b7ad6b7169203331");
    let submit = submit.expect("the submit");
    let (sends, makes, asks) = (of(SpanKind::Producer), of(SpanKind::Consumer), of(SpanKind::Client));
    let ([send], [make], [ask]) = (&sends[..], &makes[..], &asks[..]) else { panic!("{spans:#?}") };
    assert_eq!((send.name.as_str(), make.name.as_str()), ("send", "process"));
    for (below, above) in [(*send, submit), (*make, *send), (*ask, *make)] {
        assert_eq!((hex(&below.trace_id).as_str(), &below.parent_span_id), (TRACE, &above.span_id));
    }
    assert_eq!(offer.traceparent, format!("00-{TRACE}-{}-01", hex(&ask.span_id)));
    for span in [send, make] {
        assert_eq!(attribute(span, "messaging.message.id"), id);
        assert_eq!(attribute(span, "messaging.destination.name"), "a/f");
    }
    assert_eq!(
        (attribute(make, "stoker.attempt").as_str(), attribute(make, "faas.trigger").as_str()),
        ("1", "pubsub")
    );
}
