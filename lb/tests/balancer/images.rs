//! Applying functions with images: names are pinned by asking runners, or nothing is applied and the reason is said.

use stoker_core::function::Root;
use v1::function_service_client::FunctionServiceClient;

use crate::stage::*;

/// A function whose image tells the runners what to answer.
fn function(name: &str, image: &str) -> v1::Function {
    v1::Function { app: "i".into(), name: name.into(), image: image.into(), ..Default::default() }
}

async fn apply(stage: &Stage, functions: Vec<v1::Function>) -> Result<Vec<v1::ApplyOutcome>, Status> {
    let mut client = FunctionServiceClient::new(stage.channel().await);
    let applied =
        client.apply_functions(v1::ApplyFunctionsRequest { functions, hold: false }).await?.into_inner();
    Ok(applied.functions.iter().map(v1::AppliedFunction::outcome).collect())
}

fn image(stage: &Stage, name: &str) -> String {
    let functions = stage.registry.functions();
    let functions = functions.borrow();
    let spec = &functions.by_name[&FunctionName::new("i", name).expect("a name")];
    let Root::Image(image) = &spec.root else { panic!("{:?}", spec.root) };
    image.to_string()
}

fn pinned(name: &str, digit: &str) -> String {
    format!("registry.example/{name}@sha256:{}", digit.repeat(64))
}

#[tokio::test]
async fn a_name_becomes_a_digest_whoever_knows_it() {
    let stage = stage(config(), vec![echo(), echo(), echo()]).await;
    let known = pinned("r0-none/x:7", "3");
    let secret = v1::Function {
        credentials: "team".into(),
        ..function("secret", "registry.example/r0-secret/r1-secret/r2-secret:1")
    };
    let functions = vec![
        function("one", "registry.example/r0-away/r1-fine/r2-away:1"),
        function("same", "registry.example/r0-away/r1-fine/r2-away:1"),
        function("two", "registry.example/r0-fine/r1-none/r2-unpinned:v2"),
        function("three", "registry.example/r0-other/r1-old/r2-fine"),
        function("known", &known),
        secret,
    ];
    let created = [v1::ApplyOutcome::Created; 6];
    assert_eq!(apply(&stage, functions.clone()).await.expect("applied"), created);
    assert_eq!(image(&stage, "one"), pinned("r0-away/r1-fine/r2-away:1", "1"));
    assert_eq!(image(&stage, "same"), image(&stage, "one"));
    assert_eq!(image(&stage, "two"), pinned("r0-fine/r1-none/r2-unpinned:v2", "1"));
    assert_eq!(image(&stage, "three"), pinned("r0-other/r1-old/r2-fine:latest", "1"));
    assert_eq!(image(&stage, "known"), known, "asked of nobody");
    assert_eq!(image(&stage, "secret"), pinned("r0-secret/r1-secret/r2-secret:1", "2"));
    // Again: asked anew, and the same is there.
    let unchanged = [v1::ApplyOutcome::Unchanged; 6];
    assert_eq!(apply(&stage, functions).await.expect("applied"), unchanged);
    // What a call is placed with is pinned, and so is what operators see.
    stage.invoke("i/one", "x").await.expect("an answer");
    let mut client = FunctionServiceClient::new(stage.channel().await);
    let seen = client.get_function(v1::GetFunctionRequest { function: "i/one".into() }).await;
    let seen = seen.expect("known").into_inner().function.and_then(|f| f.function).expect("a function");
    assert_eq!(seen.image, image(&stage, "one"));
}

#[tokio::test]
async fn an_image_that_is_at_fault_is_named_with_its_registrys_words() {
    let stage = stage(config(), vec![echo(), echo()]).await;
    let functions = vec![
        function("good", "registry.example/r0-fine/r1-fine:1"),
        function("none", "registry.example/r0-none/r1-none:1"),
        // That one could not ask weighs less than what the other was told.
        function("denied", "registry.example/r0-away/r1-secret:1"),
    ];
    let status = apply(&stage, functions).await.expect_err("two are wrong");
    let (code, error) = reason(&status);
    assert_eq!((code, error.blame()), (Code::InvalidArgument, stoker_core::Blame::Caller));
    assert!(status.message().starts_with("2 mistakes"), "{}", status.message());
    let details = tonic_types::StatusExt::get_error_details(&status);
    let violations = &details.bad_request().expect("details").field_violations;
    let said: Vec<_> = violations.iter().map(|v| (v.field.as_str(), v.description.as_str())).collect();
    let expected = [
        ("functions[1].image", "registry.example/r0-none/r1-none:1: manifest unknown"),
        ("functions[2].image", "registry.example/r0-away/r1-secret:1: pull access denied"),
    ];
    assert_eq!(said, expected);
    assert_eq!(stage.registry.functions().borrow().by_name.len(), 3, "nothing was applied");
}

#[tokio::test]
async fn who_cannot_be_asked_is_the_platforms_fault() {
    let with = stage(config(), vec![echo(), echo()]).await;
    let without = stage(config(), vec![]).await;
    for (stage, image, words) in [
        (&with, "registry.example/r0-away/r1-away:1", "connection refused"),
        (&with, "registry.example/r0-old/r1-old:1", "this runner has no images"),
        (&with, "registry.example/r0-unpinned/r1-other:1", "it answered"),
        (&without, "registry.example/r0-fine:1", "this balancer is connected to no runner"),
    ] {
        let (code, error) = reason(&apply(stage, vec![function("x", image)]).await.expect_err(image));
        assert_eq!((code, error.blame()), (Code::Unavailable, stoker_core::Blame::Platform), "{error}");
        assert!(error.message.contains(words) && error.message.contains(image), "{error}");
        assert_eq!(error.retry, stoker_core::Retry::Elsewhere, "nothing was done");
        assert_eq!(stage.registry.functions().borrow().by_name.len(), 3);
    }
    // No image, nobody to ask.
    let plain = v1::Function { command: vec!["x".into()], ..function("plain", "") };
    apply(&without, vec![plain]).await.expect("applied");
}

#[tokio::test]
async fn a_runner_that_is_about_to_be_there_is_waited_for() {
    let stage = set(config(), vec![]).await;
    let _registration = runner(&stage.registry, 0, 1, echo()).await;
    // The balancer has heard of it and may not be connected yet.
    stage.sees(|seen| seen.len() == 1).await;
    apply(&stage, vec![function("x", "registry.example/r0-fine:1")]).await.expect("applied");
}
