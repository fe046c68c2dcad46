//! The dashboards that look for causes: of cold starts, of where calls go, of errors, of calls for later.

use stoker_core::error::Blame;
use stoker_runtime::telemetry::names;

use super::super::query::{max, quantile, rate, share, share_or_none, sum, top};
use super::super::{Board, Panel, Row, Unit};
use super::{FUNCTION, STREAMS, failed, lines, logs, percentiles, stacked, traces};

pub fn cold_starts() -> Board {
    let cold = "stoker_runner_cold_starts";
    let launch = "stoker_runner_launch_seconds";
    Board {
        uid: "stoker-cold-starts",
        title: "Stoker / Cold starts",
        description: "How often calls wait for a container, why, how long, and what would help.",
        variable: None,
        rows: vec![
            Row {
                title: "How often, and why",
                panels: vec![
                    lines("Cold starts", "Of all calls that reached a runner.", Unit::Share)
                        .ask(share(&rate(cold, &[], ""), &rate("stoker_runner_calls", &[], "")), "cold"),
                    stacked("Cold starts a second, by cause", "`first` and `busy` want `min_containers`, `expired` a longer `idle_timeout`, `evicted` more memory.", Unit::PerSecond)
                        .ask(rate(cold, &["cause"], ""), "{{cause}}"),
                    Panel::new("By function", "Cold starts a second.", FUNCTION, Unit::PerSecond)
                        .ask(top(20, &rate(cold, &["function"], "")), "cold starts a second"),
                ],
            },
            Row {
                title: "How long",
                panels: vec![
                    lines("Launch, median of each phase", "`init` is the function's own.", Unit::Seconds)
                        .ask(quantile(0.5, launch, &["phase"], ""), "{{phase}}"),
                    lines("Launch, p95 of each phase", "", Unit::Seconds)
                        .ask(quantile(0.95, launch, &["phase"], ""), "{{phase}}"),
                    percentiles(
                        lines("Wait on runners", "Of calls that had to wait for a slot or a container.", Unit::Seconds),
                        "stoker_runner_wait_seconds",
                        "",
                    ),
                ],
            },
            Row {
                title: "Containers",
                panels: vec![
                    stacked("Launches a second", "For a call that waits, and ahead of those that are expected.", Unit::PerSecond)
                        .ask(rate("stoker_runner_launches", &["purpose"], ""), "for {{purpose}}"),
                    stacked("Launches that failed, a second", "By whose fault.", Unit::PerSecond)
                        .ask(rate("stoker_runner_launch_failures", &["blame"], ""), "{{blame}}"),
                    stacked("Containers that went, a second", "By why.", Unit::PerSecond)
                        .ask(rate("stoker_runner_containers_ended", &["why"], ""), "{{why}}"),
                ],
            },
            Row {
                title: "One by one",
                panels: vec![traces(
                    "Cold calls",
                    "Each with its launch below it.",
                    format!("{{ span.{} = true }}", names::FAAS_COLDSTART.as_str()),
                )],
            },
        ],
    }
}

pub fn placement() -> Board {
    Board {
        uid: "stoker-placement",
        title: "Stoker / Placement",
        description: "Where calls go, how often runners refuse, and who waits.",
        variable: None,
        rows: vec![
            Row {
                title: "Offers",
                panels: vec![
                    stacked(
                        "Offers a second, by result",
                        "More than calls where runners refuse.",
                        Unit::PerSecond,
                    )
                    .ask(rate("stoker_lb_offers", &["result"], ""), "{{result}}"),
                    stacked(
                        "Offers a second, by why that runner",
                        "`warm` should be most of them.",
                        Unit::PerSecond,
                    )
                    .ask(rate("stoker_lb_placements", &["why"], ""), "{{why}}"),
                    lines("Runners asked for a call", "1 is best.", Unit::Count)
                        .ask(quantile(0.5, "stoker_lb_placement_tries", &[], ""), "p50")
                        .ask(quantile(0.99, "stoker_lb_placement_tries", &[], ""), "p99"),
                    stacked("Given back untouched, by runners", "A second, by reason.", Unit::PerSecond)
                        .ask(rate("stoker_runner_refused", &["reason"], ""), "{{reason}}"),
                    stacked(
                        "Runners, by how balancers are linked with them",
                        "Added up over balancers.",
                        Unit::Count,
                    )
                    .ask(sum("stoker_lb_runners", &["state"], ""), "{{state}}"),
                    lines("Calls on runners", "That run.", Unit::Count)
                        .ask(sum("stoker_runner_calls_in_flight", &["instance"], ""), "{{instance}}"),
                ],
            },
            Row {
                title: "Waiting in balancers",
                panels: vec![
                    lines("Waiting", "Calls, for a runner with room.", Unit::Count)
                        .ask(sum("stoker_lb_queue_length", &["instance"], ""), "{{instance}}"),
                    lines("The oldest", "How long the call has waited that waits longest.", Unit::Seconds)
                        .ask(max("stoker_lb_queue_oldest_seconds", &["instance"], ""), "{{instance}}"),
                    percentiles(
                        lines("Wait", "Of calls that had to, however it ended.", Unit::Seconds),
                        "stoker_lb_queue_wait_seconds",
                        "",
                    ),
                    stacked("Left without a runner", "A second, by why.", Unit::PerSecond)
                        .ask(rate("stoker_lb_queue_left", &["why"], ""), "{{why}}"),
                    lines("Held by those who wait", "Bodies and heads.", Unit::Bytes)
                        .ask(sum("stoker_lb_queue_bytes", &["instance"], ""), "{{instance}}"),
                    lines(
                        "Runners' worth of work",
                        "What runners hold, and what calls want that are not served.",
                        Unit::Count,
                    )
                    .ask(max("stoker_lb_zone_used_runners", &["zone"], ""), "held, {{zone}}")
                    .ask(sum("stoker_lb_zone_unserved_runners", &["zone"], ""), "wanted, {{zone}}"),
                ],
            },
            Row {
                title: "One by one",
                panels: vec![
                    traces(
                        "Calls that were offered more than once",
                        "Each offer is a span, with why that runner was asked and what it said.",
                        format!("{{ span.{} > 1 }}", names::OFFERS.as_str()),
                    ),
                    traces(
                        "Calls that waited in a balancer",
                        "",
                        format!("{{ name = \"{}\" && duration > 10ms }}", names::QUEUE.as_str()),
                    ),
                ],
            },
        ],
    }
}

pub fn errors() -> Board {
    let calls = "stoker_lb_function_calls";
    let of = |blame| share_or_none(&failed("stoker_lb_calls", blame), &rate("stoker_lb_calls", &[], ""));
    Board {
        uid: "stoker-errors",
        title: "Stoker / Errors",
        description: "What fails, whose fault it is, and what is dropped.",
        variable: None,
        rows: vec![
            Row {
                title: "Calls",
                panels: vec![
                    lines("Errors, by whose fault", "Of all calls.", Unit::Share)
                        .ask(of(Blame::Caller), "caller")
                        .ask(of(Blame::Function), "function")
                        .ask(of(Blame::Platform), "platform"),
                    stacked("Errors a second, by reason", "As balancers answered.", Unit::PerSecond)
                        .ask_maybe(rate("stoker_lb_calls", &["code"], "code!=\"OK\""), "{{code}}"),
                    Panel::new(
                        "Functions that fail",
                        "By their own fault, a second.",
                        FUNCTION,
                        Unit::PerSecond,
                    )
                    .ask_maybe(
                        top(20, &rate(calls, &["function"], "outcome=\"function\"")),
                        "errors a second",
                    ),
                ],
            },
            Row {
                title: "The platform",
                panels: vec![
                    stacked(
                        "Offers that went wrong, a second",
                        "Runners lost, launches that failed there.",
                        Unit::PerSecond,
                    )
                    .ask(
                        rate("stoker_lb_offers", &["result"], "result=~\"lost|refused_launch_failed\""),
                        "{{result}}",
                    ),
                    stacked("Launches that failed, a second", "By whose fault.", Unit::PerSecond)
                        .ask(rate("stoker_runner_launch_failures", &["blame"], ""), "{{blame}}"),
                    lines("Interrupted with etcd", "1: it goes on with what was known before.", Unit::Count)
                        .ask(
                            max("stoker_etcd_interrupted", &["instance", "part"], ""),
                            "{{instance}} {{part}}",
                        ),
                    stacked(
                        "Connections that came to nothing, a second",
                        "Of clients: one too many, one that says nothing, one that TLS turned away.",
                        Unit::PerSecond,
                    )
                    .ask(rate("stoker_lb_connections_failed", &["why"], ""), "{{why}}"),
                    lines("Panics", "Each is a mistake of ours.", Unit::PerSecond)
                        .ask(rate("stoker_lb_panics", &[], ""), "panics"),
                    stacked("Spans, by what became of them", "A second.", Unit::PerSecond)
                        .ask_maybe(rate("stoker_telemetry_spans", &["outcome"], ""), "{{outcome}}"),
                    lines("Log lines dropped", "A second.", Unit::PerSecond)
                        .ask(rate("stoker_log_lines_dropped", &["job"], ""), "{{job}}"),
                ],
            },
            Row {
                title: "One by one",
                panels: vec![
                    traces(
                        "Calls that failed",
                        "By the function's fault or the platform's.",
                        "{ status = error && kind = server }".to_owned(),
                    ),
                    logs(
                        "What servers warn of",
                        "A line about a call leads to its trace.",
                        format!("{STREAMS} | severity_text=~\"WARN|ERROR\""),
                    ),
                ],
            },
        ],
    }
}

pub fn later() -> Board {
    Board {
        uid: "stoker-later",
        title: "Stoker / Calls for later",
        description: "Asynchronous calls: how many come, how many wait, what becomes of them.",
        variable: None,
        rows: vec![Row {
            title: "Calls for later",
            panels: vec![
                lines("Waiting and running", "In the whole queue.", Unit::Count)
                    .ask(max("stoker_lb_later_queued", &[], ""), "wait")
                    .ask(max("stoker_lb_later_running", &[], ""), "run"),
                lines("The oldest", "How long the call has been due that is due longest.", Unit::Seconds)
                    .ask(max("stoker_lb_later_oldest_seconds", &[], ""), "due since"),
                lines("In and out", "A second.", Unit::PerSecond)
                    .ask(rate("stoker_lb_later_submits", &["kind"], ""), "submitted, {{kind}}")
                    .ask(rate("stoker_lb_later_ended", &["state"], ""), "ended, {{state}}"),
                stacked("Attempts a second", "By how they ended.", Unit::PerSecond)
                    .ask(rate("stoker_lb_later_attempts", &["outcome"], ""), "{{outcome}}"),
                lines("Dead", "Of calls that ended: all their attempts failed.", Unit::Share).ask(
                    share_or_none(
                        &rate("stoker_lb_later_ended", &[], "state=\"dead\""),
                        &format!("({} > 0)", rate("stoker_lb_later_ended", &[], "")),
                    ),
                    "dead",
                ),
                percentiles(
                    lines(
                        "How long an attempt takes",
                        "From its start in the balancer to its outcome.",
                        Unit::Seconds,
                    ),
                    "stoker_lb_call_duration_seconds",
                    "door=\"later\"",
                ),
                traces(
                    "Attempts",
                    "From the second on.",
                    format!("{{ span.{} > 1 }}", names::ATTEMPT.as_str()),
                ),
            ],
        }],
    }
}
