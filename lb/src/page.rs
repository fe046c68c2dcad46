//! The page for people on the admin port: the fleet, its functions and this balancer, as they are now.
//!
//! The page makes rates and percentiles itself, from counters; what it is told is the same for all who look.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use stoker_proto::convert;
use stoker_proto::v1::{self, LinkState, RunnerState};
use stoker_runtime::admin::Live;

use crate::front::Front;

/// How often it gets news.
const BEAT: Duration = Duration::from_secs(1);

/// The page of the balancer behind this door.
pub fn page(front: Arc<Front>) -> Live {
    // What was told last, and as what: those who look at one time are told the same.
    let last: Mutex<Option<(Arc<v1::WatchActivityResponse>, Bytes)>> = Mutex::default();
    Live::new(include_str!("page/index.html"), BEAT, move || {
        let picture = front.observer.activity.now(&front);
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((known, text)) if Arc::ptr_eq(known, &picture) => text.clone(),
            _ => {
                let text = Bytes::from(write(&picture).to_string());
                *last = Some((picture, text.clone()));
                text
            }
        }
    })
}

fn write(picture: &v1::WatchActivityResponse) -> Value {
    json!({
        "balancer": picture.balancer.as_ref().map(balancer),
        "runners": picture.runners.iter().map(runner).collect::<Vec<_>>(),
        "functions": picture.functions.iter().map(function).collect::<Vec<_>>(),
        "left_out": picture.functions_left_out,
        "zones": picture.zones.iter().map(|zone| json!({
            "zone": zone.zone, "runners": zone.runners, "used": zone.used, "unserved": zone.unserved,
            "desired_runners": zone.desired_runners,
        })).collect::<Vec<_>>(),
    })
}

fn ms(time: Option<prost_types::Duration>) -> u64 {
    time.map_or(0, |time| u64::try_from(convert::duration(time).as_millis()).unwrap_or(u64::MAX))
}

fn tally(calls: Option<&v1::CallTally>) -> Value {
    let calls = calls.cloned().unwrap_or_default();
    json!({
        "calls": calls.calls, "caller": calls.caller_errors, "function": calls.function_errors,
        "platform": calls.platform_errors, "cold": calls.cold,
        "times": calls.slots.iter().zip(&calls.counts).collect::<Vec<_>>(),
    })
}

fn balancer(balancer: &v1::BalancerActivity) -> Value {
    json!({
        // More digits than a number in JavaScript has.
        "name": balancer.name, "instance": format!("{:016x}", balancer.instance), "version": balancer.version,
        "up_ms": ms(balancer.up), "calls": tally(balancer.calls.as_ref()), "in_flight": balancer.in_flight,
        "queued": balancer.queued, "queued_bytes": balancer.queued_bytes, "unserved": balancer.unserved,
        "later": balancer.later.as_ref().map(|later| json!({
            "queued": later.queued, "running": later.running, "oldest_ms": ms(later.oldest),
            "submitted": later.submitted, "ended": later.ended, "dead": later.dead,
        })),
    })
}

fn runner(activity: &v1::RunnerActivity) -> Value {
    let runner = activity.runner.clone().unwrap_or_default();
    let state = match runner.link() {
        LinkState::Ready => "ready",
        LinkState::Draining => "draining",
        LinkState::Lost => "lost",
        LinkState::Connecting | LinkState::Unspecified => "connecting",
    };
    let capacity = runner.capacity.unwrap_or_default();
    let state =
        if state == "ready" && capacity.state() == RunnerState::Draining { "draining" } else { state };
    let resources = |r: Option<v1::Resources>| {
        let r = r.unwrap_or_default();
        json!({"memory": r.memory, "cpu_millis": r.cpu_millis, "slots": r.slots})
    };
    let sum = |of: fn(&v1::Warmth) -> u32| capacity.functions.iter().map(of).fold(0, u32::saturating_add);
    json!({
        "name": capacity.runner, "state": state, "reason": runner.reason, "zone": capacity.zone,
        "address": capacity.address, "age_ms": ms(runner.age),
        "total": resources(capacity.total), "free": resources(capacity.free),
        "reclaimable": resources(capacity.reclaimable),
        "idle": sum(|w| w.idle), "busy": sum(|w| w.busy), "waiting": capacity.waiting,
        "in_flight": capacity.in_flight, "calls": activity.calls, "ours": activity.in_flight,
    })
}

fn function(function: &v1::FunctionActivity) -> Value {
    json!({
        "name": function.function, "format": function.format, "memory": function.memory,
        "idle": function.idle, "busy": function.busy, "waiting": function.waiting, "runners": function.runners,
        "calls": tally(function.calls.as_ref()),
    })
}
