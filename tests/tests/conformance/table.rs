//! What a row of the table is made of.

use std::fmt::Write as _;

use stoker_core::error::Code;
use stoker_tests::calls::Answer;

use crate::columns::{ALL, Column};

/// One behaviour of a function, and what it comes to in every format.
pub struct Row {
    /// Names it in the document, and the function in the fleet.
    pub id: &'static str,
    /// What the function does, for people.
    pub says: &'static str,
    pub ask: Ask,
    pub setting: Setting,
    pub flow: Flow,
    /// The first that names a column counts. A column that none names has no such behaviour.
    pub cells: &'static [Cell],
}

/// The call.
#[derive(Clone, Copy)]
pub struct Ask {
    pub body: Body,
    pub content_type: &'static str,
    pub headers: &'static [(&'static str, &'static str)],
}

/// The body of a call.
#[derive(Clone, Copy)]
pub enum Body {
    /// `{"do": …}`.
    Do(&'static str),
    /// As it stands.
    Text(&'static str),
    Bytes(&'static [u8]),
    /// `{"do": …}`, with so much more in it that it comes in pieces, and that no pipe holds it.
    Large(&'static str),
}

/// What the function and its call are besides.
#[derive(Clone, Copy)]
pub struct Setting {
    /// `TEST_START`.
    pub start: &'static str,
    /// `TEST_DO`.
    pub always: &'static str,
    pub timeout_ms: u64,
    pub init_timeout_ms: u64,
    /// `format_options: {cloudevents_by_content_type: true}`.
    pub by_content_type: bool,
    /// MiB.
    pub memory: u64,
    /// What only some sandboxes can do.
    pub needs: Needs,
    /// What an error shows of the function's log.
    pub tail: &'static str,
    /// What the next call finds in the file that this one may have written.
    pub file: Option<&'static str>,
}

pub const PLAIN: Setting = Setting {
    start: "",
    always: "",
    timeout_ms: 20_000,
    init_timeout_ms: 20_000,
    by_content_type: false,
    memory: 64,
    needs: Needs::Nothing,
    tail: "",
    file: None,
};

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    Nothing,
    /// Memory has a limit.
    MemoryLimit,
    /// The root directory is not the host's.
    Isolation,
}

/// What happens around the call.
#[derive(Clone, Copy)]
pub enum Flow {
    /// The call; then another.
    Once,
    /// The call, whose answer may have begun before it broke: an HTTP client has a part of it then, and no error to read.
    Half,
    /// The call, which is answered; once the answer is here, the function writes more; then another.
    Late,
    /// The call, which is answered; then one that fails; then another.
    SpoilsTheNext,
    /// The call, which is answered; the process ends; then another, which finds it gone, or is the one that finds it ending.
    Leaves,
    /// The caller goes away while the function works; then another.
    Abandoned,
    /// The call, with less time than the function needs; then another.
    Deadline,
    /// The call, so many times one after the other, each with a text of its own.
    Many(u32),
    /// The same at once.
    AtOnce(u32),
    /// Through a trigger.
    Trigger,
    /// Only the call: nothing else would come of another.
    Alone,
}

/// What it comes to in some formats.
pub struct Cell {
    pub columns: &'static [Column],
    pub outcome: Outcome,
    pub next: Next,
}

pub enum Outcome {
    /// An answer of this status.
    Answer(u16, Content),
    /// An error of the function or the caller, and a part of what it says.
    Error(Code, &'static str),
    /// One of the two: which, no one can know.
    Either(Code, Code),
}

pub enum Content {
    Any,
    /// This JSON.
    Json(&'static str),
    /// These bytes.
    Bytes(&'static [u8]),
    /// The request's body.
    Echo,
    /// At least so many bytes, and at most a tenth more.
    About(usize),
    /// The function's report, or whatever it is, examined.
    Is(fn(&Answer, Column) -> Result<(), String>),
}

/// Who serves the next call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The same process. Where a process has one call, another.
    Same,
    /// Another process.
    New,
    /// The same, which has seen nothing of this call.
    Untouched,
}

impl Row {
    pub fn cell(&self, column: Column) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.columns.contains(&column))
    }
}

/// What a call with these orders gives.
pub const fn do_(orders: &'static str) -> Ask {
    Ask { body: Body::Do(orders), content_type: "application/json", headers: &[] }
}

pub const fn row(id: &'static str, says: &'static str, ask: Ask, cells: &'static [Cell]) -> Row {
    Row { id, says, ask, setting: PLAIN, flow: Flow::Once, cells }
}

impl Row {
    pub const fn flow(mut self, flow: Flow) -> Self {
        self.flow = flow;
        self
    }

    pub const fn timeout(mut self, ms: u64) -> Self {
        self.setting.timeout_ms = ms;
        self
    }

    pub const fn starts(mut self, start: &'static str) -> Self {
        self.setting.start = start;
        self
    }

    pub const fn init_timeout(mut self, ms: u64) -> Self {
        self.setting.init_timeout_ms = ms;
        self
    }

    pub const fn always(mut self, always: &'static str) -> Self {
        self.setting.always = always;
        self
    }

    pub const fn by_content_type(mut self) -> Self {
        self.setting.by_content_type = true;
        self
    }

    pub const fn memory(mut self, mebibytes: u64) -> Self {
        self.setting.memory = mebibytes;
        self
    }

    pub const fn tail(mut self, tail: &'static str) -> Self {
        self.setting.tail = tail;
        self
    }

    pub const fn file(mut self, file: &'static str) -> Self {
        self.setting.file = Some(file);
        self
    }

    pub const fn needs(mut self, needs: Needs) -> Self {
        self.setting.needs = needs;
        self
    }
}

impl Ask {
    pub const fn headers(mut self, headers: &'static [(&'static str, &'static str)]) -> Self {
        self.headers = headers;
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        match self.body {
            Body::Do(orders) => format!("{{\"do\":\"{orders}\",\"text\":\"as it was\"}}").into_bytes(),
            Body::Text(text) => text.as_bytes().to_vec(),
            Body::Bytes(bytes) => bytes.to_vec(),
            Body::Large(orders) => {
                format!("{{\"do\":\"{orders}\",\"text\":\"{}\"}}", "large ".repeat(200_000)).into_bytes()
            }
        }
    }
}

pub const fn cell(columns: &'static [Column], outcome: Outcome, next: Next) -> Cell {
    Cell { columns, outcome, next }
}

/// Answered, and the container takes the next call.
pub const fn answers(columns: &'static [Column], content: Content) -> Cell {
    cell(columns, Outcome::Answer(200, content), Next::Same)
}

/// Answered, and the container goes.
pub const fn leaves(columns: &'static [Column], content: Content) -> Cell {
    cell(columns, Outcome::Answer(200, content), Next::New)
}

/// An error, and the container goes.
pub const fn fails(columns: &'static [Column], code: Code, says: &'static str) -> Cell {
    cell(columns, Outcome::Error(code, says), Next::New)
}

/// The rows as the document shows them.
pub fn document(rows: impl Iterator<Item = &'static Row>) -> String {
    let mut out = String::from("| row | the function | what comes of it |\n|---|---|---|\n");
    for row in rows {
        let mut groups: Vec<(String, Vec<Column>)> = Vec::new();
        for &column in ALL {
            let Some(cell) = row.cell(column) else { continue };
            let words = in_words(row, cell, column);
            match groups.iter_mut().find(|(known, _)| *known == words) {
                Some((_, columns)) => columns.push(column),
                None => groups.push((words, vec![column])),
            }
        }
        let cells: Vec<_> =
            groups.iter().map(|(words, columns)| format!("{}: {words}", names(columns))).collect();
        _ = writeln!(out, "| `{}` | {} | {} |", row.id, row.says, cells.join("<br>"));
    }
    out
}

fn names(columns: &[Column]) -> String {
    let join = |columns: &[Column]| columns.iter().map(|c| c.name()).collect::<Vec<_>>().join(", ");
    let left: Vec<_> = ALL.iter().filter(|column| !columns.contains(column)).copied().collect();
    match left.len() {
        0 => "all".to_owned(),
        1..=3 => format!("all but {}", join(&left)),
        _ => join(columns),
    }
}

/// A cell: the outcome, and the container.
fn in_words(row: &Row, cell: &Cell, column: Column) -> String {
    let outcome = match &cell.outcome {
        Outcome::Answer(200, _) => "the answer".to_owned(),
        Outcome::Answer(status, _) => format!("the answer, status {status}"),
        Outcome::Error(code, _) => reason(*code),
        Outcome::Either(one, other) => format!("{} or {}", reason(*one), reason(*other)),
    };
    let container = match (row.flow, cell.next) {
        (Flow::Alone, _) => "",
        (_, Next::Untouched) => "; the container saw nothing",
        _ if column.is_cold() => "",
        (_, Next::Same) => "; the container stays",
        (_, Next::New) => "; the container goes",
    };
    outcome + container
}

fn reason(code: Code) -> String {
    format!("`{}`", stoker_proto::status::row(code).reason)
}
