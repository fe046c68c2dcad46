//! Draining a runner and taking it back, asked of the balancer.

use crate::stage::*;

async fn drain(stage: &Stage, runner: &str) -> Result<v1::Capacity, Status> {
    let ask = v1::DrainRunnerRequest { runner: runner.into() };
    let answer = stage.fleet().await.drain_runner(ask).await?.into_inner();
    Ok(answer.capacity.expect("the runner's own word"))
}

async fn uncordon(stage: &Stage, runner: &str) -> Result<v1::Capacity, Status> {
    let ask = v1::UncordonRunnerRequest { runner: runner.into() };
    let answer = stage.fleet().await.uncordon_runner(ask).await?.into_inner();
    Ok(answer.capacity.expect("the runner's own word"))
}

fn link(seen: &[v1::RunnerDescription], runner: usize) -> v1::LinkState {
    seen[runner].link()
}

#[tokio::test]
async fn a_drained_runner_gets_nothing_until_it_is_uncordoned() {
    let stage = stage(config(), vec![echo(), echo()]).await;
    assert_eq!(drain(&stage, "r0").await.expect("it drains").state(), v1::RunnerState::Draining);
    stage.sees(|seen| link(seen, 0) == v1::LinkState::Draining).await;
    for _ in 0..20 {
        assert_eq!(stage.invoke("a/f", "x").await.expect("r1 answers").runner, "r1");
    }
    // Again is no mistake.
    drain(&stage, "r0").await.expect("it drains");
    drain(&stage, "r1").await.expect("it drains");
    stage.sees(|seen| link(seen, 1) == v1::LinkState::Draining).await;
    // Nobody is left: the call waits, and is answered by the one that comes back.
    let ((), answer) = tokio::join!(
        async {
            let watch = stage.fleet().await.watch_fleet(v1::WatchFleetRequest {}).await;
            let mut watch = watch.expect("a stream").into_inner();
            while watch.message().await.expect("no error").expect("more").queued == 0 {}
            assert_eq!(uncordon(&stage, "r0").await.expect("it is back").state(), v1::RunnerState::Ready);
        },
        stage.invoke("a/f", "x")
    );
    assert_eq!(answer.expect("r0 answers").runner, "r0");
    stage
        .sees(|seen| link(seen, 0) == v1::LinkState::Ready && link(seen, 1) == v1::LinkState::Draining)
        .await;
}

#[tokio::test]
async fn calls_inside_finish_while_their_runner_drains() {
    let (tell, mut told) = mpsc::channel(1);
    let (finish, finished) = tokio::sync::watch::channel(false);
    let slow = play(move |mut s| {
        let (tell, mut finished) = (tell.clone(), finished.clone());
        async move {
            let offer = s.offer().await.expect("an offer");
            tell.send(()).await.expect("the test reads");
            finished.wait_for(|go| *go).await.expect("the test says so");
            s.finish(offer.call, offer.body).await;
            s.next().await;
        }
    });
    let stage = stage(config(), vec![slow]).await;
    let ((), answer) = tokio::join!(
        async {
            told.recv().await.expect("it is there");
            drain(&stage, "r0").await.expect("it drains");
            stage.sees(|seen| link(seen, 0) == v1::LinkState::Draining).await;
            finish.send_replace(true);
        },
        stage.invoke("a/f", "x")
    );
    assert_eq!(answer.expect("it finished").body, "x");
}

#[tokio::test]
async fn a_runner_that_cannot_be_asked_is_said_so() {
    let mut stage = stage(config(), vec![echo(), echo()]).await;
    // A port that nobody listens on.
    let gone = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address");
    stage.registrations.push(stage.registry.register(record(2, gone)).await.expect("the name is free"));
    stage.sees(|seen| seen.len() == 3).await;
    for (runner, code, words) in [
        ("nobody", Code::NotFound, &["`nobody`", "r0, r1, r2"][..]),
        ("r2", Code::Unavailable, &["not connected to runner r2"]),
        ("", Code::InvalidArgument, &["runner:"]),
        ("a b", Code::InvalidArgument, &["runner:"]),
    ] {
        for answer in [drain(&stage, runner).await, uncordon(&stage, runner).await] {
            let status = answer.expect_err("it cannot");
            assert_eq!(status.code(), code, "{runner:?}: {status:?}");
            assert!(words.iter().all(|word| status.message().contains(word)), "{runner:?}: {status:?}");
        }
    }
}

#[tokio::test]
async fn a_runner_that_was_drained_before_we_came_is_left_alone() {
    let registry = Arc::new(MemoryRegistry::default());
    let spec =
        FunctionSpec::new(FunctionName::new("a", "f").expect("a name"), vec!["/bin/true".into()], "/".into());
    registry.apply_functions(vec![spec]).await.expect("it is valid");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let mut drained = record(0, listener.local_addr().expect("an address"));
    drained.state = RunnerState::Draining;
    serve(listener, drained.clone(), 1, echo());
    let registrations = vec![registry.register(drained).await.expect("the name is free")];
    let balancer = Balancer::start(config(), registry.clone()).await.expect("it starts");
    let stage = Stage { balancer, registry, registrations };
    stage.sees(|seen| seen.len() == 1 && link(seen, 0) == v1::LinkState::Draining).await;
    uncordon(&stage, "r0").await.expect("it is back");
    stage.sees(|seen| link(seen, 0) == v1::LinkState::Ready).await;
    assert_eq!(stage.invoke("a/f", "x").await.expect("it answers").runner, "r0");
}
