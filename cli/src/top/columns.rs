//! The columns of the tables: what stands in them, how they are sorted, and which go first where a terminal is narrow.

use std::cmp::Ordering;
use std::time::Duration;

use stoker_core::units::format_cpu;

use super::model::{BalancerRow, FunctionRow, Held, RunnerRow, State};
use super::ui::Sort;
use crate::output;

/// A column. The first of a table is its name, on the left, and has the room that the others leave.
pub struct Column<R> {
    pub title: &'static str,
    pub width: u16,
    /// Those with a higher number go first when there is no room.
    pub spare: u8,
    pub text: fn(&R) -> String,
    pub order: fn(&R, &R) -> Ordering,
    /// Something to look at.
    pub bad: fn(&R) -> bool,
}

fn fine<R>(_: &R) -> bool {
    false
}

pub const BALANCERS: [Column<BalancerRow>; 9] = [
    Column {
        title: "BALANCER",
        width: 16,
        spare: 0,
        text: |r| r.name.clone(),
        order: |a, b| a.name.cmp(&b.name),
        bad: fine,
    },
    Column {
        title: "STATE",
        width: 9,
        spare: 0,
        text: |r| match &r.state {
            State::Asked => "asked".to_owned(),
            State::Live => "live".to_owned(),
            State::Lost { .. } => "lost".to_owned(),
        },
        order: |_, _| Ordering::Equal,
        bad: |r| matches!(r.state, State::Lost { .. }),
    },
    Column {
        title: "CALLS/S",
        width: 9,
        spare: 0,
        text: |r| rate(r.gain.rate),
        order: |_, _| Ordering::Equal,
        bad: fine,
    },
    Column {
        title: "P99",
        width: 9,
        spare: 2,
        text: |r| time(r.gain.percentile(0.99)),
        order: |_, _| Ordering::Equal,
        bad: fine,
    },
    Column {
        title: "INSIDE",
        width: 7,
        spare: 1,
        text: |r| r.activity.in_flight.to_string(),
        order: |_, _| Ordering::Equal,
        bad: fine,
    },
    Column {
        title: "QUEUED",
        width: 7,
        spare: 0,
        text: |r| r.activity.queued.to_string(),
        order: |_, _| Ordering::Equal,
        bad: |r| r.activity.queued > 0,
    },
    Column {
        title: "UNSERVED/S",
        width: 10,
        spare: 3,
        text: |r| rate(r.unserved),
        order: |_, _| Ordering::Equal,
        bad: |r| r.unserved.is_some_and(|rate| rate > 0.0),
    },
    // Waiting, how long the oldest has been due, and how fast they are made.
    Column { title: "LATER", width: 20, spare: 4, text: later, order: |_, _| Ordering::Equal, bad: fine },
    Column {
        title: "UP",
        width: 6,
        spare: 5,
        text: |r| r.activity.up.map_or("-".to_owned(), |up| age(stoker_proto::convert::duration(up))),
        order: |_, _| Ordering::Equal,
        bad: fine,
    },
];

pub const RUNNERS: [Column<RunnerRow>; 11] = [
    Column {
        title: "RUNNER",
        width: 14,
        spare: 0,
        text: |r| r.name.clone(),
        order: |a, b| a.name.cmp(&b.name),
        bad: fine,
    },
    Column {
        title: "STATE",
        width: 10,
        spare: 0,
        text: |r| r.state.to_owned(),
        order: |a, b| a.state.cmp(b.state),
        bad: |r| r.state != "ready",
    },
    Column {
        title: "ZONE",
        width: 8,
        spare: 6,
        text: |r| r.capacity.zone.clone(),
        order: |a, b| a.capacity.zone.cmp(&b.capacity.zone),
        bad: fine,
    },
    Column {
        title: "MEMORY",
        width: 22,
        spare: 1,
        text: |r| format!("{} {:>9}", bar(r.memory, 12), output::human_size(r.memory.total)),
        order: |a, b| a.memory.busy.cmp(&b.memory.busy),
        bad: fine,
    },
    Column {
        title: "CPU",
        width: 17,
        spare: 2,
        text: |r| {
            format!("{} {:>4}", bar(r.cpu, 12), format_cpu(u32::try_from(r.cpu.total).unwrap_or(u32::MAX)))
        },
        order: |a, b| a.cpu.busy.cmp(&b.cpu.busy),
        bad: fine,
    },
    Column {
        title: "BUSY",
        width: 5,
        spare: 0,
        text: |r| r.busy.to_string(),
        order: |a, b| a.busy.cmp(&b.busy),
        bad: fine,
    },
    Column {
        title: "IDLE",
        width: 5,
        spare: 0,
        text: |r| r.idle.to_string(),
        order: |a, b| a.idle.cmp(&b.idle),
        bad: fine,
    },
    Column {
        title: "WAITING",
        width: 7,
        spare: 3,
        text: |r| r.capacity.waiting.to_string(),
        order: |a, b| a.capacity.waiting.cmp(&b.capacity.waiting),
        bad: fine,
    },
    Column {
        title: "CALLS/S",
        width: 9,
        spare: 0,
        text: |r| rate(r.rate),
        order: |a, b| number(a.rate, b.rate),
        bad: fine,
    },
    Column {
        title: "SLOTS",
        width: 9,
        spare: 5,
        text: |r| format!("{}/{}", r.slots.busy + r.slots.idle, r.slots.total),
        order: |a, b| a.slots.busy.cmp(&b.slots.busy),
        bad: fine,
    },
    Column {
        title: "HEARD",
        width: 6,
        spare: 4,
        text: |r| age(r.age),
        order: |a, b| a.age.cmp(&b.age),
        bad: |r| r.age > QUIET,
    },
];

/// A runner that has not been heard of for so long has missed several beats.
const QUIET: Duration = Duration::from_secs(15);

pub const FUNCTIONS: [Column<FunctionRow>; 10] = [
    Column {
        title: "FUNCTION",
        width: 18,
        spare: 0,
        text: |r| r.name.clone(),
        order: |a, b| a.name.cmp(&b.name),
        bad: fine,
    },
    Column {
        title: "CALLS/S",
        width: 9,
        spare: 0,
        text: |r| rate(r.gain.rate),
        order: |a, b| number(a.gain.rate, b.gain.rate),
        bad: fine,
    },
    Column {
        title: "P50",
        width: 9,
        spare: 3,
        text: |r| time(r.gain.percentile(0.5)),
        order: |a, b| a.gain.percentile(0.5).cmp(&b.gain.percentile(0.5)),
        bad: fine,
    },
    Column {
        title: "P99",
        width: 9,
        spare: 0,
        text: |r| time(r.gain.percentile(0.99)),
        order: |a, b| a.gain.percentile(0.99).cmp(&b.gain.percentile(0.99)),
        bad: fine,
    },
    Column {
        title: "COLD",
        width: 7,
        spare: 2,
        text: |r| share(r.gain.share(r.gain.cold)),
        order: |a, b| number(a.gain.share(a.gain.cold), b.gain.share(b.gain.cold)),
        bad: fine,
    },
    Column {
        title: "ERRORS",
        width: 7,
        spare: 0,
        text: |r| share(r.gain.share(r.gain.errors())),
        order: |a, b| number(a.gain.share(a.gain.errors()), b.gain.share(b.gain.errors())),
        bad: |r| r.gain.errors() > 0,
    },
    Column {
        title: "RUNNING",
        width: 7,
        spare: 1,
        text: |r| r.busy.to_string(),
        order: |a, b| a.busy.cmp(&b.busy),
        bad: fine,
    },
    Column {
        title: "WAITING",
        width: 7,
        spare: 4,
        text: |r| r.waiting.to_string(),
        order: |a, b| a.waiting.cmp(&b.waiting),
        bad: |r| r.waiting > 0,
    },
    Column {
        title: "IDLE",
        width: 5,
        spare: 2,
        text: |r| r.idle.to_string(),
        order: |a, b| a.idle.cmp(&b.idle),
        bad: fine,
    },
    Column {
        title: "RUNNERS",
        width: 7,
        spare: 5,
        text: |r| r.runners.to_string(),
        order: |a, b| a.runners.cmp(&b.runners),
        bad: fine,
    },
];

/// Rows in the order of a column; those that are equal there by the first.
pub fn sorted<'a, R>(mut rows: Vec<&'a R>, columns: &[Column<R>], sort: Sort) -> Vec<&'a R> {
    let name = columns[0].order;
    let order = columns.get(sort.column).map_or(name, |column| column.order);
    rows.sort_by(|a, b| {
        let by = order(a, b);
        if sort.down { by.reverse() } else { by }.then_with(|| name(a, b))
    });
    rows
}

/// Which of the columns have room side by side in `width`, with a blank between them.
pub fn fitting<R>(columns: &[Column<R>], width: u16) -> Vec<usize> {
    let mut shown: Vec<usize> = (0..columns.len()).collect();
    loop {
        let wide: u16 = shown.iter().map(|at| columns[*at].width + 1).sum();
        let spare =
            shown.iter().copied().filter(|at| columns[*at].spare > 0).max_by_key(|at| columns[*at].spare);
        match spare {
            Some(spare) if wide > width + 1 => shown.retain(|at| *at != spare),
            _ => return shown,
        }
    }
}

/// A name that fits into `width`. What tells names apart stands at their beginning and at their end: the middle is left out.
pub fn shortened(name: String, width: usize) -> String {
    let length = name.chars().count();
    if length <= width {
        return name;
    }
    let beginning = width.saturating_sub(1) / 2;
    let end = width.saturating_sub(1) - beginning;
    name.chars().take(beginning).chain(['…']).chain(name.chars().skip(length - end)).collect()
}

fn number(a: Option<f64>, b: Option<f64>) -> Ordering {
    a.unwrap_or(-1.0).total_cmp(&b.unwrap_or(-1.0))
}

/// What is at work, what is idle, what is free.
pub fn bar(held: Held, width: usize) -> String {
    let cells = |n: u64| match held.total {
        0 => 0,
        // Some is more than nothing.
        total => ((n as f64 / total as f64 * width as f64).round() as usize).max(usize::from(n > 0)),
    };
    let busy = cells(held.busy).min(width);
    let idle = cells(held.idle).min(width - busy);
    format!("{}{}{}", "█".repeat(busy), "▒".repeat(idle), "·".repeat(width - busy - idle))
}

pub fn rate(rate: Option<f64>) -> String {
    match rate {
        None => "-".to_owned(),
        Some(rate) if rate >= 100.0 => thousands(rate.round() as u64),
        Some(rate) if rate >= 10.0 => format!("{rate:.1}"),
        Some(rate) if rate > 0.0 => format!("{rate:.2}"),
        Some(_) => "0".to_owned(),
    }
}

fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

pub fn time(us: Option<u64>) -> String {
    us.map_or("-".to_owned(), |us| if us == 0 { "0 µs".to_owned() } else { output::human_us(us) })
}

pub fn share(share: Option<f64>) -> String {
    match share {
        None => "-".to_owned(),
        Some(0.0) => "0 %".to_owned(),
        Some(share) if share < 0.001 => "<0.1 %".to_owned(),
        Some(share) if share < 0.1 => format!("{:.1} %", share * 100.0),
        Some(share) => format!("{:.0} %", share * 100.0),
    }
}

pub fn age(age: Duration) -> String {
    match age.as_secs() {
        0..10 => format!("{:.1} s", age.as_secs_f64()),
        s @ 10..120 => format!("{s} s"),
        s @ 120..7200 => format!("{} m", s / 60),
        s @ 7200..172_800 => format!("{} h", s / 3600),
        s => format!("{} d", s / 86_400),
    }
}

fn later(row: &BalancerRow) -> String {
    let Some(later) = &row.activity.later else { return "-".to_owned() };
    let oldest = later
        .oldest
        .map_or(String::new(), |oldest| format!(" {}", age(stoker_proto::convert::duration(oldest))));
    format!("{}{oldest}, {}/s", later.queued, rate(row.later))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        let rates = [None, Some(0.0), Some(0.254), Some(12.34), Some(1_234_567.0)].map(rate);
        assert_eq!(rates, ["-", "0", "0.25", "12.3", "1,234,567"]);
        assert_eq!(
            [None, Some(0.0), Some(0.0001), Some(0.05), Some(1.0)].map(share),
            ["-", "0 %", "<0.1 %", "5.0 %", "100 %"]
        );
        let ages = [500, 59_000, 600_000, 86_400_000, 864_000_000].map(|ms| age(Duration::from_millis(ms)));
        assert_eq!(ages, ["0.5 s", "59 s", "10 m", "24 h", "10 d"]);
    }

    #[test]
    fn a_bar_shows_all_that_is_and_no_more() {
        assert_eq!(bar(Held { busy: 50, idle: 25, total: 100 }, 8), "████▒▒··");
        assert_eq!(bar(Held { busy: 1, idle: 1, total: 1000 }, 4), "█▒··");
        assert_eq!(bar(Held { busy: 1000, idle: 1000, total: 1000 }, 4), "████");
        assert_eq!(bar(Held::default(), 4), "····");
    }

    #[test]
    fn long_names_can_be_told_apart_where_they_are_cut() {
        let short = |name: &str, width| shortened(name.to_owned(), width);
        assert_eq!(short("shop/report", 11), "shop/report");
        assert_eq!(short("shop/report-of-the-day-1", 11), "shop/…day-1");
        assert_eq!(short("shop/bericht-für-äöü", 6), "sh…äöü");
        assert_eq!(short("shop/report", 1), "…");
    }

    #[test]
    fn a_narrow_terminal_has_the_columns_that_matter() {
        let titles =
            |width| fitting(&FUNCTIONS, width).into_iter().map(|at| FUNCTIONS[at].title).collect::<Vec<_>>();
        assert_eq!(titles(200).len(), FUNCTIONS.len());
        assert_eq!(titles(60), ["FUNCTION", "CALLS/S", "P99", "ERRORS", "RUNNING"]);
        assert_eq!(titles(10), ["FUNCTION", "CALLS/S", "P99", "ERRORS"], "some are always there");
        for columns in [fitting(&RUNNERS, 80), fitting(&FUNCTIONS, 80)] {
            assert!(columns.len() >= 6, "{columns:?}");
        }
    }
}
