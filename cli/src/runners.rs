//! `runners`: the fleet, as this balancer sees it.

use serde_json::{Value, json};
use stoker_core::units::format_cpu;
use stoker_proto::v1::{self, LinkState, RunnerState};

use crate::args::{Common, Output};
use crate::failure::Failure;
use crate::{client, output};

pub async fn run(common: &Common) -> Result<(), Failure> {
    let mut client = client::fleet(&common.server).await?;
    let mut runners = client.list_runners(v1::ListRunnersRequest {}).await?.into_inner().runners;
    runners.sort_by_key(|r| r.capacity.as_ref().map(|c| c.runner.clone()));
    if common.output == Output::Json {
        return output::print_json(&json!({"runners": runners.iter().map(record).collect::<Vec<_>>()}));
    }
    if runners.is_empty() {
        output::say("There are no runners. `stoker up` starts a fleet with one.\n");
        return Ok(());
    }
    let header = [
        "RUNNER",
        "STATE",
        "ADDRESS",
        "MEMORY AVAILABLE",
        "CPU AVAILABLE",
        "SLOTS AVAILABLE",
        "HOT",
        "CALLS",
        "WAITING",
        "SEEN",
    ];
    let mut text = output::table(&header, runners.iter().map(row).collect());
    // Too long for a column.
    for runner in runners.iter().filter(|runner| !runner.reason.is_empty()) {
        let name = runner.capacity.as_ref().map_or("", |capacity| &capacity.runner);
        text += &output::printable(&format!("{name} is {}: {}", link(runner), runner.reason));
        text.push('\n');
    }
    output::print(&text)
}

fn link(r: &v1::RunnerDescription) -> &'static str {
    match r.link() {
        LinkState::Connecting => "connecting",
        LinkState::Ready => "ready",
        LinkState::Draining => "draining",
        LinkState::Lost => "lost",
        LinkState::Unspecified => "unknown",
    }
}

/// What is free and what idle containers hold, who give it up on demand: the answer to "is there room". The word is that of `free`.
fn available(c: &v1::Capacity) -> v1::Resources {
    let (free, reclaimable) = (c.free.unwrap_or_default(), c.reclaimable.unwrap_or_default());
    v1::Resources {
        memory: free.memory.saturating_add(reclaimable.memory),
        cpu_millis: free.cpu_millis.saturating_add(reclaimable.cpu_millis),
        slots: free.slots.saturating_add(reclaimable.slots),
    }
}

fn row(r: &v1::RunnerDescription) -> Vec<String> {
    let c = r.capacity.clone().unwrap_or_default();
    let (total, available) = (c.total.unwrap_or_default(), available(&c));
    let (idle, busy) = c.functions.iter().fold((0, 0), |(idle, busy), w| (idle + w.idle, busy + w.busy));
    vec![
        c.runner,
        link(r).to_owned(),
        c.address,
        format!("{} of {}", output::human_size(available.memory), output::human_size(total.memory)),
        format!("{} of {}", format_cpu(available.cpu_millis), format_cpu(total.cpu_millis)),
        format!("{} of {}", available.slots, total.slots),
        format!("{idle} idle, {busy} busy"),
        c.in_flight.to_string(),
        c.waiting.to_string(),
        r.age.map_or_else(String::new, |age| {
            format!("{:.1} s ago", stoker_proto::convert::duration(age).as_secs_f64())
        }),
    ]
}

fn record(r: &v1::RunnerDescription) -> Value {
    let c = r.capacity.clone().unwrap_or_default();
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    json!({
        "runner": c.runner, "incarnation": format!("{:016x}", c.incarnation), "address": c.address, "zone": c.zone,
        "labels": std::collections::BTreeMap::from_iter(c.labels.clone()), "sequence": c.sequence,
        "state": if c.state() == RunnerState::Draining { "draining" } else { "ready" },
        "link": link(r), "reason": r.reason,
        "total": output::resources(c.total.as_ref()), "free": output::resources(c.free.as_ref()),
        "reclaimable": output::resources(c.reclaimable.as_ref()),
        "available": output::resources(Some(&available(&c))),
        "in_flight": c.in_flight, "waiting": c.waiting,
        "functions": c.functions.iter().map(|w| json!({
            "digest": hex(&w.digest), "idle": w.idle, "busy": w.busy, "waiting": w.waiting,
        })).collect::<Vec<_>>(),
        "age_ms": r.age.map(|age| stoker_proto::convert::duration(age).as_millis() as u64),
    })
}
