//! A queue that is away while calls end.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use stoker_core::later::{Later, Target};
use stoker_proto::v1;
use stoker_queue::testing::Nats;
use stoker_tests::cluster::Plan;
use stoker_tests::functions::{Change as _, probe};
use tonic::Request;

use super::ends;

const LEASE: Duration = Duration::from_secs(1);

/// Longer than a lease, and than anything that is asked of the queue is waited for, 10 s: what is told into the silence is told again, by whoever still
/// holds the call then.
const AWAY: Duration = Duration::from_secs(13);

/// Of a body that is kept aside.
const LARGE: usize = 400 << 10;

fn submits(function: &str, key: &str, ms: u64, body: usize) -> v1::SubmitRequest {
    let header = |name: &str, value: String| v1::Header { name: name.to_owned(), value: value.into() };
    let headers = vec![header("Record", key.to_owned()), header("Probe", format!("sleep:{ms}"))];
    v1::SubmitRequest {
        function: function.to_owned(),
        head: Some(v1::RequestHead { headers, ..Default::default() }),
        body: Bytes::from(vec![b'x'; body]),
        ..Default::default()
    }
}

/// Two calls end while nothing is heard of the queue, for longer than a lease: one is done, and one is given up and has a dead letter, whose body the queue
/// has. Both ends are told when it is back, and neither call is made again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_end_while_the_queue_is_away_have_ended() {
    let Some(nats) = Nats::start().await else { return };
    let plan = Plan::new(1, 1).set("LATER_QUEUE", &nats.url());
    let Some(mut cluster) = plan.set("LATER_LEASE", &format!("{}s", LEASE.as_secs())).start([]).await else {
        return;
    };
    let mut dies = probe("dies").with_timeout(Duration::from_millis(1500));
    let target = Target::parse("t/letters").unwrap();
    dies.later = Later { max_attempts: 1, dead_letter: Some(target), ..Later::default() };
    for spec in [probe("ends"), dies, probe("letters")] {
        cluster.apply(spec).await;
    }
    let client = cluster.clients()[0].clone();
    let mut ids = HashMap::new();
    // The long body first: a function has its time once it has the body, and that is through when the other call has started as well.
    for (function, key, ms, body) in [("t/dies", "dies", 3000, LARGE), ("t/ends", "ends", 1500, 0)] {
        let accepted = client.calls().submit(submits(function, key, ms, body)).await.unwrap().into_inner();
        ids.insert(key.to_owned(), accepted.call_id);
        cluster.starts.started(key).await;
    }
    nats.freeze(true);
    tokio::time::sleep(AWAY).await;
    nats.freeze(false);
    let ended = ends(&cluster.clients(), &ids).await;
    for (key, state) in [("ends", v1::CallState::Done), ("dies", v1::CallState::Dead)] {
        let call = &ended[key];
        assert_eq!((call.state(), call.attempts.len()), (state, 1), "{call:?}");
    }
    assert_eq!(ended["dies"].dead_letter, "t/letters", "{:?}", ended["dies"]);
    let request = v1::ListCallsRequest { function: "t/letters".to_owned(), ..Default::default() };
    let letters = client.calls().list_calls(request).await.unwrap().into_inner().calls;
    assert_eq!((letters.len(), letters[0].body_bytes), (1, LARGE as u64), "{letters:?}");
    let mut ask = Request::new(v1::WaitCallRequest { call_id: letters[0].call_id.clone() });
    ask.set_timeout(Duration::from_secs(60));
    let letter = client.calls().wait_call(ask).await.unwrap().into_inner().call.unwrap();
    assert_eq!(letter.state(), v1::CallState::Done, "{letter:?}");
    let starts = cluster.starts.by_key().await;
    // The letter has the headers of its call.
    assert_eq!((starts["ends"].len(), starts["dies"].len()), (1, 2));
    cluster.end().await;
}
