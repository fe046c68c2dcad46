//! What runs here, and what the kernel says of the process, under the names that every Prometheus client uses.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

use super::{Def, Gauge, Listed, Metrics, Read};

static BUILD: Def<Gauge> = Def::gauge("stoker_build_info", "What runs here: 1, and all of it in labels")
    .labels(&[("program", "`stoker-lb` or `stoker-runner`"), ("version", "its version")]);
static START: Read = Read::gauge("process_start_time_seconds", "When the process started, since 1970");
static RESIDENT: Read = Read::gauge("process_resident_memory_bytes", "Memory of the process that is in use");
static OPEN: Read = Read::gauge("process_open_fds", "Open files and sockets of the process");
static MOST_OPEN: Read = Read::gauge("process_max_fds", "How many files and sockets the process may open");
static CPU: Read = Read::counter("process_cpu_seconds", "CPU time that the process used");

/// The metrics of every process.
pub static LISTED: Listed =
    &[&BUILD.about, &START.about, &RESIDENT.about, &OPEN.about, &MOST_OPEN.about, &CPU.about];

pub(super) fn declare(metrics: &Metrics, program: &'static str, version: &'static str) {
    metrics.labelled(&BUILD).with(&[program, version]).set(1);
    let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    metrics.read(&START, move || started);
    metrics.read(&RESIDENT, || resident().unwrap_or(0.0));
    metrics.read(&OPEN, || fs::read_dir("/proc/self/fd").map_or(0.0, |open| open.count() as f64));
    metrics
        .read(&MOST_OPEN, || getrlimit(Resource::Nofile).current.map_or(f64::INFINITY, |most| most as f64));
    metrics.read(&CPU, || cpu().unwrap_or(0.0));
}

fn resident() -> Option<f64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: f64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * page_size() as f64)
}

fn cpu() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The program's name, in parentheses, may have spaces.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) / clock_ticks_per_second() as f64)
}
