//! `logs`: what functions wrote, line by line, in the order of time; and what they write from now on, for as long as one looks.
//!
//! Who follows stays on when the balancer goes away: the command asks again until it gets an answer. Lines are counted by their runners, so
//! that none is shown twice, and those that nobody kept meanwhile are told as such.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use serde_json::json;
use stoker_core::Blame;
use stoker_core::backoff::Backoff;
use stoker_proto::v1::{self, LogSource};

use crate::args::{Common, Logs, Output};
use crate::failure::Failure;
use crate::{client, output};

/// Most lines that are put in order; of more the newest are shown.
const MOST: usize = 100_000;

/// Waits before a balancer that went away is asked again.
const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(5);

pub async fn run(args: Logs, common: &Common) -> Result<(), Failure> {
    let mut reader = Reader {
        request: v1::StreamLogsRequest {
            function: args.function.clone(),
            call_id: args.call.clone(),
            follow: false,
            since: args.since.map(|since| since.0),
            sources: args.sources.iter().map(|source| LogSource::from(*source).into()).collect(),
        },
        servers: common.server.split(',').map(str::trim).filter(|server| !server.is_empty()).collect(),
        seen: Seen::default(),
        output: common.output,
        style: output::Style::stdout(),
    };
    let shown = reader.backlog(args.tail).await?;
    if !args.follow {
        if shown == 0 && args.tail != Some(0) {
            // Nothing at all looks like a mistake in the command.
            output::say(&nothing(&args));
        }
        return Ok(());
    }
    reader.request.follow = true;
    let mut waits = Backoff::new(FIRST, LONGEST, u64::from(std::process::id()));
    let mut away = false;
    loop {
        let mut heard = false;
        let lost = match reader.follow(&mut heard, &mut away).await {
            Ok(never) => match never {},
            Err(Ended::Here(failure)) => return Err(failure),
            Err(Ended::There(failure)) => failure,
        };
        if heard {
            waits = Backoff::new(FIRST, LONGEST, u64::from(std::process::id()));
        }
        if !std::mem::replace(&mut away, true) {
            output::say(&format!("({}; asking again)\n", lost.what()));
        }
        tokio::time::sleep(waits.next().unwrap_or(LONGEST)).await;
    }
}

fn nothing(args: &Logs) -> String {
    let function = &args.function;
    if args.since.is_some() || !args.sources.is_empty() {
        return format!("No runner keeps a line of {function} that is wanted.\n");
    }
    match args.call.as_str() {
        "" => format!("No runner keeps a line that {function} wrote.\n"),
        call => format!(
            "No runner keeps a line that {function} wrote in call {call}: it wrote none, they are too old, or there was no such call.\n"
        ),
    }
}

/// Why nothing comes any more.
enum Ended {
    /// Of what is done here, or of what was asked for: it will not be otherwise the next time.
    Here(Failure),
    There(Failure),
}

struct Reader<'a> {
    request: v1::StreamLogsRequest,
    servers: Vec<&'a str>,
    seen: Seen,
    output: Output,
    style: output::Style,
}

impl Reader<'_> {
    /// Asks the first balancer that answers.
    async fn ask(&self) -> Result<tonic::Streaming<v1::StreamLogsResponse>, Failure> {
        let mut failed = None;
        for server in &self.servers {
            let asked = async {
                let mut client = client::fleet(server).await?;
                Ok::<_, Failure>(client.stream_logs(self.request.clone()).await?.into_inner())
            };
            match asked.await {
                Ok(stream) => return Ok(stream),
                Err(failure) => _ = failed.get_or_insert(failure),
            }
        }
        Err(failed.unwrap_or_else(|| Failure::usage("no balancer is named", "write --server URL")))
    }

    /// Shows what is kept, and says how many lines that were.
    async fn backlog(&mut self, tail: Option<usize>) -> Result<usize, Failure> {
        let most = tail.unwrap_or(MOST).min(MOST);
        let (mut kept, mut all, mut dropped) = (Vec::new(), 0, 0);
        let mut stream = self.ask().await?;
        while let Some(response) = stream.message().await? {
            dropped += response.dropped;
            for line in response.lines {
                self.seen.is_new(&line);
                all += 1;
                kept.push(line);
            }
            if kept.len() > 2 * most + 1000 {
                newest(&mut kept, most);
            }
        }
        newest(&mut kept, most);
        self.missed(dropped);
        if tail.is_none() && all > kept.len() {
            output::say(&format!("(the newest {} lines of {all})\n", kept.len()));
        }
        for line in &kept {
            self.show(line)?;
        }
        Ok(kept.len())
    }

    /// Shows what comes, until the balancer is gone. `away`: it was, and nobody was told that it is back.
    async fn follow(&mut self, heard: &mut bool, away: &mut bool) -> Result<std::convert::Infallible, Ended> {
        let ended = |failure: Failure| match failure.blame() {
            Blame::Caller => Ended::Here(failure),
            Blame::Function | Blame::Platform => Ended::There(failure),
        };
        let mut stream = self.ask().await.map_err(ended)?;
        *heard = true;
        if std::mem::take(away) {
            output::say("(it is back)\n");
        }
        self.seen.again();
        loop {
            let response = match stream.message().await {
                Ok(Some(response)) => response,
                Ok(None) => return Err(Ended::There(Failure::away("the balancer stopped", ""))),
                Err(status) => return Err(ended(status.into())),
            };
            // With a filter there are gaps that are none.
            let whole = self.request.call_id.is_empty()
                && self.request.since.is_none()
                && self.request.sources.is_empty();
            let mut gaps = 0;
            let new: Vec<_> = response
                .lines
                .into_iter()
                .filter(|line| {
                    let (new, gap) = self.seen.is_new(line);
                    gaps += gap;
                    new
                })
                .collect();
            self.missed(response.dropped + if whole { gaps } else { 0 });
            for line in &new {
                self.show(line).map_err(Ended::Here)?;
            }
        }
    }

    fn missed(&self, lines: u64) {
        if lines > 0 {
            let lines = if lines == 1 { "1 line".to_owned() } else { format!("{lines} lines") };
            output::say(&format!("({lines} came faster than they could be kept or shown, and are lost)\n"));
        }
    }

    fn show(&self, line: &v1::LogLine) -> Result<(), Failure> {
        let text = String::from_utf8_lossy(&line.text);
        let time = line.time.map(|time| time.to_string()).unwrap_or_default();
        match self.output {
            // One value a line, so that a follower can be read by a program.
            Output::Json => output::print(&format!(
                "{}\n",
                json!({
                    "time": time, "source": source(line), "text": text, "call_id": line.call_id,
                    "container": line.container, "runner": line.runner,
                })
            )),
            Output::Table => {
                let from = self.style.dim(&format!("{time} {} {}", line.container, source(line)));
                output::print(&format!("{from} {}\n", output::printable(&text)))
            }
        }
    }
}

/// The newest of them, in the order of time; of one runner in the order in which it has them.
fn newest(lines: &mut Vec<v1::LogLine>, most: usize) {
    lines.sort_by_key(|line| line.time.map(|time| (time.seconds, time.nanos)));
    lines.drain(..lines.len().saturating_sub(most));
}

/// Which lines were shown: the number of the last, of each life of a runner.
#[derive(Default)]
struct Seen {
    last: HashMap<(String, String), Last>,
}

#[derive(Default)]
struct Last {
    number: u64,
    /// What is kept was asked for again, and nothing has come of it yet.
    again: bool,
}

impl Seen {
    /// From now on everything that is kept comes again.
    fn again(&mut self) {
        self.last.values_mut().for_each(|last| last.again = true);
    }

    /// Whether a line was not shown yet, and how many before it are missing.
    fn is_new(&mut self, line: &v1::LogLine) -> (bool, u64) {
        // From a runner that does not count them.
        if line.sequence == 0 {
            return (true, 0);
        }
        // A container's name begins with the life that its runner was in.
        let life = line.container.rsplit_once('-').map_or("", |(life, _)| life);
        let last = self.last.entry((line.runner.clone(), life.to_owned())).or_default();
        if line.sequence <= last.number {
            // What follows on it is complete.
            last.again &= line.sequence < last.number;
            return (false, 0);
        }
        let gap = if std::mem::take(&mut last.again) { line.sequence - last.number - 1 } else { 0 };
        last.number = line.sequence;
        (true, gap)
    }
}

fn source(line: &v1::LogLine) -> &'static str {
    match line.source() {
        LogSource::Stdout => "stdout",
        LogSource::Stderr => "stderr",
        LogSource::Platform => "stoker",
        LogSource::Extension => "extension",
        LogSource::Unspecified => "unknown",
    }
}

/// A moment: a time of day with its date, or how long ago.
pub fn since(text: &str) -> Result<Since, String> {
    if let Ok(ago) = stoker_core::units::parse_duration(text) {
        let moment = SystemTime::now().checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH);
        return Ok(Since(moment.into()));
    }
    let moment = text
        .parse()
        .map_err(|_| "write how long ago, like 10m, or a moment, like 2026-11-21T09:30:00Z".to_owned())?;
    Ok(Since(moment))
}

/// See [`since`].
#[derive(Debug, Clone, Copy)]
pub struct Since(prost_types::Timestamp);

#[cfg(test)]
mod tests {
    use super::*;

    fn line(sequence: u64, container: &str) -> v1::LogLine {
        let time = Some(prost_types::Timestamp { seconds: 10 - sequence as i64, nanos: 0 });
        v1::LogLine { sequence, container: container.into(), runner: "r".into(), time, ..Default::default() }
    }

    #[test]
    fn no_line_comes_twice_and_what_is_missing_is_counted() {
        let mut seen = Seen::default();
        assert_eq!([1, 2, 4].map(|n| seen.is_new(&line(n, "a-1"))), [(true, 0); 3], "a filter leaves gaps");
        assert_eq!(seen.is_new(&line(5, "a-2")), (true, 0), "all containers of a life count together");
        seen.again();
        assert_eq!([4, 5, 6].map(|n| seen.is_new(&line(n, "a-1")).0), [false, false, true]);
        assert_eq!(seen.is_new(&line(9, "a-1")), (true, 0), "what came in one go is told by who dropped it");
        seen.again();
        assert_eq!(seen.is_new(&line(15, "a-1")), (true, 5), "10 to 14 were thrown away");
        assert_eq!(seen.is_new(&line(1, "b-1")), (true, 0), "another life counts anew");
        assert_eq!([0, 0].map(|n| seen.is_new(&line(n, "c-1"))), [(true, 0); 2]);
    }

    #[test]
    fn the_newest_are_kept_in_the_order_of_time() {
        let mut lines = [1, 2, 3].map(|n| line(n, "a-1")).to_vec();
        newest(&mut lines, 2);
        assert_eq!(lines.iter().map(|line| line.sequence).collect::<Vec<_>>(), [2, 1]);
    }

    #[test]
    fn a_moment_is_a_time_or_an_age() {
        let now =
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is later").as_secs() as i64;
        let ago = since("10m").expect("an age").0.seconds;
        assert!((now - 605..=now - 595).contains(&ago), "{ago}");
        assert_eq!(since("1970-01-01T00:01:00Z").expect("a moment").0.seconds, 60);
        assert!(since("yesterday").is_err());
    }
}
