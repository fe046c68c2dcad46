//! `docs/conformance.md` says what the tests say: its tables are written from the table's rows and from the catalogue, and a difference
//! is a failure. `STOKER_TEST_WRITE=1` writes them anew.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::rows::rows;
use crate::table;

const CATALOGUE: &str = include_str!("catalogue.txt");

/// What became of some cases.
struct Case {
    names: Vec<&'static str>,
    here: Here,
}

enum Here {
    Rows(Vec<&'static str>),
    Tests(Vec<&'static str>),
    Not(&'static str),
}

/// The groups of the catalogue.
fn catalogue() -> Vec<(&'static str, Vec<Case>)> {
    let mut groups: Vec<(&str, Vec<Case>)> = Vec::new();
    for line in CATALOGUE.lines().filter(|line| !line.is_empty() && !line.starts_with("# ")) {
        if let Some(title) = line.strip_prefix("## ") {
            groups.push((title, Vec::new()));
            continue;
        }
        let at = [" = ", " ~ ", " ! "].iter().filter_map(|mark| line.find(mark)).min();
        let at = at.unwrap_or_else(|| panic!("no verdict: {line}"));
        let (names, verdict) = (&line[..at], &line[at + 3..]);
        let list = || verdict.split(", ").collect();
        let here = match line.as_bytes()[at + 1] {
            b'=' => Here::Rows(list()),
            b'~' => Here::Tests(list()),
            _ => Here::Not(verdict),
        };
        let group = &mut groups.last_mut().expect("the catalogue begins with a group").1;
        group.push(Case { names: names.split(", ").collect(), here });
    }
    groups
}

fn shown(groups: &[(&str, Vec<Case>)]) -> String {
    let mut out = String::new();
    for (title, cases) in groups {
        _ = writeln!(out, "### {title}\n\n| case | here |\n|---|---|");
        for case in cases {
            let names: Vec<_> = case.names.iter().map(|name| format!("`{name}`")).collect();
            let quoted = |list: &[&str]| list.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
            let here = match &case.here {
                Here::Rows(rows) => quoted(rows),
                Here::Tests(tests) => format!("tests {}", quoted(tests)),
                Here::Not(why) => format!("– {why}"),
            };
            _ = writeln!(out, "| {} | {here} |", names.join(", "));
        }
        out.push('\n');
    }
    out.truncate(out.trim_end().len() + 1);
    out
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The text between two marks, exchanged.
fn exchange(document: &str, mark: &str, text: &str) -> String {
    let (begin, end) = (format!("<!-- {mark} -->\n"), format!("<!-- /{mark} -->\n"));
    let (before, rest) = document.split_once(&begin).unwrap_or_else(|| panic!("{begin} is missing"));
    let (_, after) = rest.split_once(&end).unwrap_or_else(|| panic!("{end} is missing"));
    format!("{before}{begin}{text}{end}{after}")
}

#[test]
fn the_document_says_what_the_table_says() {
    let path = root().join("docs/conformance.md");
    let document = std::fs::read_to_string(&path).unwrap();
    let written = exchange(&document, "rows", &table::document(rows()));
    let written = exchange(&written, "cases", &shown(&catalogue()));
    if std::env::var_os("STOKER_TEST_WRITE").is_some() {
        std::fs::write(&path, written).unwrap();
    } else {
        let differs = document.lines().zip(written.lines()).find(|(is, should)| is != should);
        assert!(document == written, "docs/conformance.md is not what the tests are: {differs:#?}");
    }
}

#[test]
fn every_row_has_a_name_of_its_own_and_a_place_in_every_column_it_names() {
    let mut names = BTreeSet::new();
    for row in rows() {
        assert!(names.insert(row.id), "{} stands twice", row.id);
        for cell in row.cells {
            let counts =
                |column: &&crate::columns::Column| row.cell(**column).is_some_and(|c| std::ptr::eq(c, cell));
            assert!(cell.columns.iter().any(|c| counts(&c)), "{}: a cell that no column reaches", row.id);
        }
    }
}

/// Names of tests in this repository.
fn tests() -> String {
    let mut text = String::new();
    let mut folders: Vec<_> =
        ["tests", "lb", "runner", "common", "cli"].iter().map(|folder| root().join(folder)).collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                text.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
    text
}

#[test]
fn every_case_of_others_has_one_place() {
    let tests = tests();
    let rows: BTreeSet<_> = rows().map(|row| row.id).collect();
    let mut seen = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    for (title, cases) in catalogue() {
        for case in cases {
            for name in &case.names {
                assert!(seen.insert((title, *name)), "{title}: {name} stands twice");
                let number = name.split(' ').next().and_then(|word| word.parse::<u32>().ok());
                if title.starts_with("Lambda") {
                    numbers.insert(number.unwrap_or_else(|| panic!("{name} has no number")));
                }
            }
            match &case.here {
                Here::Rows(found) => {
                    let none: Vec<_> = found.iter().filter(|row| !rows.contains(*row)).collect();
                    assert!(none.is_empty(), "{:?}: no such rows: {none:?}", case.names);
                }
                Here::Tests(found) => {
                    let none: Vec<_> =
                        found.iter().filter(|test| !tests.contains(&format!("fn {test}("))).collect();
                    assert!(none.is_empty(), "{:?}: no such tests: {none:?}", case.names);
                }
                Here::Not(why) => assert!(why.len() > 10, "{:?}: {why}", case.names),
            }
        }
    }
    assert_eq!(numbers, (1..=132).collect(), "the cases of Lambda are numbered without a gap");
}
