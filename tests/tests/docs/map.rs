//! The map of the code in `docs/architecture.md`: what it says stands in a file is there.

use crate::page::root;

/// Whether a source declares something of this name.
fn declares(source: &str, name: &str) -> bool {
    let words: Vec<&str> =
        source.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty()).collect();
    let kinds = ["fn", "struct", "enum", "trait"];
    words.windows(2).any(|pair| kinds.contains(&pair[0]) && pair[1] == name)
}

#[test]
fn what_the_map_names_is_where_it_says() {
    let map = std::fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let (mut names, mut mistakes) = (0, Vec::new());
    for link in map.split("](../").skip(1) {
        let (path, mut rest) = link.split_once(')').unwrap();
        if !path.ends_with(".rs") {
            continue;
        }
        // That the file is there is checked with all links.
        let source = std::fs::read_to_string(root().join(path)).unwrap_or_default();
        // Its names stand right behind it.
        while let Some((name, more)) =
            rest.trim_start_matches([' ', ',']).strip_prefix('`').and_then(|name| name.split_once('`'))
        {
            names += 1;
            rest = more;
            if !declares(&source, name) {
                mistakes.push(format!("{path} has no `{name}`"));
            }
        }
    }
    assert!(names > 30, "the map names {names} places");
    assert!(mistakes.is_empty(), "{}", mistakes.join("\n"));
    assert!(!declares("let place = fn_place();", "place"));
}
