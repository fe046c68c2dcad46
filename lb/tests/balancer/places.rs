//! Limits on the calls of a function, which balancers share.

use stoker_registry::Claim;
use stoker_registry::revisions::Change;
use tokio::task::JoinSet;

use crate::stage::*;

const RESERVED: u32 = 3;

fn name() -> FunctionName {
    FunctionName::new("b", "f").expect("a name")
}

/// Holds every call until all may go on; says of each that it is there.
fn holding(tell: mpsc::Sender<()>, gone: tokio::sync::watch::Receiver<bool>) -> Play {
    play(move |mut s| {
        let (tell, mut gone) = (tell.clone(), gone.clone());
        async move {
            let mut held = Vec::new();
            loop {
                tokio::select! {
                    offer = s.offer() => match offer {
                        Some(offer) => {
                            held.push(offer.call);
                            tell.send(()).await.ok();
                        }
                        None => return,
                    },
                    // What it gives must not be kept while something else is waited for.
                    () = async { gone.wait_for(|gone| *gone).await.map(drop).unwrap_or_default() }, if !held.is_empty() => {
                        for call in held.drain(..) {
                            s.finish(call, "done").await;
                        }
                    }
                }
            }
        }
    })
}

#[tokio::test]
async fn what_is_reserved_is_a_limit_for_all_balancers_together() {
    let (tell, mut told) = mpsc::channel(16);
    let (go, gone) = tokio::sync::watch::channel(false);
    let first = Arc::new(stage(config(), vec![holding(tell, gone)]).await);
    let spec = FunctionSpec::new(name(), vec!["/bin/true".into()], "/".into());
    first.registry.apply_functions(vec![spec]).await.expect("valid");
    first.registry.change_function(&name(), Change::Reserve(Some(RESERVED))).await.expect("it is there");
    let balancer = Balancer::start(config(), first.registry.clone()).await.expect("it starts");
    balancer.ready().await;
    let second = Arc::new(Stage { balancer, registry: first.registry.clone(), registrations: Vec::new() });
    second.linked(1).await;

    let mut calls = JoinSet::new();
    for n in 0..8 {
        let stage = if n % 2 == 0 { first.clone() } else { second.clone() };
        calls.spawn(async move { stage.invoke("b/f", "").await });
    }
    for _ in 0..8 - RESERVED {
        let refused = calls.join_next().await.expect("there are more").expect("it does not panic");
        assert_eq!(refused.expect_err("it is one too many").code(), Code::ResourceExhausted);
    }
    for _ in 0..RESERVED {
        told.recv().await.expect("as many as are reserved are there");
    }
    assert!(told.try_recv().is_err(), "and no more");
    // Neither of them has one to spare.
    let other = first.registry.places("other");
    assert_eq!(other.hold(&name(), RESERVED, Claim::of(1)).await.expect("it answers"), 0);
    go.send_replace(true);
    while let Some(done) = calls.join_next().await {
        assert_eq!(done.expect("it does not panic").expect("it is answered").body, "done");
    }

    // Who goes leaves its places to the others.
    for stage in [first, second] {
        let stage = Arc::into_inner(stage).expect("no call has it any more");
        stage.balancer.stop(Duration::from_secs(5)).await;
    }
    assert_eq!(other.hold(&name(), RESERVED, Claim::of(RESERVED)).await.expect("it answers"), RESERVED);
}

#[tokio::test]
async fn a_limit_that_changes_holds_for_the_next_call() {
    let stage = stage(config(), vec![echo()]).await;
    let spec = FunctionSpec::new(name(), vec!["/bin/true".into()], "/".into());
    stage.registry.apply_functions(vec![spec]).await.expect("valid");
    let reserve = async |places| {
        stage.registry.change_function(&name(), Change::Reserve(places)).await.expect("it is there");
    };
    for (places, code) in
        [(Some(1), Code::Ok), (Some(0), Code::ResourceExhausted), (Some(2), Code::Ok), (None, Code::Ok)]
    {
        reserve(places).await;
        for _ in 0..3 {
            let answer = stage.invoke("b/f", "x").await;
            assert_eq!(answer.map_or_else(|refused| refused.code(), |_| Code::Ok), code, "{places:?}");
        }
    }
}
