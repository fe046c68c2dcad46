//! `logs`: what functions wrote, line by line.

use serde_json::json;
use stoker_proto::v1::{self, LogSource};

use crate::args::{Common, Logs, Output};
use crate::failure::Failure;
use crate::{client, output};

pub async fn run(args: Logs, common: &Common) -> Result<(), Failure> {
    let mut client = client::fleet(&common.server).await?;
    let request = v1::StreamLogsRequest { function: args.function, call_id: args.call, follow: args.follow };
    let mut stream = client.stream_logs(request).await?.into_inner();
    let style = output::Style::stdout();
    while let Some(response) = stream.message().await? {
        if response.dropped > 0 {
            eprintln!("({} lines came faster than they could be kept, and are lost)", response.dropped);
        }
        for line in response.lines {
            let text = String::from_utf8_lossy(&line.text);
            let time = line.time.map(|time| time.to_string()).unwrap_or_default();
            match common.output {
                // One value a line, so that a follower can be read by a program.
                Output::Json => output::print(&format!(
                    "{}\n",
                    json!({
                        "time": time, "source": source(&line), "text": text, "call_id": line.call_id,
                        "container": line.container, "runner": line.runner,
                    })
                )),
                Output::Table => {
                    let from = style.dim(&format!("{time} {} {}", line.container, source(&line)));
                    output::print(&format!("{from} {}\n", printable(&text)));
                }
            }
        }
    }
    Ok(())
}

fn source(line: &v1::LogLine) -> &'static str {
    match line.source() {
        LogSource::Stdout => "stdout",
        LogSource::Stderr => "stderr",
        LogSource::Platform => "stoker",
        LogSource::Unspecified => "unknown",
    }
}

/// A function's text must not steer the reader's terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn control_characters_are_not_passed_on() {
        assert_eq!(super::printable("a\x1b[31m\tb"), "a\u{fffd}[31m\tb");
    }
}
