//! `stoker simulate`: a fleet on paper, for those who want to know before they buy or change.
//!
//! Nothing is asked of any server: the calls come from a file or are made up, and the fleet is described on the command line. What
//! decides is the code that balancers and runners decide with.

use std::path::Path;

use serde_json::json;
use stoker_core::resources::Resources;
use stoker_simulate::plot::Chart;
use stoker_simulate::trace::azure::{self, Selection};
use stoker_simulate::trace::synthetic::{Cloud, Steady};
use stoker_simulate::trace::{Micros, SECOND, Trace, micros};
use stoker_simulate::{Change, Kind, Placer, QUANTILES, Report, Scenario, run};

use crate::args::{Common, Output, Simulate};
use crate::failure::Failure;
use crate::output;

/// A run and what it is called.
struct Named {
    name: String,
    report: Report,
}

/// What the first run is called.
const AS_IT_IS: &str = "as it is";

/// Runs that are shorter say so: a launch takes seconds at worst, and a quarter of a run goes by before anything is counted.
const SHORT: Micros = 30 * SECOND;

/// The least memory of a runner, of which nothing but the smallest function has room.
const LEAST_MEMORY: u64 = 16 << 20;

pub fn simulate(args: Simulate, common: &Common) -> Result<(), Failure> {
    check(&args)?;
    let scenario = scenario(&args);
    let trace = trace(&args, &scenario)?;
    if trace.calls.is_empty() {
        return Err(Failure::usage("there are no calls in this trace", "choose another time or part of it"));
    }
    if let Some(at) = args.kill.filter(|at| micros(*at) >= trace.span) {
        let text = format!("the run ends before {} s, when a runner is to be killed", at.as_secs());
        return Err(Failure::usage(text, "choose a time within the run"));
    }
    let mut runs = Vec::new();
    for (at, placer) in args.placers.iter().enumerate() {
        let name = if at == 0 { AS_IT_IS.to_owned() } else { placer.as_str().to_owned() };
        runs.push(Named { name, report: run(&scenario.placed_by(*placer), &trace) });
    }
    let placer = args.placers.first().copied().unwrap_or(Placer::Stoker);
    for what in &args.what_if {
        let mut changed = scenario.placed_by(placer);
        let impossible = |text: String| Failure::usage(text, "change it to something smaller");
        let other = what.apply(&mut changed, &trace).map_err(impossible)?;
        let report = run(&changed, other.as_ref().unwrap_or(&trace));
        runs.push(Named { name: what.as_str().to_owned(), report });
    }
    if let Some(folder) = &args.plots {
        plots(folder, &runs)?;
    }
    match common.output {
        Output::Table => output::print(&table(&scenario, &trace, &runs)),
        Output::Json => output::print_json(&json!({
            "trace": {"title": trace.title, "functions": trace.functions.len(), "calls": trace.calls.len(),
                      "seconds": trace.span as f64 / SECOND as f64, "cores_busy": trace.work()},
            "runs": runs.iter().map(|named| json!({"name": named.name, "report": named.report})).collect::<Vec<_>>(),
        })),
    }
}

/// What no run makes sense with.
fn check(args: &Simulate) -> Result<(), Failure> {
    let wrong = |text: &str, advice: &str| Err(Failure::usage(text, advice));
    if args.memory < LEAST_MEMORY || args.cpu == 0 {
        return wrong(
            "no function has room on such a runner",
            "give --memory 16MiB at least, and some --cpu",
        );
    }
    if !(args.load > 0.0 && args.load <= 100.0) {
        return wrong("that is no load", "give --load as part of all cores, like 0.6; at most 100");
    }
    if !(args.part > 0.0 && args.part <= 1.0) {
        return wrong("that is no part of a trace", "give --part above 0, and 1 at most");
    }
    Ok(())
}

fn scenario(args: &Simulate) -> Scenario {
    let slots = u32::try_from((args.memory >> 23).clamp(1, 1000)).unwrap_or(1000);
    let size = Resources { memory: args.memory, cpu_millis: args.cpu, slots };
    let changes = args.kill.map(|at| {
        let back = args.back.map(micros);
        (micros(at), Change::Kill { runner: 0, back })
    });
    Scenario {
        runners: vec![Kind { count: args.runners, size }],
        balancers: args.balancers,
        function_cpu: args.function_cpu,
        idle_timeout: micros(args.idle_timeout),
        changes: changes.into_iter().collect(),
        seed: args.seed,
        ..Scenario::default()
    }
}

fn trace(args: &Simulate, scenario: &Scenario) -> Result<Trace, Failure> {
    let work = args.load * scenario.cores();
    let functions = args.functions;
    let seed = args.seed;
    match args.trace.as_str() {
        "steady" => Ok(Steady { functions, work, calls: args.calls, seed, ..Steady::default() }.trace()),
        "cloud" => Ok(Cloud { functions, work, span: micros(args.span), seed }.trace()),
        file => {
            let selection =
                Selection { from: args.from, span: args.span, part: args.part, cold: args.cold, seed };
            let path = Path::new(file);
            let read = if path.is_dir() { azure::of_2019 } else { azure::of_2021 };
            read(path, &selection).map_err(|error| {
                let advice =
                    "a trace is steady, cloud, the folder of Azure's files of 2019, or their file of 2021";
                Failure::usage(error.to_string(), advice)
            })
        }
    }
}

fn table(scenario: &Scenario, trace: &Trace, runs: &[Named]) -> String {
    let header = [
        "", "PLACER", "COLD", "P50", "P99", "P99.9", "TRIES", "LOAD ±", "UNFAIR", "IDLE MEM", "LOST",
        "RECOVERY",
    ];
    let ms = |ms: f64| output::human_us((ms * 1000.0) as u64);
    let row = |named: &Named| {
        let r = &named.report;
        let lost = if r.stormed { format!("{} (storm)", r.lost) } else { r.lost.to_string() };
        vec![
            named.name.clone(),
            r.placer.to_owned(),
            format!("{:.2} %", r.cold_percent),
            ms(r.added_p50_ms),
            ms(r.added_p99_ms),
            ms(r.added_p999_ms),
            format!("{:.2}", r.tries),
            format!("{:.0} %", r.load_variation * 100.0),
            format!("{:.1}", r.unfairness),
            format!("{:.0} %", r.idle_memory_percent),
            lost,
            r.recovery_s.map_or("-".to_owned(), |seconds| format!("{seconds:.0} s")),
        ]
    };
    let seconds = trace.span as f64 / SECOND as f64;
    let kind = scenario.runners.first().map_or(0, |kind| kind.count);
    let digits = usize::from(trace.work() < 10.0);
    let short = match trace.span < SHORT {
        true => {
            "\nThis is over before such a fleet is warm: it shows how a cold one begins. A longer one: more --calls, or --span."
        }
        false => "",
    };
    format!(
        "{}: {} calls in {seconds:.0} s, {:.digits$} of {:.0} cores busy; {kind} runners, {} balancers{short}\n\n{}",
        trace.title,
        trace.calls.len(),
        trace.work(),
        scenario.cores(),
        scenario.balancers,
        output::table(&header, runs.iter().map(row).collect()),
    )
}

fn plots(folder: &Path, runs: &[Named]) -> Result<(), Failure> {
    let series = |points: &dyn Fn(&Report) -> Vec<(f64, f64)>| {
        runs.iter()
            .map(|named| {
                let name = match named.name.as_str() {
                    AS_IT_IS => format!("{AS_IT_IS} ({})", named.report.placer),
                    other => other.to_owned(),
                };
                (name, points(&named.report))
            })
            .collect()
    };
    let over_time = |report: &Report, value: &dyn Fn(&stoker_simulate::Moment) -> f64| {
        let time = |at: usize| at as f64 * report.moment_s;
        report.moments.iter().enumerate().map(|(at, moment)| (time(at), value(moment))).collect()
    };
    let chart = |title: &str, x: &str, y: &str, series| Chart {
        title: title.to_owned(),
        x: x.to_owned(),
        nines: false,
        y: y.to_owned(),
        logarithmic: false,
        series,
    };
    // The tail is what matters, and only this stretches it.
    let nines = |quantile: f64| -(1.0 - quantile).log10();
    let curve =
        |report: &Report| QUANTILES.iter().map(|q| nines(*q)).zip(report.curve.iter().copied()).collect();
    let cold = |report: &Report| {
        over_time(report, &|moment| f64::from(moment.cold) * 100.0 / f64::from(moment.calls.max(1)))
    };
    let charts = [
        (
            "added",
            Chart {
                nines: true,
                logarithmic: true,
                ..chart("Time added to calls", "percentile of calls", "ms", series(&curve))
            },
        ),
        ("cold", chart("Cold starts", "s", "% of calls", series(&cold))),
        (
            "time",
            Chart {
                logarithmic: true,
                ..chart("Time added on average", "s", "ms", series(&|r| over_time(r, &|m| m.added_ms)))
            },
        ),
    ];
    let failed = |error: std::io::Error| {
        Failure::usage(
            format!("the plots cannot be written to {}: {error}", folder.display()),
            "choose another folder",
        )
    };
    std::fs::create_dir_all(folder).map_err(failed)?;
    for (name, chart) in charts {
        std::fs::write(folder.join(format!("{name}.svg")), chart.svg()).map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser as _;

    fn parse(line: &str) -> Simulate {
        let cli = Cli::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{error}"));
        match cli.command {
            Command::Simulate(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_run_becomes_a_row_a_change_another_and_both_are_drawn() {
        let folder = tempfile::tempdir().unwrap();
        let plots = folder.path().join("plots");
        let line = format!(
            "stoker simulate --runners 3 --calls 2000 --functions 50 --load 0.3 --placer stoker,fn-hash --what-if runners=+1 --kill 5s --plots {}",
            plots.display()
        );
        let args = parse(&line);
        let scenario = scenario(&args);
        let trace = trace(&args, &scenario).unwrap_or_else(|failure| panic!("{}", failure.what()));
        let report = run(&scenario, &trace);
        let text = table(&scenario, &trace, &[Named { name: "as it is".to_owned(), report }]);
        assert!(text.contains("3 runners") && text.contains("as it is") && text.contains("stoker"), "{text}");
        let common = Cli::try_parse_from(["stoker", "runners", "-o", "json"]).unwrap().common;
        simulate(args, &common).unwrap_or_else(|failure| panic!("{}", failure.what()));
        for name in ["added", "cold", "time"] {
            let svg = std::fs::read_to_string(plots.join(format!("{name}.svg"))).unwrap();
            assert_eq!(svg.matches("<polyline").count(), 3, "{name}");
        }
        for line in
            ["--memory 1MiB", "--cpu 0", "--load nan", "--load 0", "--part 2", "--calls 100 --kill 9h"]
        {
            let args = parse(&format!("stoker simulate --functions 5 {line}"));
            assert!(simulate(args, &common).is_err(), "{line}");
        }
        let missing = parse("stoker simulate --trace /nowhere.csv");
        let failed = super::trace(&missing, &scenario).err().map(|failure| failure.what().to_owned());
        assert!(failed.is_some_and(|text| text.contains("/nowhere.csv")));
    }
}
