use super::*;
use crate::placement::{MAX_TRIES, RAMP, key};
use proptest::prelude::*;
use std::cell::Cell;
use std::collections::HashSet;
use std::rc::Rc;
use std::time::Duration;

#[derive(Clone)]
struct Runner(Rc<(Seat, Cell<bool>, Cell<u32>)>);

impl Peer for Runner {
    fn is_open(&self) -> bool {
        self.0.1.get()
    }
    fn load(&self) -> u32 {
        self.0.2.get()
    }
}

impl Runner {
    fn seat(&self) -> Seat {
        self.0.0
    }
}

const SIZE: Resources = Resources { memory: 16 << 30, cpu_millis: 16_000, slots: 100 };
const ASK: Ask = Ask { memory: 128 << 20, cpu_millis: 0 };

fn join(board: &mut Board<Runner>, n: u64, size: Resources, now: Instant) -> Runner {
    board
        .join(key(&n.to_le_bytes()), size, now, |seat| Runner(Rc::new((seat, Cell::new(true), Cell::new(0)))))
}

fn board(count: u64, now: Instant) -> (Board<Runner>, Vec<Runner>) {
    let mut board = Board::default();
    let runners = (0..count).map(|n| join(&mut board, n, SIZE, now)).collect();
    (board, runners)
}

fn wanted(n: u64) -> Wanted {
    let function = key(&n.to_le_bytes());
    Wanted { function, version: function, ask: ASK }
}

fn order(board: &mut Board<Runner>, wanted: Wanted, seed: u64, now: Instant) -> Vec<(Seat, Why)> {
    let mut plan = Plan::new(wanted, seed);
    std::iter::from_fn(|| plan.next(board, now)).map(|choice| (choice.seat, choice.why)).collect()
}

fn home(board: &mut Board<Runner>, n: u64, now: Instant) -> Option<Seat> {
    Plan::new(wanted(n), 1).next(board, now).map(|choice| choice.seat)
}

fn idle(idle: u32) -> Warmth {
    Warmth { idle, ..Warmth::default() }
}

fn busy(busy: u32, waiting: u32) -> Warmth {
    Warmth { idle: 0, busy, waiting }
}

#[test]
fn a_lost_runner_moves_only_its_share() {
    let now = Instant::now();
    let (mut board, runners) = board(20, now);
    let before: Vec<_> = (0..4000).map(|n| home(&mut board, n, now)).collect();
    let lost = runners[7].seat();
    board.leave(lost);
    let mut moved = 0;
    for (n, before) in (0..4000).zip(before) {
        let after = home(&mut board, n, now);
        if before == Some(lost) {
            moved += 1;
            assert_ne!(after, before);
        } else {
            assert_eq!(after, before, "a function whose runner stayed does not move");
        }
    }
    // The gate: at most one and a half times what is due.
    assert!((100..=4000 * 3 / 2 / 20).contains(&moved), "{moved} of 4000 moved, a twentieth was due");
}

#[test]
fn memory_is_share() {
    let now = Instant::now();
    let (mut board, _) = board(3, now);
    let large = join(&mut board, 3, Resources { memory: 3 * SIZE.memory, ..SIZE }, now);
    let hits = (0..6000).filter(|n| home(&mut board, *n, now) == Some(large.seat())).count();
    assert!((2700..3300).contains(&hits), "{hits} of 6000, half was due");
}

#[test]
fn warm_ones_come_first_until_they_are_used_up_or_void() {
    let now = Instant::now();
    let (mut board, runners) = board(6, now);
    let wanted = wanted(7);
    let cold = home(&mut board, 7, now).unwrap();
    let other = runners.iter().find(|runner| runner.seat() != cold).unwrap();
    let first = |board: &mut Board<Runner>, now| order(board, wanted, 3, now)[0];
    board.said(other.seat(), wanted.version, idle(2), now);
    assert_eq!(first(&mut board, now), (other.seat(), Why::Warm { idle: 2, age: Duration::ZERO }));
    // A refusal of another function does not hold back one that is warm there.
    board.refused(other.seat(), now);
    assert_eq!(first(&mut board, now).0, other.seat());
    board.used(other.seat(), wanted.version);
    board.used(other.seat(), wanted.version);
    assert_eq!(first(&mut board, now), (cold, Why::Rank));
    assert!(order(&mut board, wanted, 3, now).iter().all(|(seat, _)| *seat != other.seat()), "it is full");
    board.freed(other.seat());
    assert!(order(&mut board, wanted, 3, now).iter().any(|(seat, _)| *seat == other.seat()));
    // A whole record that does not name it, its age, and the end of its life each make a hint void.
    board.said(other.seat(), wanted.version, idle(2), now);
    assert_eq!(first(&mut board, now + HINT_TTL).0, cold);
    board.said(other.seat(), wanted.version, idle(2), now);
    board.spoke(other.seat(), [(9, idle(1))], now);
    assert_eq!(first(&mut board, now).0, cold);
    board.said(other.seat(), wanted.version, idle(2), now);
    board.renew(other.seat(), now);
    assert_eq!(first(&mut board, now).0, cold);
}

#[test]
fn three_warm_ones_share_the_calls() {
    let now = Instant::now();
    let (mut board, runners) = board(40, now);
    for count in [3, 30] {
        runners[..count].iter().for_each(|runner| board.said(runner.seat(), wanted(1).version, idle(9), now));
        let firsts: HashSet<_> = (0..400).map(|seed| order(&mut board, wanted(1), seed, now)[0].0).collect();
        assert_eq!(firsts.len(), count);
    }
}

#[test]
fn where_all_are_busy_the_shortest_line_is_asked() {
    let now = Instant::now();
    let (mut board, _runners) = board(6, now);
    let wanted = wanted(7);
    let ranked: Vec<Seat> = order(&mut board, wanted, 3, now).iter().map(|(seat, _)| *seat).collect();
    let (home, next) = (ranked[0], ranked[1]);
    let first = |board: &mut Board<Runner>, now| order(board, wanted, 3, now)[0];
    // Equal lines: the best ranked, so that warmth gathers.
    board.said(next, wanted.version, busy(4, 0), now);
    board.said(home, wanted.version, busy(4, 0), now);
    assert_eq!(first(&mut board, now), (home, Why::Line { busy: 4, waiting: 0, age: Duration::ZERO }));
    // Each call that goes there makes it longer, and so they take turns.
    let mut asked = [0; 2];
    for _ in 0..20 {
        let (seat, _) = first(&mut board, now);
        board.used(seat, wanted.version);
        asked[usize::from(seat == next)] += 1;
    }
    assert_eq!(asked, [10, 10]);
    // A line is as long as those who work are few.
    board.said(home, wanted.version, busy(8, 7), now);
    board.said(next, wanted.version, busy(1, 1), now);
    assert_eq!(first(&mut board, now).0, home);
    // Somebody idle is better than any line, and a runner where nothing of it runs is asked last.
    board.said(next, wanted.version, idle(1), now);
    assert_eq!(first(&mut board, now), (next, Why::Warm { idle: 1, age: Duration::ZERO }));
    assert_eq!(order(&mut board, wanted, 3, now)[1].0, home);
    // Nor is one asked that refused, or of which nothing was heard for long.
    board.refused(home, now);
    board.said(next, wanted.version, busy(0, 0), now);
    assert_eq!(first(&mut board, now), (next, Why::Rank));
    assert_eq!(first(&mut board, now + HINT_TTL), (home, Why::Rank));
    // Of many some are drawn, and none that is much worse than the others.
    let (mut board, runners) = self::board(40, now);
    let all: Vec<Seat> = runners.iter().map(Runner::seat).collect();
    all.iter().for_each(|seat| board.said(*seat, wanted.version, busy(1, 0), now));
    board.said(all[11], wanted.version, busy(1, 50), now);
    for seed in 0..200 {
        assert_ne!(order(&mut board, wanted, seed, now)[0].0, all[11]);
    }
}

#[test]
fn a_young_runner_gets_its_functions_one_after_the_other_and_is_not_left_out() {
    let start = Instant::now();
    let (mut board, old) = board(3, start);
    let now = start + 10 * RAMP;
    let young = join(&mut board, 9, SIZE, now);
    let at = |board: &mut Board<Runner>, now| -> HashSet<u64> {
        (0..2000).filter(|n| home(board, *n, now) == Some(young.seat())).collect()
    };
    let (first, middle, last) =
        (at(&mut board, now), at(&mut board, now + RAMP / 2), at(&mut board, now + RAMP));
    assert!(first.len() < 30 && (170..330).contains(&middle.len()) && (420..580).contains(&last.len()));
    assert!(first.is_subset(&middle) && middle.is_subset(&last), "each moves once");
    // Where nobody older is left it is asked.
    old.iter().for_each(|runner| runner.0.1.set(false));
    let unwilling = (0..2000).find(|n| !middle.contains(n)).unwrap();
    assert_eq!(order(&mut board, wanted(unwilling), 1, now)[0], (young.seat(), Why::Young));
    // And where all are young nobody steps back.
    let (mut fresh, _) = self::board(4, now);
    let homes: HashSet<_> =
        (0..200).map(|n| order(&mut fresh, wanted(n), 1, now)[0]).map(|(seat, _)| seat).collect();
    assert_eq!(homes.len(), 4);
}

#[test]
fn many_runners_are_eight_tries_and_one_spill_to_the_less_loaded() {
    let now = Instant::now();
    let (mut board, runners) = board(50, now);
    runners.iter().for_each(|runner| runner.0.2.set(5));
    let order = order(&mut board, wanted(7), 3, now);
    assert_eq!(order.len(), MAX_TRIES + 1);
    assert!(order[..MAX_TRIES].iter().all(|(_, why)| *why == Why::Rank));
    assert_eq!(order[MAX_TRIES].1, Why::Spill);
    let two = self::board(2, now);
    let (mut board, runners) = two;
    runners[0].0.2.set(9);
    runners.iter().for_each(|runner| board.refused(runner.seat(), now));
    assert!(self::order(&mut board, wanted(7), 3, now).is_empty());
    assert_eq!(self::order(&mut board, wanted(7), 3, now + FULL_FOR).len(), 2);
}

#[test]
fn a_seat_is_used_again_and_late_words_reach_nobody() {
    let now = Instant::now();
    let (mut board, runners) = board(2, now);
    let gone = runners[0].seat();
    board.leave(gone);
    board.leave(gone);
    let next = join(&mut board, 9, SIZE, now);
    assert_eq!(next.seat().at, gone.at);
    board.said(gone, wanted(1).version, idle(5), now);
    board.refused(gone, now);
    let order = order(&mut board, wanted(1), 1, now);
    assert_eq!(order.len(), 2);
    assert!(order.iter().all(|(_, why)| *why == Why::Rank));
}

#[test]
fn what_nobody_is_warm_for_is_forgotten() {
    let now = Instant::now();
    let (mut board, runners) = board(2, now);
    for n in 0..5000 {
        board.said(runners[0].seat(), n, idle(1), now);
        if n % 100 == 99 {
            board.spoke(runners[0].seat(), [(n, idle(1))], now);
        }
    }
    assert!(board.hints.len() <= 2 * 100 + 1100, "{}", board.hints.len());
}

proptest! {
    #[test]
    fn each_is_asked_at_most_once_by_whoever_may_be_and_the_same_seed_repeats(
        facts in prop::collection::vec((any::<bool>(), (0u32..3, 0u32..3, 0u32..9), any::<bool>(), 0u32..9, 1u64..64), 0..DEPTH), n: u64, seed: u64,
    ) {
        let now = Instant::now();
        let mut board = Board::default();
        let mut open = HashSet::new();
        for ((is_open, (idle, busy, waiting), full, load, gib), n) in facts.into_iter().zip(0..) {
            let runner = join(&mut board, n, Resources { memory: gib << 30, ..SIZE }, now);
            runner.0.1.set(is_open);
            runner.0.2.set(load);
            if full {
                board.refused(runner.seat(), now);
            }
            board.said(runner.seat(), wanted(n).version, Warmth { idle, busy, waiting }, now);
            if is_open && !full {
                open.insert(runner.seat());
            }
        }
        let asked: Vec<_> = order(&mut board, wanted(n), seed, now);
        prop_assert_eq!(&asked, &order(&mut board, wanted(n), seed, now));
        let distinct: HashSet<_> = asked.iter().map(|(seat, _)| *seat).collect();
        prop_assert_eq!(distinct.len(), asked.len());
        for (seat, why) in &asked {
            let warm = matches!(why, Why::Warm { .. });
            prop_assert!(open.contains(seat) || warm);
        }
        prop_assert!(asked.len() <= MAX_TRIES + 1);
        prop_assert!(asked.len() >= open.len().min(MAX_TRIES));
    }
}
