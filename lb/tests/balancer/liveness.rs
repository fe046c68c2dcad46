//! Runners that fall silent, whose key vanishes, that come back: what holds is the link.

use tokio::sync::watch;

use crate::stage::*;

/// A wire between balancer and runner that can be made silent: connections stay, and nothing passes any more.
struct Wire {
    address: SocketAddr,
    silent: watch::Sender<bool>,
}

impl Wire {
    async fn to(runner: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let silent = watch::Sender::new(false);
        let silence = silent.clone();
        tokio::spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                // Whoever connects during the silence hears nothing either.
                let mut hears = silence.subscribe();
                tokio::spawn(async move {
                    while *hears.borrow_and_update() {
                        hears.changed().await.expect("the wire is there");
                    }
                    let to = TcpStream::connect(runner).await.expect("the runner listens");
                    let ((from_read, from_write), (to_read, to_write)) = (from.into_split(), to.into_split());
                    tokio::join!(pass(from_read, to_write, hears.clone()), pass(to_read, from_write, hears));
                });
            }
        });
        Self { address, silent }
    }
}

/// Returns when it is silent.
async fn falls(silent: &mut watch::Receiver<bool>) {
    while !*silent.borrow_and_update() {
        silent.changed().await.expect("the wire is there");
    }
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut silent: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        // What comes during the silence is lost: it is not passed on later either.
        let read = tokio::select! {
            biased;
            () = falls(&mut silent) => std::future::pending().await,
            read = from.read(&mut buffer) => read,
        };
        match read {
            Ok(read) if read > 0 => to.write_all(&buffer[..read]).await.ok(),
            _ => return,
        };
    }
}

/// A balancer, and runner `r0` behind a wire.
async fn wired(play: Play) -> (Stage, Wire, Capacity) {
    let mut stage = set(config(), vec![]).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let wire = Wire::to(listener.local_addr().expect("an address")).await;
    let record = record(0, wire.address);
    serve(listener, record.clone(), SESSION_VERSION, play);
    stage.registrations.push(stage.registry.register(record.clone()).await.expect("the name is free"));
    stage.linked(1).await;
    (stage, wire, record)
}

/// Takes the first offer of its first session and says nothing; answers on later ones.
fn mute_once(tell: mpsc::Sender<()>) -> Play {
    let first = Arc::new(std::sync::atomic::AtomicBool::new(true));
    play(move |mut s| {
        let (tell, first) = (tell.clone(), first.clone());
        async move {
            while let Some(offer) = s.offer().await {
                if first.swap(false, std::sync::atomic::Ordering::SeqCst) {
                    tell.send(()).await.expect("the test reads");
                } else {
                    s.finish(offer.call, offer.body).await;
                }
            }
        }
    })
}

#[tokio::test]
async fn a_silent_runner_is_noticed_and_its_calls_end() {
    let (tell, mut told) = mpsc::channel(1);
    let (stage, wire, _) = wired(mute_once(tell)).await;
    // The registry lists it all the time: only the link can tell.
    let ((), lost) = tokio::join!(
        async {
            told.recv().await.expect("it is there");
            wire.silent.send_replace(true);
            stage.sees(|seen| seen[0].link() != v1::LinkState::Ready).await;
        },
        stage.invoke("a/f", "x")
    );
    let (code, error) = reason(&lost.expect_err("nobody knows what became of it"));
    assert_eq!((code, error.code), (Code::Aborted, stoker_core::Code::RunnerLost));
    // After how long follows from the round trips that this machine has.
    assert!(error.may_have_started && error.message.contains("it was silent for "), "{error:?}");
    // While it is away calls are not sent into the silence.
    let away =
        stage.fleet().await.list_runners(v1::ListRunnersRequest {}).await.expect("a list").into_inner();
    assert!(away.runners[0].link() != v1::LinkState::Ready, "{away:?}");
    wire.silent.send_replace(false);
    stage.linked(1).await;
    assert_eq!(stage.invoke("a/f", "x").await.expect("it is back").runner, "r0");
}

#[tokio::test]
async fn a_runner_whose_key_vanished_stays_in_use() {
    let (mut stage, wire, record) = wired(echo()).await;
    stage.registrations.pop().expect("there is one").withdraw().await;
    // Many looks of the balancer at the registry.
    for n in 0..20 {
        let other = stage.registry.register(crate::stage::record(1, stage.balancer.http_address())).await;
        stage.sees(|seen| seen.len() == 2).await;
        other.unwrap_or_else(|error| panic!("{n}: {error}")).withdraw().await;
        stage.sees(|seen| seen.len() == 1).await;
    }
    assert_eq!(stage.invoke("a/f", "x").await.expect("its stream lives").runner, "r0");
    // Registered again it is the same one, not a second.
    let again = Capacity { sequence: 7, ..record.clone() };
    stage.registrations.push(stage.registry.register(again).await.expect("the name is free"));
    stage.sees(|seen| seen[0].capacity.as_ref().is_some_and(|capacity| capacity.sequence == 7)).await;
    stage.sees(|seen| seen.len() == 1 && seen[0].link() == v1::LinkState::Ready).await;
    // Neither listed nor linked it goes.
    stage.registrations.pop().expect("there is one").withdraw().await;
    wire.silent.send_replace(true);
    stage.sees(<[v1::RunnerDescription]>::is_empty).await;
    // And what is listed later is linked anew.
    wire.silent.send_replace(false);
    stage.registrations.push(stage.registry.register(record).await.expect("the name is free"));
    stage.linked(1).await;
    assert_eq!(stage.invoke("a/f", "x").await.expect("it is back").runner, "r0");
}

/// The lease of one that stood still ended, and another has its name meanwhile: both are used, and told apart.
#[tokio::test]
async fn two_runners_of_one_name_are_told_apart() {
    let (mut stage, wire, record) = wired(echo()).await;
    stage.registrations.pop().expect("there is one").withdraw().await;
    stage.registrations.push(runner(&stage.registry, 0, SESSION_VERSION, echo()).await);
    stage.linked(2).await;
    let is_first = |seen: &v1::RunnerDescription| {
        seen.capacity.as_ref().is_some_and(|capacity| capacity.address == record.address)
    };
    // Each names the other, and which of them the registry knows.
    stage
        .sees(|seen| {
            let (first, second): (Vec<_>, Vec<_>) = seen.iter().partition(|seen| is_first(seen));
            let other =
                second[0].capacity.as_ref().map(|capacity| capacity.address.clone()).expect("a record");
            first[0].reason.contains(&format!("names the runner at {other}"))
                && second[0].reason.contains(&format!("the runner at {} has the same name", record.address))
        })
        .await;
    let call = stage.invoke("a/f", "x").await.expect("one of them answers").call_id;
    let ask = v1::ExplainCallRequest { call_id: call };
    let story = stage.fleet().await.explain_call(ask).await.expect("it is known").into_inner();
    let story = story.story.expect("a story");
    assert!(story.steps[0].runner.starts_with("r0 at http://127.0.0.1:"), "{:?}", story.steps);
    // Alone again, its name is enough.
    wire.silent.send_replace(true);
    stage.sees(|seen| seen.len() == 1 && seen[0].reason.is_empty()).await;
}

#[tokio::test]
async fn what_the_registry_says_of_an_earlier_life_is_old() {
    let (mut stage, _wire, record) = wired(echo()).await;
    let earlier =
        Capacity { incarnation: Incarnation(1), sequence: 99, state: RunnerState::Draining, ..record };
    stage.registrations.push(stage.registry.register(earlier).await.expect("the address is its own"));
    // Something that comes after it, so that it has been looked at.
    stage.registrations.push(
        stage
            .registry
            .register(crate::stage::record(1, stage.balancer.http_address()))
            .await
            .expect("it is free"),
    );
    stage.sees(|seen| seen.len() == 2).await;
    assert_eq!(stage.invoke("a/f", "x").await.expect("it takes calls").runner, "r0");
}

/// Counts its sessions, and answers with their number.
fn counting() -> Play {
    let sessions = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    play(move |mut s| {
        let number = sessions.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        async move {
            while let Some(offer) = s.offer().await {
                if offer.body == "wait" {
                    // It outlives its session's renewal.
                    let next = s.next().await;
                    assert!(matches!(next, Some(In::Cancel(_)) | None), "{next:?}");
                    continue;
                }
                s.finish(offer.call, number.to_string()).await;
            }
        }
    })
}

#[tokio::test]
async fn a_session_that_has_defined_much_is_renewed() {
    let config = Config { renew_after: 3, ..config() };
    let stage = stage(config, vec![counting()]).await;
    let names: Vec<_> = (0..12).map(|n| format!("n{n}")).collect();
    let specs = names.iter().map(|name| {
        FunctionSpec::new(FunctionName::new("a", name).expect("a name"), vec!["/bin/true".into()], "/".into())
    });
    stage.registry.apply_functions(specs.collect()).await.expect("they are valid");
    let mut seen = std::collections::BTreeSet::new();
    for name in &names {
        let answer = stage.invoke(&format!("a/{name}"), "x").await.expect("no call is lost");
        seen.insert(answer.body);
    }
    assert!(seen.len() >= 3, "{seen:?}");
    stage.sees(|seen| seen.len() == 1 && seen[0].link() == v1::LinkState::Ready).await;
}
