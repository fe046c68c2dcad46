//! What the kernel says of this process, under the names that every Prometheus client uses.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::param::{clock_ticks_per_second, page_size};

use super::Metrics;

pub(super) fn declare(metrics: &Metrics) {
    let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    metrics.gauged("process_start_time_seconds", "When the process started", move || started);
    metrics.gauged("process_resident_memory_bytes", "Memory that is in use", || resident().unwrap_or(0.0));
    metrics.gauged("process_open_fds", "Open files and sockets", || {
        fs::read_dir("/proc/self/fd").map_or(0.0, |open| open.count() as f64)
    });
    metrics.seconds("process_cpu_seconds", "CPU time that was used", || cpu().unwrap_or(0.0));
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
