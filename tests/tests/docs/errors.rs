//! The page of errors has every code there is, with its blame and its statuses as the one table has them.

use stoker_core::error::Code;
use stoker_core::machine::Listed as _;
use stoker_proto::status;

use crate::page::root;

#[test]
fn every_code_stands_with_its_statuses() {
    let page = std::fs::read_to_string(root().join("docs/errors.md")).unwrap();
    let rows: Vec<Vec<&str>> = page
        .lines()
        .filter(|line| line.starts_with("| `") && line.matches('|').count() == 7)
        .map(|line| line.split('|').map(str::trim).collect())
        .collect();
    let said: Vec<_> = rows.iter().map(|row| [row[1].trim_matches('`'), row[2], row[3], row[4]]).collect();
    let are: Vec<_> = Code::ALL
        .iter()
        .map(|code| {
            let row = status::row(*code);
            // `InvalidArgument` is INVALID_ARGUMENT on the wire.
            let mut grpc = String::new();
            for (at, letter) in format!("{:?}", row.grpc).char_indices() {
                if at > 0 && letter.is_uppercase() {
                    grpc.push('_');
                }
                grpc.push(letter.to_ascii_uppercase());
            }
            [row.reason.to_owned(), code.blame().as_str().to_owned(), grpc, row.http.to_string()]
        })
        .collect();
    assert_eq!(said, are);
    for row in &rows {
        assert!(!row[5].is_empty(), "{}: what happened?", row[1]);
    }
}
