//! Every placer over the same calls, one line each: `cargo run --release -p stoker-simulate --example compare [LOAD] [SEED] [SCENARIO]`.

use stoker_simulate::trace::synthetic::Steady;
use stoker_simulate::{Placer, Scenario, run};

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let word = |at: usize, or: &str| words.get(at).cloned().unwrap_or_else(|| or.to_owned());
    let load: f64 = word(0, "0.6").parse().expect("the load is a number");
    let seed: u64 = word(1, "1").parse().expect("the seed is a number");
    let mut scenario = Scenario { seed, ..Scenario::default() };
    match word(2, "base").as_str() {
        "free" => scenario.launches_compute = false,
        "one" => scenario.balancers = 1,
        "sixteen" => scenario.balancers = 16,
        "half" => scenario.runners[0].size.memory /= 2,
        "hundred" => scenario.runners[0].count = 100,
        _ => {}
    }
    let functions = if scenario.runners[0].count == 100 { 5000 } else { 1000 };
    let trace = Steady { work: load * scenario.cores(), seed, functions, ..Steady::default() }.trace();
    println!("{}, {} calls, {:.1} s", trace.title, trace.calls.len(), trace.span as f64 / 1e6);
    let only = word(3, "");
    for placer in Placer::ALL.into_iter().filter(|placer| only.is_empty() || placer.as_str() == only) {
        let begun = std::time::Instant::now();
        let r = run(&scenario.placed_by(placer), &trace);
        println!(
            "{:18} cold {:6.2} %  p50 {:7.2}  p99 {:8.1}  p99.9 {:8.1}  tries {:5.2}  cv {:.2}  unfair {:7.1}  idle {:4.1} %  lost {:5}  launches {:6.1} evict {:6.1} pre {}/{} {} {:.1?}",
            r.placer,
            r.cold_percent,
            r.added_p50_ms,
            r.added_p99_ms,
            r.added_p999_ms,
            r.tries,
            r.load_variation,
            r.unfairness,
            r.idle_memory_percent,
            r.lost,
            r.launches_per_1000,
            r.evictions_per_1000,
            r.prewarm_hits,
            r.prewarmed,
            if r.stormed { "STORM" } else { "" },
            begun.elapsed(),
        );
    }
}
