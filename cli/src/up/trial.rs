//! The first calls: each function of the files once cold and then warm, so that whoever starts a fleet sees it work.

use std::time::{Duration, Instant};

use stoker_core::FunctionSpec;
use stoker_proto::v1;
use stoker_proto::v1::call_service_client::CallServiceClient;

use super::sample::Sample;
use super::{programs, tell};
use crate::args::Output;
use crate::client::{self, Connection};
use crate::failure::Failure;
use crate::output;

/// Warm calls; the fastest is shown, since the machine has other things to do as well.
const WARM: usize = 10;
/// But no more once they took so long together: somebody waits.
const LONG: Duration = Duration::from_millis(250);

pub async fn run(server: &str, specs: &[FunctionSpec]) -> Result<(), Failure> {
    let style = output::Style::stdout();
    let mut calls = client::calls(Connection::open(server).await?);
    tell(output::print(&format!("\n{}\n\n", style.bold("First calls"))));
    let width =
        specs.iter().map(|spec| spec.name.as_str().len()).chain(["FUNCTION".len()]).max().unwrap_or_default();
    // Told as they come: somebody waits for the first.
    let row = |name: &str, cold: &str, warm: &str, answer: &str| {
        let line = format!("  {name:<width$}  {cold:<9}  {warm:<9}  {answer}");
        tell(output::print(&format!("{}\n", line.trim_end())));
    };
    row("FUNCTION", "COLD", "WARM", "ANSWER");
    let mut left_out = Vec::new();
    let mut failed = Vec::new();
    for spec in specs {
        if let Some(why) = programs::missing(spec) {
            left_out.push(format!("  {} was left out: {why}\n", spec.name));
            continue;
        }
        match one(&mut calls, spec).await {
            Ok([cold, warm, answer]) => row(spec.name.as_str(), &cold, &warm, &answer),
            Err(failure) => {
                row(spec.name.as_str(), "failed", "", "");
                failed.push((spec, failure));
            }
        }
    }
    tell(output::print(&left_out.concat()));
    for (spec, failure) in failed {
        output::say(&format!("\n{} failed.\n", spec.name));
        failure.print(Output::Table);
    }
    Ok(())
}

/// Its cold call, the best of its warm ones, and the first line of what it said.
async fn one(calls: &mut CallServiceClient<Connection>, spec: &FunctionSpec) -> Result<[String; 3], Failure> {
    let (cold, answer) = call(calls, spec).await?;
    let mut warm = Duration::MAX;
    let begun = Instant::now();
    for _ in 0..WARM {
        warm = warm.min(call(calls, spec).await?.0);
        if begun.elapsed() > LONG {
            break;
        }
    }
    let us = |time: Duration| output::human_us(time.as_micros() as u64);
    Ok([us(cold), us(warm), shown(&answer.body)])
}

/// The first line of an answer, where that is text.
fn shown(answer: &[u8]) -> String {
    match std::str::from_utf8(answer) {
        Ok(text) => {
            text.lines().next().unwrap_or_default().chars().filter(|c| !c.is_control()).take(60).collect()
        }
        Err(_) => format!("({} bytes)", answer.len()),
    }
}

async fn call(
    calls: &mut CallServiceClient<Connection>,
    spec: &FunctionSpec,
) -> Result<(Duration, v1::InvokeResponse), Failure> {
    let sample = Sample::of(spec);
    let (head, body) = (Some(sample.head()), sample.body.into());
    let request = v1::InvokeRequest { function: spec.name.to_string(), head, body, ..Default::default() };
    let mut request = tonic::Request::new(request);
    // A function that hangs ends by its own limits; this is for a fleet that does.
    request.set_timeout(spec.init_timeout() + spec.timeout() + Duration::from_secs(5));
    let began = Instant::now();
    let answer = calls.invoke(request).await?.into_inner();
    Ok((began.elapsed(), answer))
}

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn an_answer_is_shown_where_it_is_text() {
        assert_eq!(shown("Hallo, Äda!\r\nand more".as_bytes()), "Hallo, Äda!");
        assert_eq!(shown(b"\x1b[31mred"), "[31mred");
        assert_eq!((shown(b"").as_str(), shown(b"\xff\x00\x01").as_str()), ("", "(3 bytes)"));
    }
}
