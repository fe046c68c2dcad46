//! What a guard makes of headers and files.

use super::*;
use crate::addresses::Addresses;

fn guard(text: &str) -> (tempfile::TempDir, Guard) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.yaml");
    std::fs::write(&path, text).unwrap();
    let guard = Guard::new(&path, Audit::into_log()).unwrap();
    (directory, guard)
}

fn code<T>(outcome: Result<T, Error>) -> Option<Code> {
    outcome.err().map(|error| error.code)
}

#[test]
fn without_a_file_everybody_may_everything_and_with_one_nobody_may_nothing() {
    let open = Guard::open(Audit::into_log());
    let nobody = Caller::default();
    assert_eq!(code(open.allow(&nobody, Permission::Manage, "a")), None);
    assert_eq!(code(open.allow_fleet(&nobody, Permission::Manage)), None);
    assert!(open.enter(&nobody, "a").is_ok_and(|share| share.is_none()) && open.sees(&nobody, "a"));
    let (_directory, closed) = guard("tokens: []");
    assert_eq!(code(closed.allow(&nobody, Permission::Invoke, "a")), Some(Code::Unauthenticated));
    assert_eq!(
        code(closed.enter(&nobody, "a")),
        Some(Code::Unauthenticated),
        "a door that names no caller lets in nobody"
    );
    assert!(!closed.sees(&nobody, "a"));
    assert_eq!(code(closed.enter(&Caller::platform(), "a")), None, "what was taken earlier goes on");
}

#[tokio::test]
async fn where_nobody_is_asked_it_is_noted_from_where_a_change_came() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let (audit, keeper) = Audit::into_file(&path).unwrap();
    let open = Guard::open(audit);
    let origin = Arc::new(Origin { remote: "192.0.2.7:4711".to_owned(), ..Origin::default() });
    let caller = open.identify(&mut HeaderMap::new(), &origin).await.unwrap();
    open.note(&caller, "apply", &["a/f".to_owned()], Ok(()));
    drop(open);
    keeper.stop(std::time::Duration::from_secs(10));
    let noted = std::fs::read_to_string(&path).unwrap();
    assert!(noted.contains("192.0.2.7:4711") && caller.name().is_empty(), "{noted}");
}

#[tokio::test]
async fn a_certificate_of_the_connection_is_enough() {
    let (_directory, guard) =
        guard("certificates: [{name: alice, san: 'spiffe://stoker/client/alice', invoke: [a]}]");
    let peer = |name: &str| Peer { names: vec![format!("spiffe://stoker/client/{name}")] };
    let of = |name: &str| Arc::new(Origin { peer: Some(Arc::new(peer(name))), ..Origin::default() });
    let alice = guard.identify(&mut HeaderMap::new(), &of("alice")).await.unwrap();
    assert_eq!((alice.name(), code(guard.allow(&alice, Permission::Invoke, "a"))), ("alice", None));
    assert_eq!(code(guard.allow(&alice, Permission::Invoke, "b")), Some(Code::PermissionDenied));
    assert_eq!(code(guard.identify(&mut HeaderMap::new(), &of("bob")).await), Some(Code::Unauthenticated));
}

#[tokio::test]
async fn who_is_known_is_not_counted_by_address() {
    let hash = "c94fcb939fc514565b6f4bd3befa429bc0768360cf4e44e8a3dc4631a11c4151";
    let (_directory, guard) =
        guard(&format!("anybody: {{invoke: [a]}}\ntokens: [{{name: ci, sha256: {hash}, invoke: [a]}}]"));
    let counted = Addresses::new(50).find([192, 0, 2, 7].into());
    let origin = Arc::new(Origin { counted, ..Origin::default() });
    let mut headers = HeaderMap::new();
    let anybody = guard.identify(&mut headers, &origin).await.unwrap();
    assert!(anybody.is_anybody() && anybody.address().is_some());
    headers.insert(AUTHORIZATION, HeaderValue::from_static("Bearer stk_known"));
    let known = guard.identify(&mut headers, &origin).await.unwrap();
    assert_eq!((known.name(), known.address().is_some()), ("ci", false));
}

#[tokio::test]
async fn a_token_that_is_not_good_is_told_so_where_anybody_may_not() {
    let (_directory, guard) = guard("anybody: {invoke: [open]}");
    let mut headers = HeaderMap::new();
    let silent = guard.identify(&mut headers, &Arc::default()).await.unwrap();
    headers.insert(AUTHORIZATION, HeaderValue::from_static("Bearer stk_old"));
    let old = guard.identify(&mut headers, &Arc::default()).await.unwrap();
    assert!(headers.contains_key(AUTHORIZATION), "it may be the function's");
    for (caller, refusal) in [(silent, Code::PermissionDenied), (old, Code::Unauthenticated)] {
        assert_eq!(code(guard.allow(&caller, Permission::Invoke, "open")), None);
        assert_eq!(code(guard.allow(&caller, Permission::Invoke, "shop")), Some(refusal));
        assert_eq!(code(guard.enter(&caller, "shop")), Some(refusal));
        assert_eq!(code(guard.allow_fleet(&caller, Permission::Observe)), Some(refusal));
    }
}

#[tokio::test]
async fn a_signature_is_left_to_the_door_that_has_signatures() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.yaml");
    std::fs::write(directory.path().join("secret"), "0123456789abcdef").unwrap();
    std::fs::write(&path, "access_keys: [{name: sdk, id: AKIA1, secret_file: secret, invoke: [a]}]").unwrap();
    let guard = Guard::new(&path, Audit::into_log()).unwrap();
    let mut headers = HeaderMap::new();
    headers.insert(AUTHORIZATION, HeaderValue::from_static("AWS4-HMAC-SHA256 Credential=AKIA1/x"));
    let origin = Arc::new(Origin { remote: "192.0.2.7:4711".to_owned(), ..Origin::default() });
    let caller = guard.identify(&mut headers, &origin).await.unwrap();
    assert_eq!(
        code(guard.allow(&caller, Permission::Invoke, "a")),
        Some(Code::Unauthenticated),
        "nobody so far"
    );
    let (_, identity) = guard.key("AKIA1").unwrap();
    let signed = guard.signed(&caller, identity);
    assert_eq!(code(guard.allow(&signed, Permission::Invoke, "a")), None);
    assert_eq!((signed.name(), signed.remote()), ("sdk", "192.0.2.7:4711"), "as the audit has it");
}
