//! Revisions: which of them takes a call, and how a caller learns it.

use stoker_core::ids::CallId;
use stoker_proto::v1::function_service_client::FunctionServiceClient;
use stoker_registry::revisions::{Change, Split};

use crate::stage::*;

/// Answers with the memory of the version that it was offered, which tells the revisions of these tests apart.
fn versions() -> Play {
    play(|mut s| async move {
        let mut memory = std::collections::HashMap::new();
        while let Some(frame) = s.next().await {
            match frame {
                In::Define(define) => {
                    let function = define.function.expect("a function");
                    memory.insert(define.digest, function.memory >> 20);
                }
                In::Offer(offer) => {
                    let body = memory[&offer.digest].to_string();
                    s.finish(offer.call, body).await;
                }
                _ => {}
            }
        }
    })
}

fn spec(memory: u64) -> FunctionSpec {
    let name = FunctionName::new("b", "f").expect("a name");
    FunctionSpec { memory: memory << 20, ..FunctionSpec::new(name, vec!["/bin/true".into()], "/".into()) }
}

/// A function with revisions 1 to 3, of 1 to 3 MiB.
async fn set_up() -> Stage {
    let stage = stage(config(), vec![versions()]).await;
    for memory in 1..=3 {
        stage.registry.apply_functions(vec![spec(memory)]).await.expect("valid");
    }
    stage
}

async fn change(stage: &Stage, change: Change) {
    stage.registry.change_function(&spec(1).name, change).await.expect("it can be done");
}

async fn ran(stage: &Stage, function: &str) -> (String, u64) {
    let answer = stage.invoke(function, "").await.expect("an answer");
    (String::from_utf8_lossy(&answer.body).into_owned(), answer.revision)
}

#[tokio::test]
async fn a_call_may_ask_for_a_revision_and_learns_which_ran_it() {
    let stage = set_up().await;
    let id = spec(1).name.id();
    for (function, number) in
        [("b/f", 3), ("b/f:1", 1), ("b/f:2", 2), ("b/f:3", 3), (&id, 3), (&format!("{id}:2"), 2)]
    {
        assert_eq!(ran(&stage, function).await, (number.to_string(), number), "{function}");
    }
    let split = Split { main: 2, other: None };
    let live = Change::SetAlias { name: "live".into(), split, description: String::new(), expect: None };
    change(&stage, live).await;
    assert_eq!(ran(&stage, "b/f:live").await, ("2".to_owned(), 2));
    let answer = stage.http("POST /invoke/b/f:live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(answer.to_lowercase().contains("\r\nstoker-revision: 2\r\n"), "{answer}");
    // Of the other doors each in its way.
    let start = v1::CallStart { function: "b/f:1".into(), head: None };
    let frame = v1::InvokeStreamRequest { frame: Some(v1::invoke_stream_request::Frame::Start(start)) };
    let stream = stage.client().await.invoke_stream(tokio_stream::once(frame)).await.expect("a stream");
    let frames: Vec<_> = stream.into_inner().collect().await;
    let last = frames.into_iter().next_back().expect("an end").expect("no error");
    let Some(v1::invoke_stream_response::Frame::End(end)) = last.frame else { panic!("{last:?}") };
    assert_eq!(end.revision, 1);
    let start = v1::SessionStart { function: "b/f:1".into(), complete: true, ..Default::default() };
    let frame = v1::session_request::Frame::Start(start);
    let frame = v1::SessionRequest { call: 1, frame: Some(frame) };
    let mut session =
        stage.client().await.session(tokio_stream::once(frame)).await.expect("one").into_inner();
    let answer = session.message().await.expect("no error").expect("an answer");
    let Some(v1::session_response::Frame::Finished(finished)) = answer.frame else { panic!("{answer:?}") };
    assert_eq!(finished.revision, 1);
    for (function, code) in
        [("b/f:9", Code::NotFound), ("b/f:none", Code::NotFound), ("b/f:a b", Code::InvalidArgument)]
    {
        assert_eq!(stage.invoke(function, "").await.expect_err(function).code(), code, "{function}");
    }
}

#[tokio::test]
async fn calls_are_shared_out_by_weight_and_go_back_at_once() {
    let stage = set_up().await;
    change(&stage, Change::Rollout(2500)).await;
    let mut newest = 0;
    for _ in 0..200 {
        let (body, revision) = ran(&stage, "b/f").await;
        assert_eq!(body, revision.to_string());
        newest += u32::from(revision == 3);
        assert!(revision == 2 || revision == 3);
    }
    // A quarter of 200, give or take seven standard deviations.
    assert!((8..=92).contains(&newest), "{newest}");
    assert_eq!(ran(&stage, "b/f:3").await.1, 3, "whoever asks for one gets it");
    change(&stage, Change::Rollback(1)).await;
    for _ in 0..20 {
        assert_eq!(ran(&stage, "b/f").await.1, 1);
    }
    // What is applied now waits for its rollout, and its first call is a promotion away.
    stage.registry.apply_functions(vec![spec(4)]).await.expect("valid");
    assert_eq!(ran(&stage, "b/f").await.1, 1);
    change(&stage, Change::Rollout(10_000)).await;
    assert_eq!(ran(&stage, "b/f").await, ("4".to_owned(), 4));
}

#[tokio::test]
async fn the_same_call_takes_the_same_way() {
    // What a balancer chooses by is in the id, whichever balancer it is.
    let split = Split { main: 1, other: Some((2, 5000)) };
    let seed = |id: CallId| u64::from_le_bytes(id.as_bytes()[8..].try_into().expect("8 bytes"));
    let ids: Vec<_> = (0..1000).map(|_| CallId::new()).collect();
    let of = |ids: &[CallId]| ids.iter().filter(|id| split.pick(seed(**id)) == 2).count();
    assert_eq!(of(&ids), of(&ids));
    assert!((300..700).contains(&of(&ids)), "{}", of(&ids));
}

#[tokio::test]
async fn operators_move_calls_and_see_where_they_go() {
    let stage = set_up().await;
    let mut client = FunctionServiceClient::new(stage.channel().await);
    let function = || "b/f".to_owned();
    let split = |main, other, other_weight| Some(v1::Split { main, other, other_weight });
    let rolled =
        client.rollout_function(v1::RolloutFunctionRequest { function: function(), weight: 500 }).await;
    assert_eq!(rolled.expect("it can be").into_inner().traffic, split(2, 3, 500));
    let alias = v1::Alias { name: "live".into(), split: split(1, 2, 100), description: "x".into() };
    let set = v1::SetAliasRequest { function: function(), alias: Some(alias.clone()) };
    client.set_alias(set).await.expect("it can be");
    let list = v1::ListRevisionsRequest { function: function() };
    let seen = client.list_revisions(list).await.expect("a list").into_inner();
    assert_eq!(seen.revisions.iter().map(|r| r.number).collect::<Vec<_>>(), [3, 2, 1]);
    assert!(seen.revisions.iter().all(|r| r.created.is_some() && r.digest.len() == 64 && !r.published));
    assert_eq!((seen.traffic, seen.aliases), (split(2, 3, 500), vec![alias]));
    let back = |revision| v1::RollbackFunctionRequest { function: function(), revision };
    for (asked, expected) in [(0, 2), (0, 1), (2, 2)] {
        let answer = client.rollback_function(back(asked)).await.expect("it can be").into_inner();
        assert_eq!(answer.traffic, split(expected, 0, 0));
    }
    // Held back from its first moment, and said to whoever applied it.
    let held = v1::ApplyFunctionsRequest { functions: vec![convert::to_function(&spec(9))], hold: true };
    let applied = client.apply_functions(held).await.expect("valid").into_inner().functions.remove(0);
    assert_eq!((applied.revision, applied.traffic), (4, split(2, 0, 0)));
    let get = v1::GetFunctionRequest { function: "b/f:1".into() };
    let one = client.get_function(get).await.expect("it is kept").into_inner().function.expect("one");
    assert_eq!((one.revision, one.function.expect("it").memory), (1, 1 << 20));
    let gone = v1::DeleteAliasRequest { function: function(), alias: "live".into() };
    client.delete_alias(gone.clone()).await.expect("it is there");
    assert_eq!(client.delete_alias(gone).await.expect_err("twice").code(), Code::NotFound);
    for (code, status) in [
        (Code::NotFound, client.rollback_function(back(77)).await.map(drop)),
        (
            Code::InvalidArgument,
            client.delete_function(v1::DeleteFunctionRequest { function: "b/f:1".into() }).await.map(drop),
        ),
        (
            Code::InvalidArgument,
            client.set_alias(v1::SetAliasRequest { function: function(), alias: None }).await.map(drop),
        ),
        (
            Code::InvalidArgument,
            client
                .rollout_function(v1::RolloutFunctionRequest { function: function(), weight: 10_001 })
                .await
                .map(drop),
        ),
    ] {
        assert_eq!(status.expect_err("it is wrong").code(), code);
    }
    client.delete_function(v1::DeleteFunctionRequest { function: function() }).await.expect("all of it");
    assert!(stage.registry.functions().borrow().older.is_empty());
}

#[tokio::test]
async fn what_is_reserved_is_a_limit_for_every_door() {
    let (tell, mut told) = mpsc::channel(4);
    // Holds each call until it is told to go on.
    let (go, gone) = tokio::sync::watch::channel(false);
    let play = play(move |mut s| {
        let (tell, mut gone) = (tell.clone(), gone.clone());
        async move {
            while let Some(offer) = s.offer().await {
                tell.send(()).await.ok();
                gone.wait_for(|gone| *gone).await.ok();
                s.finish(offer.call, "done").await;
            }
        }
    });
    let stage = Arc::new(stage(config(), vec![play]).await);
    stage.registry.apply_functions(vec![spec(1)]).await.expect("valid");
    change(&stage, Change::Reserve(Some(1))).await;
    let first = tokio::spawn({
        let stage = stage.clone();
        async move { ran(&stage, "b/f").await }
    });
    told.recv().await.expect("it runs");
    let refused = stage.invoke("b/f:1", "").await.expect_err("one more");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let path = "POST /2015-03-31/functions/b.f/invocations";
    let http = format!("{path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{{}}");
    let answer = stage.http(&http).await;
    assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
    assert!(answer.contains("ReservedFunctionConcurrentInvocationLimitExceeded"), "{answer}");
    go.send_replace(true);
    assert_eq!(first.await.expect("it ends").0, "done");
    assert_eq!(ran(&stage, "b/f").await.0, "done");
    change(&stage, Change::Reserve(Some(0))).await;
    assert_eq!(stage.invoke("b/f", "").await.expect_err("none").code(), Code::ResourceExhausted);
}

/// Answers with the number of the version that it was told, and of the containers that it shall have at least.
fn numbers() -> Play {
    play(|mut s| async move {
        let mut told = std::collections::HashMap::new();
        while let Some(frame) = s.next().await {
            match frame {
                In::Define(define) => {
                    let spec = convert::function(define.function.expect("a function")).expect("valid");
                    assert_eq!(define.digest, spec.digest().0[..]);
                    let numbers = format!("{} {}", spec.format_options.version, spec.min_containers);
                    told.insert(define.digest, numbers);
                }
                In::Offer(offer) => s.finish(offer.call, told[&offer.digest].clone()).await,
                _ => {}
            }
        }
    })
}

#[tokio::test]
async fn a_function_of_lambda_is_told_its_version_and_runners_what_changes_without_one() {
    let stage = stage(config(), vec![numbers()]).await;
    let lambda = |min| FunctionSpec { format: stoker_core::Format::Lambda, min_containers: min, ..spec(1) };
    stage.registry.apply_functions(vec![lambda(0)]).await.expect("valid");
    let live = Change::SetAlias {
        name: "live".into(),
        split: Split { main: 1, other: None },
        description: String::new(),
        expect: None,
    };
    change(&stage, live).await;
    for (function, told) in [("b/f", "0 0"), ("b/f:1", "1 0"), ("b/f:live", "1 0")] {
        assert_eq!(ran(&stage, function).await, (told.to_owned(), 1), "{function}");
    }
    // The next revision runs the same, with other numbers of containers: runners hear of them.
    stage.registry.apply_functions(vec![lambda(2)]).await.expect("valid");
    for (function, told, revision) in
        [("b/f", "0 2", 2), ("b/f:2", "2 2", 2), ("b/f:1", "1 2", 1), ("b/f:live", "1 2", 1)]
    {
        assert_eq!(ran(&stage, function).await, (told.to_owned(), revision), "{function}");
    }
    // A runner of a release that knows no numbers runs them all as it always did.
    let older = set(config(), vec![(1, numbers())]).await;
    older.linked(1).await;
    older.registry.apply_functions(vec![lambda(0)]).await.expect("valid");
    for function in ["b/f", "b/f:1"] {
        assert_eq!(ran(&older, function).await, ("0 0".to_owned(), 1), "{function}");
    }
    // Nobody can apply a number.
    let functions = FunctionServiceClient::new(stage.channel().await);
    let mut numbered = convert::to_function(&lambda(0));
    numbered.format_options = Some(v1::FormatOptions { version: 7, ..Default::default() });
    let request = v1::ApplyFunctionsRequest { functions: vec![numbered], ..Default::default() };
    let refused = functions.clone().apply_functions(request).await.expect_err("it has a number");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
}
