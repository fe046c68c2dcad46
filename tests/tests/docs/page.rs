//! Pages in Markdown, as far as the tests look at them: headings, links, and blocks with what a comment above them says of them.

use std::path::{Path, PathBuf};

/// The repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// What a comment right above a block says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// `<!-- not run: WHY -->`
    NotRun(String),
    /// `<!-- stays: TEXT -->`: it runs until the page ends; the next one begins once it has said TEXT.
    Stays(String),
    /// `<!-- says: TEXT -->`: TEXT is in its output.
    Says(String),
    /// `<!-- fails -->`: and so it must.
    Fails,
    /// `<!-- file: NAME -->`: the block is the content of that file.
    File(String),
}

/// What a page has for those who follow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A fenced block.
    Block { line: usize, language: String, text: String, notes: Vec<Note> },
    /// `<!-- run: COMMANDS -->`: what the page takes for granted.
    Before { line: usize, text: String },
}

#[derive(Debug, Default)]
pub struct Page {
    /// From the repository's root.
    pub name: String,
    pub steps: Vec<Step>,
    /// What links can lead to.
    pub anchors: Vec<String>,
    /// Where they lead, with their line.
    pub links: Vec<(usize, String)>,
}

/// All pages of the repository.
pub fn pages() -> Vec<Page> {
    let mut files = Vec::new();
    for name in ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"] {
        files.push(root().join(name));
    }
    let mut folders: Vec<_> = ["docs", "deploy", "examples"].iter().map(|name| root().join(name)).collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "md") {
                files.push(path);
            }
        }
    }
    files.sort();
    files.iter().map(|file| read(file)).collect()
}

fn read(file: &Path) -> Page {
    let name = file.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
    let text = std::fs::read_to_string(file).unwrap();
    parse(name, &text)
}

fn parse(name: String, text: &str) -> Page {
    let mut page = Page { name, ..Page::default() };
    let mut notes = Vec::new();
    let mut lines = text.lines().enumerate().map(|(at, line)| (at + 1, line));
    while let Some((number, line)) = lines.next() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            let inside: Vec<_> =
                lines.by_ref().map(|(_, line)| line).take_while(|line| line.trim() != "```").collect();
            page.steps.push(Step::Block {
                line: number,
                language: language.trim().to_owned(),
                text: inside.join("\n") + "\n",
                notes: std::mem::take(&mut notes),
            });
        } else if let Some(begin) = line.strip_prefix("<!-- ") {
            let mut comment = begin.to_owned();
            while !comment.contains("-->") {
                let (_, more) = lines.next().unwrap_or_else(|| panic!("{}:{number}: no end", page.name));
                comment.push('\n');
                comment.push_str(more);
            }
            let said = comment.split("-->").next().unwrap().trim();
            match said.split_once(':').map_or((said, ""), |(word, rest)| (word, rest.trim())) {
                ("run", text) => {
                    page.steps.push(Step::Before { line: number, text: text.to_owned() + "\n" });
                }
                ("not run", why) => notes.push(Note::NotRun(why.to_owned())),
                ("stays", text) => notes.push(Note::Stays(text.to_owned())),
                ("says", text) => notes.push(Note::Says(text.to_owned())),
                ("file", name) => notes.push(Note::File(name.to_owned())),
                ("fails", "") => notes.push(Note::Fails),
                // Marks of other tests.
                _ => {}
            }
        } else {
            if !line.trim().is_empty() {
                assert!(notes.is_empty(), "{}:{number}: {notes:?} belongs to no block", page.name);
            }
            if let Some(title) = line.strip_prefix('#').map(|title| title.trim_start_matches('#').trim()) {
                page.anchors.push(anchor(title, &page.anchors));
            }
            page.links.extend(links(line).map(|link| (number, link)));
        }
    }
    page
}

/// As GitHub makes it of a heading.
fn anchor(title: &str, before: &[String]) -> String {
    // A link in a heading is its text.
    let mut shown = String::new();
    let mut rest = title;
    while let Some((text, link)) = rest.split_once("](") {
        shown.push_str(&text.replacen('[', "", 1));
        rest = link.split_once(')').map_or("", |(_, after)| after);
    }
    shown.push_str(rest);
    let plain: String = shown
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect();
    (0..)
        .map(|n| if n == 0 { plain.clone() } else { format!("{plain}-{n}") })
        .find(|candidate| !before.contains(candidate))
        .unwrap()
}

/// Targets of the links in a line, outside code.
fn links(line: &str) -> impl Iterator<Item = String> {
    let text: String = line.split('`').step_by(2).collect();
    let parts: Vec<String> =
        text.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0.to_owned())).collect();
    parts.into_iter()
}

#[test]
fn a_page_is_read_as_it_stands() {
    let text = "# One `two`: three\n\nSee [a](b.md#c) and `[x](y)` [z](http://w).\n\n<!-- says: hi -->\n```sh\necho hi\n```\n\n\
                <!-- run:\none\ntwo\n-->\n## One two three\n";
    let page = parse("p.md".to_owned(), text);
    assert_eq!(page.anchors, ["one-two-three", "one-two-three-1"]);
    assert_eq!(page.links, [(3, "b.md#c".to_owned()), (3, "http://w".to_owned())]);
    let block = Step::Block {
        line: 6,
        language: "sh".to_owned(),
        text: "echo hi\n".to_owned(),
        notes: vec![Note::Says("hi".to_owned())],
    };
    assert_eq!(page.steps, [block, Step::Before { line: 10, text: "one\ntwo\n".to_owned() }]);
}
