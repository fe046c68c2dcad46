//! Links between pages, and from pages to files.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use crate::page::{Page, pages, root};

/// Where a link from a page leads, from the repository's root; `None` where it leaves the repository.
fn target(page: &str, link: &str) -> Option<PathBuf> {
    let mut at = PathBuf::from(page).parent().unwrap().to_owned();
    for part in Path::new(link).components() {
        match part {
            Component::ParentDir => at = at.parent()?.to_owned(),
            Component::Normal(name) => at.push(name),
            _ => {}
        }
    }
    Some(at)
}

/// What is wrong with a link.
fn wrong(page: &Page, link: &str, anchors: &HashMap<String, Vec<String>>) -> Option<String> {
    if link.contains("://") || link.starts_with("mailto:") {
        return None;
    }
    let (path, anchor) = link.split_once('#').map_or((link, None), |(path, anchor)| (path, Some(anchor)));
    let name = match path {
        "" => page.name.clone(),
        path => match target(&page.name, path) {
            Some(found) if root().join(&found).exists() => found.to_string_lossy().into_owned(),
            _ => return Some(format!("there is no {path}")),
        },
    };
    match (anchor, anchors.get(&name)) {
        (Some(anchor), Some(known)) if !known.iter().any(|a| a == anchor) => {
            Some(format!("{name} has no heading #{anchor}"))
        }
        _ => None,
    }
}

#[test]
fn every_link_leads_somewhere() {
    let pages = pages();
    let anchors: HashMap<_, _> = pages.iter().map(|page| (page.name.clone(), page.anchors.clone())).collect();
    let mut mistakes = Vec::new();
    for page in &pages {
        for (line, link) in &page.links {
            mistakes.extend(wrong(page, link, &anchors).map(|why| format!("{}:{line}: {why}", page.name)));
        }
    }
    assert!(mistakes.is_empty(), "{}", mistakes.join("\n"));
    let page = &pages[0];
    for broken in ["nowhere.md", "#nowhere", "README.md#nowhere", "../../../../etc/passwd"] {
        assert!(wrong(page, broken, &anchors).is_some(), "{broken} leads somewhere");
    }
}

#[test]
fn every_page_can_be_found_from_the_index() {
    let pages = pages();
    let linked: Vec<_> = pages
        .iter()
        .filter(|page| page.name.starts_with("docs/") && page.name.ends_with("/README.md"))
        .flat_map(|index| index.links.iter().filter_map(|(_, link)| target(&index.name, link)))
        .collect();
    let missing: Vec<_> = pages
        .iter()
        .filter(|page| page.name.starts_with("docs/") && !page.name.starts_with("docs/adr/"))
        .filter(|page| page.name != "docs/README.md" && !linked.contains(&PathBuf::from(&page.name)))
        .map(|page| &page.name)
        .collect();
    assert!(missing.is_empty(), "no index names {missing:?}");
}
