use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

const ROOMY: Limits = Limits { total: 100, per_function: 100, bytes: 1000, bytes_per_function: 1000 };

fn at(tenant: u64, line: u64) -> Place {
    Place { tenant, line }
}

fn order<T>(queue: &mut FairQueue<T>) -> Vec<u64> {
    std::iter::from_fn(|| queue.pop()).map(|(_, id, _)| id).collect()
}

fn push(queue: &mut FairQueue<()>, place: Place, id: u64) {
    assert_eq!(queue.push(place, id, 0, ()), Ok(Vec::new()));
}

#[test]
fn lines_take_turns() {
    let mut queue = FairQueue::new(ROOMY);
    (0..10).for_each(|id| push(&mut queue, at(1, 1), id));
    push(&mut queue, at(1, 2), 99);
    assert_eq!(order(&mut queue)[..3], [0, 99, 1]);
}

#[test]
fn tenants_take_turns_however_many_functions_they_have() {
    let mut queue = FairQueue::new(ROOMY);
    (0..10).for_each(|id| push(&mut queue, at(1, id), id));
    (50..53).for_each(|id| push(&mut queue, at(2, 1), id));
    assert_eq!((queue.ahead(at(2, 1)), queue.ahead(at(3, 1)), queue.ahead(at(1, 9))), (7, 2, 13));
    assert_eq!(order(&mut queue)[..7], [0, 50, 1, 51, 2, 52, 3]);
}

#[test]
fn a_line_that_is_passed_over_keeps_its_turn() {
    let mut queue = FairQueue::new(ROOMY);
    for (id, place) in [(1, at(1, 1)), (2, at(1, 1)), (3, at(1, 2)), (4, at(2, 3))] {
        push(&mut queue, place, id);
    }
    let other = queue.pop_if(|place, ()| place.line == 3).map(|(_, id, ())| id);
    assert_eq!((other, queue.pop_if(|_, ()| false)), (Some(4), None));
    assert_eq!(order(&mut queue), [1, 3, 2]);
}

#[test]
fn the_limits_hold_and_a_return_is_never_refused() {
    let limits = Limits { total: 3, per_function: 2, bytes: 10, bytes_per_function: 8 };
    let mut queue = FairQueue::new(limits);
    assert!(queue.push(at(1, 1), 1, 0, 'a').is_ok() && queue.push(at(1, 1), 2, 0, 'b').is_ok());
    assert_eq!(queue.push(at(1, 1), 3, 0, 'c'), Err(Full::OfFunction(2)), "its line is full");
    let full = Err(Full::BytesOfFunction(8));
    assert_eq!(queue.push(at(1, 2), 3, 9, 'c'), full, "its body is too much for a line");
    assert!(queue.push(at(1, 2), 4, 8, 'd').is_ok());
    queue.put_back(at(1, 1), 0, 0, 'f');
    assert_eq!((queue.len(), queue.bytes()), (4, 8));
    assert_eq!(queue.pop(), Some((at(1, 1), 0, 'f')));
}

#[test]
fn who_has_less_than_a_share_pushes_out_the_last_of_who_has_most() {
    let limits = Limits { total: 6, per_function: 6, bytes: 100, bytes_per_function: 100 };
    let mut queue = FairQueue::new(limits);
    for (id, place) in
        [(1, at(1, 1)), (2, at(1, 1)), (3, at(1, 1)), (4, at(1, 2)), (5, at(1, 1)), (6, at(1, 1))]
    {
        assert_eq!(queue.push(place, id, 10, id), Ok(vec![]));
    }
    assert_eq!(queue.push(at(1, 1), 7, 0, 7), Err(Full::Total(6)), "nobody has more");
    assert_eq!(queue.push(at(2, 1), 8, 0, 8), Ok(vec![6]), "another tenant");
    assert_eq!(queue.push(at(1, 2), 9, 0, 9), Ok(vec![5]), "another function of the same");
    assert_eq!(queue.push(at(2, 1), 10, 0, 10), Ok(vec![3]));
    assert_eq!(queue.push(at(2, 1), 11, 0, 11), Ok(vec![9]), "up to an equal share");
    assert_eq!(queue.push(at(2, 1), 12, 0, 12), Err(Full::Total(6)));
    // By bytes as well, and only if that makes room.
    let mut queue = FairQueue::new(Limits { total: 99, ..limits });
    (1..=5).for_each(|id| assert_eq!(queue.push(at(1, 1), id, 20, id), Ok(vec![])));
    assert_eq!(queue.push(at(2, 1), 6, 30, 6), Ok(vec![5, 4]));
    assert_eq!(queue.push(at(2, 1), 7, 40, 7), Err(Full::Bytes(100)));
    assert_eq!((queue.len(), queue.bytes()), (4, 90));
}

#[test]
fn who_comes_back_finds_the_old_place() {
    let mut queue = FairQueue::new(ROOMY);
    (1..=4).for_each(|id| push(&mut queue, at(1, 1), id));
    let called: Vec<_> = (0..2).filter_map(|_| queue.pop()).collect();
    // In whatever order they come back.
    called.into_iter().rev().for_each(|(place, id, ())| queue.put_back(place, id, 0, ()));
    assert_eq!(order(&mut queue), [1, 2, 3, 4]);
}

#[test]
fn retry_times_follow_the_rate() {
    let start = Instant::now();
    let mut rate = Rate::new(start);
    assert_eq!(rate.retry_after(5, start), Duration::from_secs(1));
    for n in 1..=200u32 {
        rate.ended(start + Duration::from_millis(10) * n, Duration::from_millis(40));
    }
    let wait = rate.retry_after(99, start + Duration::from_secs(2));
    assert!((Duration::from_millis(800)..Duration::from_millis(1200)).contains(&wait), "{wait:?}");
}

#[test]
fn a_pause_does_not_make_a_fleet_slow() {
    let start = Instant::now();
    let (mut rate, there) = (Rate::new(start), Duration::from_millis(40));
    let mut now = start;
    let mut hundred_a_second = |rate: &mut Rate, calls: u32| {
        for _ in 0..calls {
            now += Duration::from_millis(10);
            rate.ended(now, there);
        }
        now
    };
    let now = hundred_a_second(&mut rate, 200);
    // An hour later one call, in the middle of nothing; then many.
    let later = now + Duration::from_secs(3600);
    rate.ended(later, there);
    let wait = rate.retry_after(99, later);
    assert!((Duration::from_millis(800)..Duration::from_millis(1200)).contains(&wait), "{wait:?}");
    assert_eq!(
        rate.too_long(10_000, Duration::from_secs(1), later),
        None,
        "what was an hour ago proves nothing"
    );
    // Slow calls are no pause: two at once that take 40 s each end every 20 s.
    let mut rate = Rate::new(start);
    for n in 1..=20u32 {
        rate.ended(start + Duration::from_secs(20) * n, Duration::from_secs(40));
    }
    let per_second = rate.per_second(start + Duration::from_secs(400));
    assert!((0.045..0.055).contains(&per_second), "{per_second}");
}

#[test]
fn only_a_wait_that_is_surely_too_long_is_refused() {
    let start = Instant::now();
    let mut rate = Rate::new(start);
    let second = Duration::from_secs(1);
    for n in 1..=5u32 {
        rate.ended(start + Duration::from_millis(100) * n, Duration::from_millis(100));
    }
    let now = start + Duration::from_millis(500);
    assert_eq!(rate.too_long(10_000, second, now), None, "five calls prove nothing");
    for n in 6..=100u32 {
        rate.ended(start + Duration::from_millis(100) * n, Duration::from_millis(100));
    }
    let now = start + 10 * second;
    // Ten a second.
    let wait = rate.too_long(39, second, now).expect("four seconds are too long");
    assert!((3 * second..5 * second).contains(&wait), "{wait:?}");
    assert_eq!(come_again(wait, second), wait - second);
    assert_eq!(rate.too_long(39, 3 * second, now), None, "it may still come true");
    assert_eq!(rate.too_long(10, second / 10, now), None, "few are gone at a stroke");
}

#[test]
fn balancers_take_turns_in_a_line() {
    let mut line = vec![(7, 'a'), (7, 'b'), (7, 'c'), (3, 'd'), (9, 'e'), (3, 'f')];
    let (mut last, mut order) = (0, String::new());
    while let Some(next) = next_in_turn(line.iter().map(|(asker, _)| *asker), last) {
        let (asker, call) = line.remove(next);
        last = asker;
        order.push(call);
    }
    assert_eq!(order, "daefbc");
}

proptest! {
    /// Whatever comes and goes: nobody is lost, nobody is doubled, the sums are those of who is inside, and no limit is broken.
    #[test]
    fn nobody_is_lost_and_nobody_is_doubled(
        steps in proptest::collection::vec((0u8..7, 0u64..4, 0u64..4, 0usize..30), 0..300),
    ) {
        let limits = Limits { total: 40, per_function: 15, bytes: 500, bytes_per_function: 200 };
        let mut queue = FairQueue::new(limits);
        // Who stands in a line, and who was called from one and may come back.
        let (mut inside, mut called) = (BTreeMap::new(), BTreeMap::new());
        for (id, (what, tenant, line, bytes)) in (0u64..).zip(steps) {
            let place = at(tenant, line);
            match what {
                0..=2 => if let Ok(out) = queue.push(place, id, bytes, id) {
                    inside.insert(id, (place, bytes));
                    let own = inside.values().filter(|(other, _)| other.tenant == tenant).count();
                    for gone in out {
                        let (from, _) = inside.remove(&gone).expect("it was inside");
                        let left = inside.values().filter(|(other, _)| other.tenant == from.tenant).count();
                        prop_assert!(from.tenant == tenant || left + 1 >= own || bytes > 0);
                    }
                },
                3 => if let Some((place, id, entry)) = queue.pop() {
                    prop_assert_eq!(id, entry);
                    let (from, bytes) = inside.remove(&id).expect("it was inside");
                    prop_assert_eq!(from, place);
                    called.insert(id, (place, bytes));
                },
                4 => if let Some((&id, &(place, _))) = inside.iter().nth(bytes) {
                    prop_assert_eq!(queue.leave(place, id), Some(id));
                    inside.remove(&id);
                },
                5 => if let Some((&id, &(place, bytes))) = called.iter().nth(bytes) {
                    queue.put_back(place, id, bytes, id);
                    called.remove(&id);
                    inside.insert(id, (place, bytes));
                },
                _ => if let Some((&id, &(place, _))) = called.iter().nth(bytes) {
                    prop_assert_eq!(queue.leave(place, id), None);
                    called.remove(&id);
                },
            }
            // However they go and come back.
            let granted: Vec<_> = inside.values().chain(called.values()).collect();
            prop_assert!(granted.len() <= limits.total);
            prop_assert!(granted.iter().map(|(_, bytes)| bytes).sum::<usize>() <= limits.bytes);
            prop_assert!(granted.iter().filter(|(of, _)| *of == place).count() <= limits.per_function);
            let places: HashSet<_> = inside.values().map(|(place, _)| *place).collect();
            prop_assert_eq!((queue.len(), queue.lines()), (inside.len(), places.len()));
            prop_assert_eq!(queue.bytes(), inside.values().map(|(_, bytes)| bytes).sum::<usize>());
        }
        while let Some((place, id, _)) = queue.pop() {
            prop_assert_eq!(inside.remove(&id).map(|(place, _)| place), Some(place));
        }
        prop_assert!(inside.is_empty() && queue.is_empty() && queue.lines() == 0);
    }

    /// What is said to be ahead is what comes first.
    #[test]
    fn ahead_is_who_comes_first(
        waiting in proptest::collection::vec((0u64..3, 0u64..3), 0..40), tenant in 0u64..4, line in 0u64..4,
    ) {
        let mut queue = FairQueue::new(ROOMY);
        for (id, (tenant, line)) in (0u64..).zip(waiting) {
            push(&mut queue, at(tenant, line), id);
        }
        let ahead = queue.ahead(at(tenant, line));
        push(&mut queue, at(tenant, line), 1000);
        let came = order(&mut queue).iter().position(|id| *id == 1000).expect("it is inside");
        // Turns that stand before it when it comes may be its own tenant's or another's.
        prop_assert!(came <= ahead && ahead <= came + 16, "{came} came before, {ahead} were said to");
    }
}
