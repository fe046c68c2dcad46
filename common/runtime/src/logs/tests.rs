//! What ends up on the wire, and that nobody waits for it.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, channel};

use super::writer::for_people;
use super::*;

/// Shows what is written; each write waits for a permission if there is somebody to give one.
struct Out(Sender<String>, Option<Receiver<()>>);

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(permissions) = &self.1 {
            permissions.recv().ok();
        }
        self.0.send(String::from_utf8_lossy(bytes).into_owned()).ok();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn json_lines_have_the_ids_of_their_call_at_the_top() {
    let (out, written) = channel();
    let writer = Writer::start(Out(out, None)).unwrap();
    let subscriber =
        tracing_subscriber::registry().with(json(writer.lines()).with_filter(filter("info").unwrap().0));
    tracing::subscriber::with_default(subscriber, || {
        tracing::info!(call_id = "01J", trace_id = "0af7", "refused");
        tracing::debug!("not this one");
    });
    writer.stop(Duration::from_secs(30));
    let lines: Vec<String> = written.iter().collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    let line: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
    assert_eq!((&line["call_id"], &line["trace_id"]), (&"01J".into(), &"0af7".into()));
    assert_eq!((&line["message"], &line["level"]), (&"refused".into(), &"INFO".into()));
}

#[test]
fn lines_for_people_have_no_colours_but_on_a_terminal() {
    let (out, written) = channel();
    let writer = Writer::start(Out(out, None)).unwrap();
    let subscriber = tracing_subscriber::registry().with(pretty(writer.lines(), false));
    tracing::subscriber::with_default(subscriber, || tracing::info!(call_id = "01J", "refused"));
    writer.stop(Duration::from_secs(30));
    let line: String = written.iter().collect();
    assert!(line.contains("refused call_id=\"01J\"") && !line.contains('\x1b'), "{line:?}");
}

#[test]
fn what_somebody_else_wrote_makes_no_line_of_its_own() {
    let (out, written) = channel();
    let writer = Writer::start(Out(out, None)).unwrap();
    let subscriber = tracing_subscriber::registry().with(pretty(writer.lines(), false));
    let forged = "oh\r\n2026-11-22T00:00:00Z ERROR all is lost\n\u{1b}[2Jgone\u{7}";
    tracing::subscriber::with_default(subscriber, || tracing::info!(error = %forged, "failed: {forged}"));
    writer.stop(Duration::from_secs(30));
    let text: String = written.iter().collect();
    assert!(!text.contains(['\u{1b}', '\u{7}', '\r']), "{text:?}");
    let mut lines = text.lines();
    assert!(lines.next().unwrap().contains("failed: oh"), "{text}");
    assert!(lines.clone().count() >= 2 && lines.all(|line| line.starts_with("    ")), "{text}");
    // Colours stay where the log has them.
    let shown = |colours| {
        let text = for_people(b"\x1b[31;1mred\x1b[0m \x1b[2J\x1b]0;x\n".to_vec(), colours);
        String::from_utf8(text).unwrap()
    };
    assert_eq!(shown(true), "\u{1b}[31;1mred\u{1b}[0m [2J]0;x\n");
    assert_eq!(shown(false), "[31;1mred[0m [2J]0;x\n");
}

#[test]
fn who_logs_never_waits_and_what_was_dropped_is_said() {
    let (out, written) = channel();
    let (permit, permissions) = channel();
    let writer = Writer::start(Out(out, Some(permissions))).unwrap();
    let lines = writer.lines();
    use tracing_subscriber::fmt::MakeWriter as _;
    // Nothing is written yet: one line may be in the thread's hands, the others fill the queue.
    const MANY: u64 = 10_000;
    (0..MANY).for_each(|number| writeln!(lines.make_writer(), "{number}").unwrap());
    let dropped = lines.dropped();
    assert!(dropped > 0 && dropped < MANY, "{dropped}");
    // From now on every write is permitted at once.
    drop(permit);
    let (mut seen, mut said) = (0, 0);
    while seen + said < MANY {
        let line = written.recv_timeout(Duration::from_secs(30)).expect("all lines are written or counted");
        match serde_json::from_str::<serde_json::Value>(&line).unwrap()["message"].as_str() {
            Some(remark) => said += remark.split(' ').next().unwrap().parse::<u64>().unwrap(),
            None => seen += 1,
        }
    }
    assert_eq!(said, dropped);
    writer.stop(Duration::from_secs(30));
}

#[test]
fn filters() {
    for good in ["info", "off", "WARN", "info,stoker_lb=debug", "stoker_lb::link=trace, error"] {
        assert!(filter(good).is_ok(), "{good}");
    }
    for bad in ["", "verbose", "info,", "stoker_lb", "stoker_lb=loud", "=info", "info=debug=warn"] {
        assert!(filter(bad).is_err(), "{bad}");
    }
}
