//! What functions say of the calls that reached them: a record that is none of Stoker's.
//!
//! A probe with the variable `PROBE_RECORD` writes one line into a named pipe when a call reaches it, before it does anything with
//! it; where it is told to, another when it is done with it. A line is written whole or not at all, whatever happens to the probe, its container or its runner afterwards.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};

use tokio::sync::watch;

use crate::functions::Pipe;
use crate::within;

/// A call reached a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// What its client called it.
    pub key: String,
    /// The process, and which of its calls it is.
    pub by: String,
    /// `PROBE_VERSION` there.
    pub version: String,
}

#[derive(Debug, Default)]
struct Seen {
    starts: Vec<Start>,
    /// Calls that record their end and have not, and the most that there were of them at once.
    open: usize,
    most: usize,
    /// The last mark of ours that came through.
    mark: u64,
}

/// The reading end.
pub struct Starts {
    pipe: Pipe,
    ours: File,
    seen: watch::Receiver<Seen>,
    marks: u64,
}

impl Starts {
    /// An empty record.
    #[must_use]
    pub fn new() -> Self {
        let pipe = Pipe::new();
        let (ours, lines) = (pipe.both(), BufReader::new(pipe.both()).lines());
        let (sender, seen) = watch::channel(Seen::default());
        // Ends with the line that is written when this is dropped.
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let words: Vec<_> = line.split(' ').collect();
                match words[..] {
                    ["start", key, by, version] => sender.send_modify(|seen| {
                        let text = str::to_owned;
                        seen.starts.push(Start { key: text(key), by: text(by), version: text(version) });
                        seen.open += 1;
                        seen.most = seen.most.max(seen.open);
                    }),
                    ["end", _] => sender.send_modify(|seen| seen.open -= 1),
                    ["mark", number] => sender.send_modify(|seen| seen.mark = number.parse().unwrap()),
                    ["end"] => return,
                    _ => panic!("a line that nobody writes: {line:?}"),
                }
            }
        });
        Self { pipe, ours, seen, marks: 0 }
    }

    /// Where functions write to, and which directory they must have for it.
    #[must_use]
    pub fn pipe(&self) -> &Pipe {
        &self.pipe
    }

    /// Every start that was written before this call, by key.
    pub async fn by_key(&mut self) -> HashMap<String, Vec<Start>> {
        self.marks += 1;
        let mark = self.marks;
        self.ours.write_all(format!("mark {mark}\n").as_bytes()).unwrap();
        // The pipe keeps the order: with the mark everything before it is here.
        let seen =
            within("the record of starts", self.seen.wait_for(|seen| seen.mark == mark)).await.unwrap();
        let mut by_key: HashMap<_, Vec<_>> = HashMap::new();
        for start in &seen.starts {
            by_key.entry(start.key.clone()).or_default().push(start.clone());
        }
        by_key
    }

    /// The most calls that ran at once, where all of them record their ends.
    pub async fn most_at_once(&mut self) -> usize {
        self.by_key().await;
        self.seen.borrow().most
    }

    /// Waits for the start of a call.
    pub async fn started(&self, key: &str) -> Start {
        let mut seen = self.seen.clone();
        let find = |seen: &Seen| seen.starts.iter().find(|start| start.key == key).cloned();
        let found = within(&format!("the start of {key}"), seen.wait_for(|seen| find(seen).is_some())).await;
        find(&found.unwrap()).unwrap()
    }
}

impl Default for Starts {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Starts {
    fn drop(&mut self) {
        // The thread reads until then, so that there is room.
        _ = self.ours.write_all(b"end\n");
    }
}
