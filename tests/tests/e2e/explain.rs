//! `stoker explain` as a person uses it: after a cold call, a warm one, and of a call that nobody knows.

use stoker_tests::program;

use crate::command::Up;

/// A start that is over before it is worth telling the balancer is a start all the same, and its runner knows the reason.
#[tokio::test]
async fn explain_tells_of_starts_that_take_no_time() {
    let up = Up::start().await;
    let probe = program("probe");
    let brief = format!(
        "app: demo\nfunctions:\n  - {{name: brief, command: [{probe:?}], workdir: {:?}, format: http-stream, idle_timeout: 0ms}}\n",
        probe.parent().unwrap(),
    );
    std::fs::write(up.directory().join("brief.yaml"), brief).unwrap();
    up.good(&["apply", "-f", "brief.yaml"]).await;
    let mut swift = 0;
    for call in 0..20 {
        let json = up.good(&["call", "demo/brief", "--data", "Ada", "-o", "json"]).await;
        let answer: serde_json::Value = serde_json::from_str(&json).unwrap();
        let timings = &answer["timings"];
        if timings["cold"] != true {
            continue;
        }
        let told = up.good(&["explain", answer["call_id"].as_str().unwrap()]).await;
        assert!(told.contains("It was cold, ") && !told.contains("found a container ready"), "{told}");
        if call > 0 {
            assert_eq!(timings["cold_cause"], "expired");
            assert!(told.contains("had no call for longer than its idle_timeout (0ms), and ended"), "{told}");
            swift += u32::from(!told.contains("taken into its line"));
        }
    }
    println!("{swift} were not told of before they had started");
    up.stop().await;
}

#[tokio::test]
async fn explain_tells_why_a_call_was_cold_and_the_next_was_not() {
    let up = Up::start().await;
    let call = async || {
        let json = up.good(&["call", "demo/hello", "--data", "Ada", "-o", "json"]).await;
        let answer: serde_json::Value = serde_json::from_str(&json).unwrap();
        answer["call_id"].as_str().unwrap().to_owned()
    };
    let explain = async |id: &str| up.good(&["explain", id]).await;
    let cold = explain(&call().await).await;
    for line in [
        "outcome    OK, cold",
        "function   demo/hello",
        "offered: ",
        "taken into its line",
        "told to start",
        "It was cold",
        "no container of this version of demo/hello had been there since",
        "There was none elsewhere.",
        "min_containers: 1",
    ] {
        assert!(cold.contains(line), "{line:?} is missing in:\n{cold}");
    }
    let id = call().await;
    let warm = explain(&id).await;
    assert!(warm.contains("It found a container ready at the first runner that was asked."), "{warm}");
    println!("{cold}\n{warm}");
    let json = up.good(&["explain", &id, "-o", "json"]).await;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (json["call_id"].as_str(), json["steps"][0]["what"].as_str()),
        (Some(id.as_str()), Some("offered"))
    );
    // Of several balancers only one knows it: one that does not answer, or is a stranger to it, is no end of the search.
    let both = format!("http://127.0.0.1:1,{}", up.grpc);
    assert!(up.good(&["explain", &id, "--server", &both]).await.contains(&id));
    let unknown = up.run(&["explain", "01977c3e5d8a7b02a9a2c36f1d0e4b57"]).await;
    assert_eq!(unknown.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("not among the last calls"));
    assert_eq!(up.run(&["explain", "nonsense"]).await.status.code(), Some(2));
    up.stop().await;
}
