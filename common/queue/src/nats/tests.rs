use super::*;
use crate::conformance::{self, call, done, next};
use crate::testing::Nats;

const LEASE: Duration = Duration::from_millis(1500);

fn config(nats: &Nats) -> Config {
    Config { lease: LEASE, ..Config::new(vec![nats.url()]) }
}

#[tokio::test]
async fn it_conforms() {
    let Some(nats) = Nats::start().await else { return };
    let queue = Arc::new(NatsQueue::open(config(&nats)).await.unwrap());
    conformance::run(queue.clone(), LEASE).await;
    queue.stop().await;
}

#[tokio::test]
async fn balancers_share_it_and_a_killed_server_forgets_nothing() {
    let Some(mut nats) = Nats::start().await else { return };
    let one = NatsQueue::open(config(&nats)).await.unwrap();
    let other = NatsQueue::open(config(&nats)).await.unwrap();
    let (waits, runs, ends) = (call("a/waits", "1"), call("a/runs", "2"), call("a/ends", "3"));
    for made in [&waits, &runs, &ends] {
        assert!(one.submit(made.clone()).await.unwrap());
        assert!(!other.submit(made.clone()).await.unwrap());
    }
    let taken = next(&other, "a/ends").await;
    other.finish(&taken.ticket, done(&taken, "bye")).await.unwrap();
    let lost = next(&other, "a/runs").await;
    nats.kill();
    nats.start_again().await;
    assert_eq!(next(&one, "a/waits").await.call, waits);
    // Its lease ends with nobody to renew it.
    let again = next(&one, "a/runs").await;
    assert!(again.progress.attempts[0].interrupted && again.progress.attempts.len() == 2);
    let late = other.finish(&lost.ticket, done(&lost, "late")).await;
    assert!(matches!(late, Err(Error::Lost)), "{late:?}");
    one.finish(&again.ticket, done(&again, "in time")).await.unwrap();
    let kept = one.get(&ends.id).await.unwrap().unwrap();
    assert_eq!((kept.progress.is(), kept.answer.unwrap().body), (State::Done, "bye".into()));
    let kept = other.get(&runs.id).await.unwrap().unwrap();
    assert_eq!(kept.answer.unwrap().body, "in time");
    one.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn a_server_that_is_away_is_said_to_be() {
    let queue = NatsQueue::open(Config::new(vec!["nats://127.0.0.1:1".into()])).await.unwrap();
    let refused = queue.submit(call("a/b", "")).await;
    assert!(matches!(&refused, Err(Error::Unavailable(why)) if why.contains("127.0.0.1:1")), "{refused:?}");
    queue.stop().await;
}
