//! Placing a call allocates nothing that grows with the fleet: counted, not timed.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Instant;

use stoker_core::capacity::Warmth;
use stoker_core::resources::{Ask, Resources};
use stoker_policy::board::{Board, Peer, Plan, Wanted};
use stoker_policy::placement::key;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes to the system's allocator as it came.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

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

#[test]
fn a_call_among_a_thousand_runners_allocates_nothing() {
    let now = Instant::now();
    let mut board = Board::default();
    let mut seats = Vec::new();
    for n in 0..1000u64 {
        let total = Resources { memory: 16 << 30, cpu_millis: 16_000, slots: 100 };
        board.join(key(&n.to_le_bytes()), total, now, |seat| {
            seats.push(seat);
            Open
        });
    }
    let wanted = |n: u64| {
        let function = key(&n.to_le_bytes());
        Wanted { function, version: function, ask: Ask { memory: 128 << 20, cpu_millis: 0 } }
    };
    let idle = |idle| Warmth { idle, ..Warmth::default() };
    for n in 0..1000 {
        // A first call ranks its function; some are warm somewhere, one of them everywhere.
        Plan::new(wanted(n), n).next(&mut board, now);
        (0..n % 4)
            .for_each(|at| board.said(seats[(n + at) as usize % 1000], wanted(n).version, idle(2), now));
    }
    seats.iter().for_each(|seat| board.said(*seat, wanted(0).version, idle(9), now));
    let before = COUNT.with(Cell::get);
    for n in 0..20_000 {
        let wanted = wanted(n % 1000);
        let mut plan = Plan::new(wanted, n);
        // Every third is refused four times.
        for _ in 0..if n % 3 == 0 { 5 } else { 1 } {
            let choice = plan.next(&mut board, now).expect("there are many");
            board.refused(choice.seat, now);
            board.freed(choice.seat);
            board.used(choice.seat, wanted.version);
            let warmth = if n % 5 == 0 { Warmth { idle: 0, busy: 2, waiting: 1 } } else { idle(2) };
            board.said(choice.seat, wanted.version, warmth, now);
        }
    }
    let count = COUNT.with(Cell::get) - before;
    // Lists of warm runners grow where new ones are warm: a few times each, and not per call.
    assert!(count < 3_000, "{count} allocations in 20,000 calls");
}
