//! Names: which there are, that all are sent, and that the documentation has them.

use super::*;

#[test]
fn requests_have_few_names() {
    let asked = |method: &str, path: &str| {
        let asked = names::asked(method, path);
        (asked.name.as_str(), asked.method, asked.route)
    };
    assert_eq!(
        asked("POST", "/invoke/a/f"),
        ("POST /invoke/{function}", Some("POST"), Some("/invoke/{function}"))
    );
    assert_eq!(asked("PUT", "/t/a/x/y"), ("PUT /t/{app}/{source}", Some("PUT"), Some("/t/{app}/{source}")));
    assert_eq!(asked("BREW", "/t/a/x").0, "HTTP /t/{app}/{source}");
    assert_eq!(asked("POST", "/invoke").0, "POST /invoke");
    assert_eq!(asked("POST", "/ce/a/f").0, "POST /ce/{app}/{function}");
    assert_eq!(asked("GET", "/lambda-url/a.f/x").0, "GET /lambda-url/{function}");
    assert_eq!(asked("GET", "/v2/apps").0, "GET /v2/{resource}");
    assert_eq!(asked("POST", "/2015-03-31/functions/f/invocations").0, "POST /{date}/functions/{function}");
    for nowhere in ["/", "", "/x", "/2015-3-31/functions", "/invoked", "/t/"] {
        assert_eq!(asked("GET", nowhere), ("GET", Some("GET"), None), "{nowhere}");
    }
}

/// Every constant is in a list by its macro; here each is held against the documentation, which has no other.
#[test]
fn the_documentation_lists_what_can_be_sent() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/telemetry.md");
    let mut page = std::fs::read_to_string(&path).unwrap();
    let table = |listed: &[names::Described], what: &str| {
        let row = |one: &names::Described| format!("| `{}` | {} | {} |\n", one.name, one.on, one.meaning);
        format!("| {what} | on | meaning |\n|---|---|---|\n{}", listed.iter().map(row).collect::<String>())
    };
    let routes: Vec<_> = names::ROUTES.iter().map(|(_, route)| format!("`{}`", route.path)).collect();
    let mut stale = Vec::new();
    for (what, is) in [
        ("spans", table(names::SPANS, "span")),
        ("attributes", table(names::ATTRIBUTES, "attribute")),
        ("events", table(names::EVENTS, "event")),
        ("routes", format!("{}\n", routes.join(" · "))),
    ] {
        let begin = format!("<!-- names: {what} -->\n");
        let from = page.find(&begin).unwrap_or_else(|| panic!("{what} have no place")) + begin.len();
        let to = from + page[from..].find("<!-- /names -->").unwrap();
        if page[from..to] != is {
            stale.push(what);
            page.replace_range(from..to, &is);
        }
    }
    if std::env::var_os("STOKER_TEST_WRITE").is_some() {
        std::fs::write(&path, page).unwrap();
    } else {
        assert!(
            stale.is_empty(),
            "docs/telemetry.md is stale in {stale:?}: run this with STOKER_TEST_WRITE=1"
        );
    }
}

#[test]
fn every_name_is_used_and_stands_once() {
    let all: Vec<_> = [names::SPANS, names::ATTRIBUTES, names::EVENTS].into_iter().flatten().collect();
    let unique: std::collections::BTreeSet<_> = all.iter().map(|one| one.name).collect();
    assert_eq!(unique.len(), all.len());
    assert!(all.iter().all(|one| one.meaning.ends_with('.') && !one.on.is_empty()));
    // Constants are said by their names in the code that sends them.
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut code = String::new();
    for crate_ in ["lb/src", "runner/src", "common/runtime/src"] {
        read_all(&root.join(crate_), &mut code);
    }
    let listed = include_str!("../names.rs");
    let constants = listed.lines().filter_map(|line| {
        let (constant, _) = line.trim().split_once(" = \"")?;
        constant.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_').then_some(constant)
    });
    let said = |constant: &&str| {
        let path = format!("names::{constant}");
        let ends =
            |at: usize| !code[at + path.len()..].starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
        code.match_indices(&path).any(|(at, _)| ends(at))
    };
    let unused: Vec<_> = constants.filter(|constant| !said(constant)).collect();
    assert!(unused.is_empty(), "nothing sends {unused:?}");
}

fn read_all(directory: &std::path::Path, into: &mut String) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_all(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push_str(&std::fs::read_to_string(&path).unwrap());
        }
    }
}
