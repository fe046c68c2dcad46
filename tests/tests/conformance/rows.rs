//! The rows of the table: what a function does, and what comes of it.

mod answers;
mod endings;
mod invalid;
mod resources;
mod starts;
mod told;

use stoker_core::error::Code;
use stoker_tests::calls::Answer;

use crate::table::{Ask, Body, Row};

const BAD: Code = Code::FunctionInvalidResponse;
const CRASHED: Code = Code::FunctionCrashed;

const fn text(body: &'static str, content_type: &'static str) -> Ask {
    Ask { body: Body::Text(body), content_type, headers: &[] }
}

const fn large(orders: &'static str) -> Ask {
    Ask { body: Body::Large(orders), content_type: "application/json", headers: &[] }
}

fn same(is: &str, should: &str) -> Result<(), String> {
    if is == should { Ok(()) } else { Err(format!("{is} instead of {should}")) }
}

fn header(answer: &Answer, name: &str, value: &str) -> Result<(), String> {
    same(answer.header(name).unwrap_or("nothing"), value).map_err(|why| format!("{name}: {why}"))
}

/// All of them, in the order of the document.
pub fn rows() -> impl Iterator<Item = &'static Row> {
    let all = [answers::ROWS, told::ROWS, endings::ROWS, invalid::ROWS, resources::ROWS, starts::ROWS];
    all.into_iter().flatten()
}
