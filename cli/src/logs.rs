//! `logs`: what functions wrote, line by line.

use serde_json::json;
use stoker_proto::v1::{self, LogSource};

use crate::args::{Common, Logs, Output};
use crate::failure::Failure;
use crate::{client, output};

pub async fn run(args: Logs, common: &Common) -> Result<(), Failure> {
    let mut client = client::fleet(&common.server).await?;
    let (function, call) = (args.function.clone(), args.call.clone());
    let request = v1::StreamLogsRequest { function: args.function, call_id: args.call, follow: args.follow };
    let mut stream = client.stream_logs(request).await?.into_inner();
    let style = output::Style::stdout();
    let mut empty = true;
    while let Some(response) = stream.message().await? {
        if response.dropped > 0 {
            output::say(&format!(
                "({} lines came faster than they could be kept, and are lost)\n",
                response.dropped
            ));
        }
        empty &= response.lines.is_empty();
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
                ))?,
                Output::Table => {
                    let from = style.dim(&format!("{time} {} {}", line.container, source(&line)));
                    output::print(&format!("{from} {}\n", output::printable(&text)))?;
                }
            }
        }
    }
    if empty {
        // Nothing at all looks like a mistake in the command.
        output::say(&match call.as_str() {
            "" => format!("No runner keeps a line that {function} wrote.\n"),
            call => format!(
                "No runner keeps a line that {function} wrote in call {call}: it wrote none, they are too old, or there was no such call.\n"
            ),
        });
    }
    Ok(())
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
