//! More callers than room: each is answered or refused with a time to come again, and a busy function starves no other. Only counts
//! decide here, never times.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use stoker_core::error::{Blame, Code, Retry};
use stoker_tests::calls::{Call, Door};
use stoker_tests::fleet::Plan;
use stoker_tests::functions::probe;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_callers_and_room_for_four() {
    let plan = Plan::default().room(4).queue(Duration::from_secs(20), 20, 20);
    let fleet = plan.start([probe("busy")]).await;
    let calls: Vec<_> = (0..50)
        .map(|n| {
            let clients = fleet.clients.clone();
            let call = Call::of("busy").probe("sleep:30");
            tokio::spawn(async move { clients.call(Door::ALL[n % 4], call).await })
        })
        .collect();
    let (mut answered, mut refused) = (0, 0);
    for call in calls {
        match call.await.unwrap() {
            Ok(answer) => {
                assert_eq!(answer.text(), "slept");
                answered += 1;
            }
            Err(error) => {
                assert_eq!((error.code, error.blame()), (Code::Overloaded, Blame::Platform), "{error:?}");
                assert!(!error.may_have_started, "{error:?}");
                match error.retry {
                    Retry::After(wait) => {
                        assert!(!wait.is_zero() && wait <= Duration::from_secs(60), "{error:?}");
                    }
                    other => panic!("refused without a time to come again: {other:?}"),
                }
                refused += 1;
            }
        }
    }
    println!("{answered} answered, {refused} refused");
    assert_eq!(answered + refused, 50);
    // Whoever ran, whoever had a place in the queue.
    assert!(answered >= 20, "{answered} answered, with room for four and twenty places to wait");
    // Room that is free again is used again.
    assert_eq!(fleet.clients.probe("busy", "echo").await.status, 200);
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_places_for_all_nobody_is_refused() {
    let fleet = Plan::default().room(4).start([probe("busy")]).await;
    let calls: Vec<_> = (0..50)
        .map(|n| {
            let clients = fleet.clients.clone();
            tokio::spawn(
                async move { clients.call(Door::ALL[n % 4], Call::of("busy").probe("sleep:10")).await },
            )
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap().text(), "slept");
    }
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_function_gets_its_share() {
    const CALLS: usize = 40;
    let fleet = Plan::default().room(4).start([probe("greedy"), probe("modest")]).await;
    let over = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicUsize::new(0));
    let greedy: Vec<_> = (0..50)
        .map(|_| {
            let (clients, over, done) = (fleet.clients.clone(), over.clone(), done.clone());
            tokio::spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    clients.call(Door::Invoke, Call::of("greedy").probe("sleep:5")).await.unwrap();
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    fleet.until_busy(&probe("greedy"), 4).await;
    let before = done.load(Ordering::Relaxed);
    let modest: Vec<_> = (0..4)
        .map(|_| {
            let clients = fleet.clients.clone();
            tokio::spawn(async move {
                for _ in 0..CALLS / 4 {
                    clients.call(Door::Http, Call::of("modest").probe("sleep:5")).await.unwrap();
                }
            })
        })
        .collect();
    for caller in modest {
        caller.await.unwrap();
    }
    let meanwhile = done.load(Ordering::Relaxed) - before;
    over.store(true, Ordering::Relaxed);
    for caller in greedy {
        caller.await.unwrap();
    }
    println!("{meanwhile} calls of the greedy function while the modest one had {CALLS}");
    // In the order of arrival it would be 50 to 4, more than twelve of the one for each of the other.
    assert!(meanwhile <= 8 * CALLS, "{meanwhile} against {CALLS}");
    fleet.end().await;
}
