//! Traces in AWS's words.

use super::*;

#[test]
fn traces_in_the_words_of_amazon() {
    let header = "Root=1-0af76519-16cd43dd8448eb211c80319c;Parent=b7ad6b7169203331;Sampled=1";
    let parent = |header: &str| from_xray(header).map(|context| context.parent);
    assert_eq!(parent(header), Some(format!("00-{TRACE}-b7ad6b7169203331-01")));
    assert!(parent(&header.replace("Sampled=1", "Sampled=0")).unwrap().ends_with("-00"));
    assert!(
        parent(&header.replace("Sampled=1", "Sampled=?")).unwrap().ends_with("-01"),
        "it is for us to decide"
    );
    for bad in [
        "",
        "Root=1-0af76519-16cd43dd8448eb211c80319c;Sampled=1",
        "Root=2-0af76519-16cd43dd8448eb211c80319c;Parent=b7ad6b7169203331",
        "Root=1-0af7651916cd43dd8448eb211c80319c;Parent=b7ad6b7169203331",
        "Root=1-0AF76519-16cd43dd8448eb211c80319c;Parent=b7ad6b7169203331",
        "Root=1-0af76519-16cd43dd8448eb211c80319c;Parent=b7ad",
    ] {
        assert_eq!(parent(bad), None, "{bad}");
    }
    // Ours goes in the caller's place, with what else it said.
    let own = given(&format!("00-{TRACE}-00f067aa0ba902b7-00"), "");
    let ours = "Root=1-0af76519-16cd43dd8448eb211c80319c;Parent=00f067aa0ba902b7;Sampled=0";
    assert_eq!(to_xray(&own, None), ours);
    assert_eq!(to_xray(&own, Some(&format!("{header};Lineage=a:1"))), format!("{ours};Lineage=a:1"));
    // Another trace's stays as it came, and so does what is none.
    let other = header.replace("0af76519", "0bf76519");
    assert_eq!(to_xray(&own, Some(&other)), other);
    assert_eq!(to_xray(&own, Some("what is this")), "what is this");
    assert_eq!(to_xray(&given("", ""), Some(header)), header);
    assert_eq!(to_xray(&given("", ""), None), "");
    assert_eq!(to_xray(&given(&"é".repeat(40), ""), None), "");
}
