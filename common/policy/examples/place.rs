//! How long it takes to place a call: `cargo run --release -p stoker-policy --example place [RUNNERS] [FUNCTIONS]`.

use std::hint::black_box;
use std::time::Instant;

use stoker_core::capacity::Warmth;
use stoker_core::resources::{Ask, Resources};
use stoker_policy::board::{Board, Peer, Plan, Wanted};
use stoker_policy::placement::key;

#[derive(Clone)]
struct Open;

impl Peer for Open {
    fn is_open(&self) -> bool {
        true
    }
    fn load(&self) -> u32 {
        0
    }
}

fn main() {
    let mut words = std::env::args().skip(1).map(|word| word.parse::<u64>().expect("a number"));
    let (runners, functions) = (words.next().unwrap_or(1000), words.next().unwrap_or(10_000));
    let now = Instant::now();
    let mut board = Board::default();
    let mut seats = Vec::new();
    for n in 0..runners {
        let total = Resources { memory: 16 << 30, cpu_millis: 16_000, slots: 100 };
        board.join(key(&n.to_le_bytes()), total, now, |seat| {
            seats.push(seat);
            Open
        });
    }
    let wanted = |n: u64| {
        let function = key(&(n % functions).to_le_bytes());
        Wanted { function, version: function, ask: Ask { memory: 128 << 20, cpu_millis: 0 } }
    };
    let report = |what: &str, calls: u64, begun: Instant| {
        println!("{what:44} {:7.3} us", begun.elapsed().as_secs_f64() * 1e6 / calls as f64);
    };
    let begun = Instant::now();
    (0..functions).for_each(|n| _ = black_box(Plan::new(wanted(n), n).next(&mut board, now)));
    report("first call of a function: all are ranked", functions, begun);
    let calls = 1_000_000;
    let begun = Instant::now();
    (0..calls).for_each(|n| _ = black_box(Plan::new(wanted(n * 7919), n).next(&mut board, now)));
    report("cold: by rank", calls, begun);
    let idle = Warmth { idle: 1 << 20, ..Warmth::default() };
    let busy = Warmth { idle: 0, busy: 4, waiting: 2 };
    for (warmth, what) in
        [(idle, "warm, with what is noted of its use and its end"), (busy, "the same, all are busy")]
    {
        for n in 0..functions {
            // As after a day: each is warm on a few, some on many.
            let many = if n % 100 == 0 { 200 } else { 3 };
            (0..many).for_each(|at| {
                board.said(seats[((n + at) % runners) as usize], wanted(n).version, warmth, now)
            });
        }
        let begun = Instant::now();
        for n in 0..calls {
            let wanted = wanted(n * 7919);
            let choice = Plan::new(wanted, n).next(&mut board, now).expect("there are runners");
            board.used(choice.seat, wanted.version);
            board.said(choice.seat, wanted.version, warmth, now);
        }
        report(what, calls, begun);
    }
    let begun = Instant::now();
    for n in 0..calls / 10 {
        let mut plan = Plan::new(wanted(n * 7919), n);
        while let Some(choice) = plan.next(&mut board, now) {
            black_box(choice.seat);
        }
    }
    report("a full fleet: eight refusals and a spill", calls / 10, begun);
}
