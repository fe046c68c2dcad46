//! The dashboards: which questions each answers, from the general to the particular. Those of a fleet, a function and a runner are here, those that
//! look for causes in [`causes`].

mod causes;

use stoker_core::error::{Blame, Code};
use stoker_core::machine::Listed as _;
use stoker_proto::status;
use stoker_runtime::telemetry::names;

use self::causes::{cold_starts, errors, later, placement};
use super::query::{buckets, max, quantile, rate, share, share_or_none, sum, top};
use super::{Board, Good, Look, Panel, Row, Unit};

const FUNCTION: Look = Look::Table { label: "function", leads_to: "stoker-function" };
const RUNNER: Look = Look::Table { label: "instance", leads_to: "stoker-runner" };
const OURS: &str = "function=\"$function\"";
const HERE: &str = "instance=\"$instance\"";

/// All of them.
#[must_use]
pub fn all() -> [Board; 7] {
    [fleet(), function(), runner(), cold_starts(), placement(), errors(), later()]
}

fn lines(title: &'static str, description: &'static str, unit: Unit) -> Panel {
    Panel::new(title, description, Look::Lines, unit)
}

/// Calls that failed by this fault, by whatever they asked for: those of functions that nobody knows are of no function.
fn failed(calls: &str, blame: Blame) -> String {
    let codes = Code::ALL.iter().filter(|code| code.blame() == blame);
    let reasons: Vec<_> = codes.map(|code| status::row(*code).reason).collect();
    rate(calls, &[], &format!("code=~\"{}\"", reasons.join("|")))
}

fn stacked(title: &'static str, description: &'static str, unit: Unit) -> Panel {
    Panel::new(title, description, Look::Stacked, unit)
}

fn number(title: &'static str, description: &'static str, unit: Unit) -> Panel {
    Panel::new(title, description, Look::Number, unit)
}

fn percentiles(panel: Panel, name: &str, only: &str) -> Panel {
    [(0.5, "p50"), (0.95, "p95"), (0.99, "p99")]
        .into_iter()
        .fold(panel, |panel, (share, legend)| panel.ask(quantile(share, name, &[], only), legend))
}

fn traces(title: &'static str, description: &'static str, query: String) -> Panel {
    Panel::new(title, description, Look::Traces, Unit::Count).width(24).ask_maybe(query, "")
}

fn logs(title: &'static str, description: &'static str, query: String) -> Panel {
    Panel::new(title, description, Look::Logs, Unit::Count).width(24).ask_maybe(query, "")
}

/// A label of Loki's, made of an attribute as Loki makes it.
fn field(attribute: names::Attribute) -> String {
    attribute.as_str().replace('.', "_")
}

const STREAMS: &str = "{service_namespace=\"stoker\"}";

fn fleet() -> Board {
    let calls = "stoker_lb_calls";
    let ok = rate(calls, &[], "code=\"OK\"");
    let platform = failed(calls, Blame::Platform);
    let used = |total: String, free: String| format!("1 - {free} / {total}");
    Board {
        uid: "stoker-fleet",
        title: "Stoker / Fleet",
        description: "How the whole fleet does: calls, times, room.",
        variable: None,
        rows: vec![
            Row {
                title: "Now",
                panels: vec![
                    number("Calls a second", "All that had their outcome.", Unit::PerSecond)
                        .ask(rate(calls, &[], ""), "calls"),
                    number("Succeeded", "Of all calls.", Unit::Share)
                        .good(Good::From(0.99))
                        .ask(share_or_none(&ok, &rate(calls, &[], "")), "ok"),
                    number("p99", "From a call's arrival to the end of its answer.", Unit::Seconds)
                        .ask(quantile(0.99, "stoker_lb_call_duration_seconds", &[], ""), "p99"),
                    number("Waiting", "In the balancers, for a runner with room.", Unit::Count)
                        .good(Good::Below(1.0))
                        .ask(sum("stoker_lb_queue_length", &[], ""), "waiting"),
                    number("Runners", "The fewest that any balancer is connected to.", Unit::Count)
                        .good(Good::From(1.0))
                        .ask("min(stoker_lb_runners{state=\"ready\"})", "ready"),
                    number("Cold starts", "Of all calls that reached a runner.", Unit::Share).ask(
                        share_or_none(
                            &rate("stoker_runner_cold_starts", &[], ""),
                            &rate("stoker_runner_calls", &[], ""),
                        ),
                        "cold",
                    ),
                ],
            },
            Row {
                title: "Calls",
                panels: vec![
                    stacked("Calls a second, by outcome", "What the balancers answered.", Unit::PerSecond)
                        .ask(rate(calls, &["code"], ""), "{{code}}"),
                    percentiles(
                        lines(
                            "Latency",
                            "From the balancer's door to the end of the answer. Dots are traces.",
                            Unit::Seconds,
                        ),
                        "stoker_lb_call_duration_seconds",
                        "",
                    ),
                    lines(
                        "Failed by the platform's fault",
                        "Of all calls. What should be nothing.",
                        Unit::Share,
                    )
                    .ask(share_or_none(&platform, &rate(calls, &[], "")), "platform"),
                    stacked("Calls a second, by door", "How they come in.", Unit::PerSecond)
                        .ask(rate(calls, &["door"], ""), "{{door}}"),
                    lines("Calls inside", "In the balancers, those that wait included.", Unit::Count)
                        .ask(sum("stoker_lb_calls_in_flight", &["instance"], ""), "{{instance}}"),
                    lines(
                        "Waiting",
                        "In balancers for a runner with room, and on runners for a container.",
                        Unit::Count,
                    )
                    .ask(sum("stoker_lb_queue_length", &[], ""), "in balancers")
                    .ask(sum("stoker_runner_calls_waiting", &[], ""), "on runners"),
                    Panel::new("Functions", "The busiest. Their names lead on.", FUNCTION, Unit::PerSecond)
                        .width(12)
                        .ask(top(20, &rate("stoker_lb_function_calls", &["function"], "")), "calls a second"),
                    Panel::new(
                        "Runners",
                        "By how many calls they have. Their names lead on.",
                        RUNNER,
                        Unit::Count,
                    )
                    .width(12)
                    .ask(sum("stoker_runner_calls_in_flight", &["instance"], ""), "calls")
                    .ask(sum("stoker_runner_calls_waiting", &["instance"], ""), "waiting")
                    .ask(sum("stoker_runner_slots", &["instance"], "kind=\"free\""), "free slots"),
                ],
            },
            Row {
                title: "Room",
                panels: vec![
                    lines(
                        "Held",
                        "Of what runners give out: by containers, and of CPU by calls and launches.",
                        Unit::Share,
                    )
                    .ask(
                        used(
                            sum("stoker_runner_memory_bytes", &[], "kind=\"total\""),
                            sum("stoker_runner_memory_bytes", &[], "kind=\"free\""),
                        ),
                        "memory",
                    )
                    .ask(
                        used(
                            sum("stoker_runner_cpu_cores", &[], "kind=\"total\""),
                            sum("stoker_runner_cpu_cores", &[], "kind=\"free\""),
                        ),
                        "CPU",
                    )
                    .ask(
                        used(
                            sum("stoker_runner_slots", &[], "kind=\"total\""),
                            sum("stoker_runner_slots", &[], "kind=\"free\""),
                        ),
                        "slots",
                    ),
                    stacked("Containers", "By their state, on all runners.", Unit::Count)
                        .ask(sum("stoker_runner_containers", &["state"], ""), "{{state}}"),
                    lines(
                        "Runners a zone should have",
                        "As the busiest balancer sees it, and as they are.",
                        Unit::Count,
                    )
                    .ask(max("stoker_lb_zone_desired_runners", &["zone"], ""), "should, {{zone}}")
                    .ask(max("stoker_lb_zone_runners", &["zone"], ""), "has, {{zone}}"),
                ],
            },
            Row {
                title: "Servers",
                panels: vec![
                    lines("CPU", "Of the servers themselves, without functions.", Unit::Cores)
                        .ask(rate("process_cpu_seconds", &["job", "instance"], ""), "{{job}} {{instance}}"),
                    lines("Memory", "Of the servers themselves, without functions.", Unit::Bytes).ask(
                        max("process_resident_memory_bytes", &["job", "instance"], ""),
                        "{{job}} {{instance}}",
                    ),
                    lines("Connections of clients", "At each balancer, by port.", Unit::Count).ask(
                        sum("stoker_lb_connections", &["instance", "port"], ""),
                        "{{instance}} {{port}}",
                    ),
                    lines(
                        "etcd",
                        "How long ago it said anything. Without it calls go on with what is known.",
                        Unit::Seconds,
                    )
                    .ask(
                        "time() - max by (job, instance) (stoker_etcd_last_answer_timestamp_seconds)",
                        "{{job}} {{instance}}",
                    ),
                    Panel::new("Who calls whom", "Made by Tempo from spans.", Look::Graph, Unit::Count)
                        .width(24)
                        .ask_maybe("", ""),
                ],
            },
        ],
    }
}

fn function() -> Board {
    let calls = "stoker_lb_function_calls";
    let failed = rate(calls, &["outcome"], "function=\"$function\",outcome!=\"ok\"");
    let all = rate(calls, &[], OURS);
    Board {
        uid: "stoker-function",
        title: "Stoker / One function",
        description: "Rate, errors and times of one function, and what its cold starts cost.",
        variable: Some(("function", "label_values(stoker_lb_function_calls_total, function)".to_owned())),
        rows: vec![
            Row {
                title: "Calls",
                panels: vec![
                    stacked("Calls a second, by outcome", "`ok`, or whose fault it was.", Unit::PerSecond)
                        .ask(rate(calls, &["outcome"], OURS), "{{outcome}}"),
                    lines("Errors", "Of its calls, by whose fault it was.", Unit::Share)
                        .ask(format!("{failed} / scalar({all})"), "{{outcome}}"),
                    percentiles(
                        lines(
                            "Latency",
                            "From the balancer's door to the end of the answer. Dots are traces.",
                            Unit::Seconds,
                        ),
                        "stoker_lb_function_duration_seconds",
                        OURS,
                    ),
                    percentiles(
                        lines(
                            "The function's own time",
                            "From the first byte of its input to the end of its answer.",
                            Unit::Seconds,
                        ),
                        "stoker_runner_execution_seconds",
                        OURS,
                    ),
                    Panel::new(
                        "Latency, spread",
                        "Calls a second in each bucket.",
                        Look::Heatmap,
                        Unit::Seconds,
                    )
                    .width(16)
                    .ask(buckets("stoker_lb_function_duration_seconds", OURS), "{{le}}"),
                ],
            },
            Row {
                title: "Cold starts",
                panels: vec![
                    stacked("Cold starts a second, by cause", "Why no container was warm.", Unit::PerSecond)
                        .ask(rate("stoker_runner_cold_starts", &["cause"], OURS), "{{cause}}"),
                    lines("Cold starts", "Of its calls that reached a runner.", Unit::Share).ask(
                        share(
                            &rate("stoker_runner_cold_starts", &[], OURS),
                            &rate("stoker_runner_calls", &[], OURS),
                        ),
                        "cold",
                    ),
                    stacked("Outcomes on runners", "By the error's reason.", Unit::PerSecond)
                        .ask(rate("stoker_runner_calls", &["code"], OURS), "{{code}}"),
                ],
            },
            Row {
                title: "Calls, one by one",
                panels: vec![
                    traces(
                        "Its slowest calls",
                        "Of those that took longer than a tenth of a second.",
                        format!(
                            "{{ span.{} = \"$function\" && duration > 100ms }}",
                            names::FAAS_INVOKED_NAME.as_str()
                        ),
                    ),
                    traces(
                        "Its calls that failed",
                        "By whosever fault.",
                        format!(
                            "{{ span.{} = \"$function\" && span.{} != nil }}",
                            names::FAAS_INVOKED_NAME.as_str(),
                            names::ERROR_TYPE.as_str()
                        ),
                    ),
                    logs(
                        "What it wrote",
                        "A line leads to its trace.",
                        format!("{STREAMS} | {}=\"$function\"", field(names::FAAS_NAME)),
                    ),
                ],
            },
        ],
    }
}

fn runner() -> Board {
    let memory = "stoker_runner_memory_bytes";
    Board {
        uid: "stoker-runner",
        title: "Stoker / One runner",
        description: "Use, saturation and errors of one runner.",
        variable: Some(("instance", "label_values(stoker_runner_calls_in_flight, instance)".to_owned())),
        rows: vec![
            Row {
                title: "Use",
                panels: vec![
                    lines("Memory", "What it gives out, what nobody holds, what idle containers would give up, and what containers really have.", Unit::Bytes)
                        .ask(sum(memory, &["kind"], HERE), "{{kind}}"),
                    lines("CPU", "What it gives out, and what no call or launch holds.", Unit::Cores)
                        .ask(sum("stoker_runner_cpu_cores", &["kind"], HERE), "{{kind}}"),
                    stacked("Containers", "By their state.", Unit::Count)
                        .ask(sum("stoker_runner_containers", &["state"], HERE), "{{state}}"),
                    lines("Calls", "That run, and that wait for a container.", Unit::Count)
                        .ask(sum("stoker_runner_calls_in_flight", &[], HERE), "run")
                        .ask(sum("stoker_runner_calls_waiting", &[], HERE), "wait"),
                    stacked("Calls a second, by outcome", "By the error's reason.", Unit::PerSecond)
                        .ask(rate("stoker_runner_calls", &["code"], HERE), "{{code}}"),
                    lines("Frozen and thawed", "A second.", Unit::PerSecond)
                        .ask(rate("stoker_runner_freezes", &[], HERE), "frozen")
                        .ask(rate("stoker_runner_thaws", &[], HERE), "thawed"),
                ],
            },
            Row {
                title: "Saturation",
                panels: vec![
                    percentiles(
                        lines("Wait", "Of calls that had to wait for a slot or a container.", Unit::Seconds),
                        "stoker_runner_wait_seconds",
                        HERE,
                    ),
                    stacked("Given back untouched", "A second, by reason.", Unit::PerSecond)
                        .ask(rate("stoker_runner_refused", &["reason"], HERE), "{{reason}}"),
                    stacked("Containers that went", "A second, by why.", Unit::PerSecond)
                        .ask(rate("stoker_runner_containers_ended", &["why"], HERE), "{{why}}"),
                    lines("Memory that frozen containers gave back", "A second, while it was short.", Unit::Bytes)
                        .ask(rate("stoker_runner_reclaimed_bytes", &[], HERE), "given back"),
                ],
            },
            Row {
                title: "Launches and errors",
                panels: vec![
                    lines("Launches", "A second, and those that came to nothing by whose fault.", Unit::PerSecond)
                        .ask(rate("stoker_runner_launches", &["purpose"], HERE), "for {{purpose}}")
                        .ask(rate("stoker_runner_launch_failures", &["blame"], HERE), "failed, {{blame}}"),
                    lines("Launch, median of each phase", "", Unit::Seconds)
                        .ask(quantile(0.5, "stoker_runner_launch_seconds", &["phase"], HERE), "{{phase}}"),
                    lines("Open files", "Of those that it may open.", Unit::Share)
                        .ask("process_open_fds{instance=\"$instance\"} / process_max_fds{instance=\"$instance\"}", "open"),
                ],
            },
        ],
    }
}
