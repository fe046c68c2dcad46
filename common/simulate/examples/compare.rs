//! Every placer over the same calls, one line each: `cargo run --release -p stoker-simulate --example compare [LOAD] [SEED] [SCENARIO] [PLACER]`.
//! A scenario is `base`, or what differs from it, with commas: `free,sixteen`.

use stoker_core::resources::Resources;
use stoker_simulate::trace::synthetic::Steady;
use stoker_simulate::{Kind, Placer, Scenario, run};

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let word = |at: usize, or: &str| words.get(at).cloned().unwrap_or_else(|| or.to_owned());
    let load: f64 = word(0, "0.6").parse().expect("the load is a number");
    let seed: u64 = word(1, "1").parse().expect("the seed is a number");
    let mut scenario = Scenario { seed, ..Scenario::default() };
    let (mut functions, mut skew) = (1000, Steady::default().skew);
    for change in word(2, "base").split(',') {
        let size = scenario.runners[0].size;
        match change {
            "free" => scenario.launches_compute = false,
            "one" => scenario.balancers = 1,
            "sixteen" => scenario.balancers = 16,
            "half" => scenario.runners[0].size.memory /= 2,
            "double" => scenario.runners[0].size.memory *= 2,
            "hundred" => (scenario.runners[0].count, functions) = (100, 5000),
            "flat" => skew = 0.8,
            "steep" => skew = 1.5,
            "mixed" => {
                let of = |times: f64| Resources {
                    memory: (size.memory as f64 * times) as u64,
                    cpu_millis: (f64::from(size.cpu_millis) * times) as u32,
                    slots: (f64::from(size.slots) * times) as u32,
                };
                let kinds = [(5, 2.0), (10, 1.0), (5, 0.5)];
                scenario.runners = kinds.map(|(count, times)| Kind { count, size: of(times) }).to_vec();
            }
            "base" => {}
            other => panic!("there is no scenario `{other}`"),
        }
    }
    let trace = Steady { work: load * scenario.cores(), seed, functions, skew, ..Steady::default() }.trace();
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
