//! Every line of the fleet's threat model names a test that tries it, and the test is there. (That the lines of the sandbox have their attempts is checked
//! where the attempts are.)

use std::path::PathBuf;

use crate::page::root;

/// The source of all tests.
fn source() -> String {
    let mut text = String::new();
    let mut folders: Vec<PathBuf> = ["tests", "lb", "runner", "common", "cli", "proto"]
        .iter()
        .map(|folder| root().join(folder))
        .collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                text.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
    text
}

#[test]
fn every_line_of_the_threat_model_has_a_test() {
    let text = std::fs::read_to_string(root().join("docs/security.md")).unwrap();
    let (_, fleet) = text.split_once("## The fleet").unwrap();
    let lines: Vec<&str> = fleet
        .lines()
        .filter(|line| line.starts_with("| "))
        .skip(1)
        .filter(|l| !l.starts_with("|-"))
        .collect();
    assert!(lines.len() > 20, "the fleet has a table");
    let source = source();
    let mut mistakes = Vec::new();
    for line in lines {
        let cell = line.trim_end_matches('|').rsplit("| ").next().unwrap();
        let names: Vec<&str> = cell.split('`').skip(1).step_by(2).collect();
        if names.is_empty() && cell.trim() != "the same" {
            mistakes.push(format!("no test: {line}"));
        }
        for name in names {
            let declared = match name.strip_suffix('…') {
                Some(beginning) => format!("fn {beginning}"),
                None => format!("fn {name}("),
            };
            if !source.contains(&declared) {
                mistakes.push(format!("there is no test {name}"));
            }
        }
    }
    assert!(mistakes.is_empty(), "{}", mistakes.join("\n"));
}
