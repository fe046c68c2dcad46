//! The traces that Azure Functions published, in their own files.
//!
//! **2019**: one file a day with the calls of each function in each minute, one with percentiles of their durations, one with
//! the memory of their apps. Calls are spread over their minute at random; those of timers stand at its beginning. Durations are
//! drawn between the percentiles.
//!
//! **2021**: one line a call, with its end and its duration. Memory was not published, and is made up from the distribution of
//! 2019.
//!
//! Neither says what a start takes, which depends on the platform: that is made up too, log-normal around what the reader is
//! told. What is made up comes from the function's name, so that it is the same in every run.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::time::Duration;

use stoker_policy::placement::key;

use super::{Call, Function, MOST_CALLS, Micros, SECOND, Trace, micros};
use crate::random::Random;

const MINUTE: Micros = 60 * SECOND;
/// A line with 1,440 numbers and three hashes is 10 KiB; more than this is no line of these files.
const LONGEST_LINE: usize = 256 << 10;
const MIB: f64 = (1 << 20) as f64;
/// Minutes of a day, a column each.
const MINUTES: usize = 1440;
/// No call of these traces took longer, in seconds; they are of two weeks.
const LONGEST_CALL: f64 = 14.0 * 86_400.0;
/// Nor is a time later: it counts from the beginning of the trace, or from 1970.
const LATEST: f64 = 1e10;

/// How files begin that these come in: gzip, xz, zip and rar.
const PACKED: [&[u8]; 4] = [b"\x1f\x8b", b"\xfd7zXZ", b"PK\x03\x04", b"Rar!\x1a"];

/// What part of a trace is read, and what is made up for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Selection {
    /// From this time of the trace.
    pub from: Duration,
    /// For so long.
    pub span: Duration,
    /// This part of the functions, between 0 and 1, chosen by their names.
    pub part: f64,
    /// What a launch takes in the middle.
    pub cold: Duration,
    /// Spreads calls over their minutes.
    pub seed: u64,
}

impl Default for Selection {
    fn default() -> Self {
        let (from, span) = (Duration::ZERO, Duration::from_secs(3600));
        Self { from, span, part: 1.0, cold: Duration::from_millis(500), seed: 1 }
    }
}

impl Selection {
    /// Its beginning, its end and its length.
    fn bounds(&self) -> (Micros, Micros, Micros) {
        let (from, span) = (micros(self.from), micros(self.span));
        (from, from.saturating_add(span), span)
    }
}

/// Why a trace could not be read.
#[derive(Debug)]
pub struct Unreadable {
    file: PathBuf,
    line: usize,
    text: String,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        match self.line {
            0 => write!(f, "{file}: {}", self.text),
            line => write!(f, "{file}, line {line}: {}", self.text),
        }
    }
}

impl std::error::Error for Unreadable {}

/// Calls `each` with the fields of every line but the first, and checks that that one begins as it shall.
fn lines(
    file: &Path,
    header: &[&str],
    mut each: impl FnMut(&[&str]) -> Result<(), String>,
) -> Result<(), Unreadable> {
    let wrong = |line: usize, text: String| Unreadable { file: file.to_owned(), line, text };
    let opened = File::open(file).map_err(|error| wrong(0, error.to_string()))?;
    let mut reader = BufReader::with_capacity(1 << 20, opened);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let mut rest = std::io::Read::take(&mut reader, LONGEST_LINE as u64);
        rest.read_until(b'\n', &mut line).map_err(|error| wrong(number, error.to_string()))?;
        if line.is_empty() {
            return if number == 1 { Err(wrong(0, "it is empty".to_owned())) } else { Ok(()) };
        }
        if line.len() == LONGEST_LINE {
            return Err(wrong(number, format!("the line has more than {LONGEST_LINE} bytes")));
        }
        let text = std::str::from_utf8(&line).map_err(|_| {
            let packed = number == 1 && PACKED.iter().any(|mark| line.starts_with(mark));
            wrong(number, if packed { "it is packed: unpack it first" } else { "it is not text" }.to_owned())
        })?;
        // Spreadsheets write a mark before the first line.
        let text = if number == 1 { text.strip_prefix('\u{feff}').unwrap_or(text) } else { text };
        let fields: Vec<&str> =
            text.trim_end().split(',').map(|field| field.trim().trim_matches('"')).collect();
        if number == 1 {
            let as_said = fields.len() >= header.len() && fields.iter().zip(header).all(|(a, b)| a == b);
            if !as_said {
                return Err(wrong(1, format!("the columns should begin with {}", header.join(","))));
            }
        } else if fields != [""] {
            each(&fields).map_err(|text| wrong(number, text))?;
        }
    }
    Ok(())
}

fn number(field: Option<&&str>, what: &str) -> Result<f64, String> {
    let field = field.ok_or_else(|| format!("{what} is missing"))?;
    let value: f64 = field.parse().map_err(|_| format!("{what} is `{field}`, not a number"))?;
    if value.is_finite() { Ok(value) } else { Err(format!("{what} is `{field}`")) }
}

/// A time in seconds, no longer than that.
fn time(field: Option<&&str>, most: f64, what: &str) -> Result<Micros, String> {
    let seconds = number(field, what)?;
    match (0.0..=most).contains(&seconds) {
        true => Ok((seconds * SECOND as f64) as Micros),
        false => Err(format!("{what} is {seconds} s, not between 0 and {most}")),
    }
}

fn chosen(name: &str, part: f64) -> bool {
    Random::new(key(name.as_bytes()), 11).unit() < part
}

/// A function as far as it is made up.
fn function(name: String, selection: &Selection, memory: Option<f64>) -> Function {
    let mut random = Random::new(key(name.as_bytes()), 12);
    let usual = random.log_normal(170.0, 0.668);
    let memory = (memory.unwrap_or(usual).clamp(32.0, 16_384.0) * MIB) as u64;
    let cold = random.log_normal(micros(selection.cold) as f64, 0.6).max(1.0) as Micros;
    Function { name, memory, cold }
}

fn too_many(file: &Path) -> Unreadable {
    let text = format!("more than {MOST_CALLS} calls: choose a shorter time or a part of the functions");
    Unreadable { file: file.to_owned(), line: 0, text }
}

/// Reads the files of 2019 in a folder, as they were packed: of as many days as the selection needs.
///
/// # Errors
/// What is missing, or what is wrong with it, and where.
pub fn of_2019(folder: &Path, selection: &Selection) -> Result<Trace, Unreadable> {
    let (from, until, span) = selection.bounds();
    let day = MINUTES as u64 * MINUTE;
    let mut random = Random::new(selection.seed, 13);
    let mut known: HashMap<String, u32> = HashMap::new();
    let mut functions = Vec::new();
    let mut calls: Vec<Call> = Vec::new();
    let last = until.saturating_sub(1) / day;
    for nth in from / day..=last {
        let file = |what: &str| folder.join(format!("{what}.anon.d{:02}.csv", nth + 1));
        let memory = memory_of(&file("app_memory_percentiles"))?;
        let durations = durations_of(&file("function_durations_percentiles"))?;
        let counts = file("invocations_per_function_md");
        let mut full = false;
        lines(&counts, &["HashOwner", "HashApp", "HashFunction", "Trigger", "1"], |fields| {
            let [owner, app, name, trigger, ..] = fields else {
                return Err("it has fewer than four columns".to_owned());
            };
            if fields.len() != 4 + MINUTES {
                return Err(format!("it has {} columns after the fourth, not {MINUTES}", fields.len() - 4));
            }
            let name = format!("{app}/{name}");
            if full || !chosen(&name, selection.part) {
                return Ok(());
            }
            let takes = durations.get(&name);
            for (minute, count) in (0u64..).zip(&fields[4..]) {
                let begin = nth * day + minute * MINUTE;
                if *count == "0" || begin + MINUTE <= from || begin >= until {
                    continue;
                }
                let count: usize = count.parse().map_err(|_| format!("`{count}` is no number of calls"))?;
                if count > MOST_CALLS - calls.len() {
                    full = true;
                    return Ok(());
                }
                let at = *known.entry(name.clone()).or_insert_with(|| {
                    let memory = memory.get(&format!("{owner}/{app}")).copied();
                    functions.push(function(name.clone(), selection, memory));
                    (functions.len() - 1) as u32
                });
                for _ in 0..count {
                    let within = if *trigger == "timer" { 1.0 } else { 60.0 };
                    let time = begin + (random.unit() * within * SECOND as f64) as Micros;
                    let takes = takes.map_or(SECOND as f64 / 2.0, |p| p.draw(&mut random)) as Micros;
                    if (from..until).contains(&time) {
                        calls.push(Call { at: time - from, function: at, takes: takes.max(1) });
                    }
                }
            }
            Ok(())
        })?;
        if full {
            return Err(too_many(&counts));
        }
    }
    let title = format!("Azure Functions 2019, {} functions", functions.len());
    let mut trace = Trace { title, functions, calls, span };
    trace.sort();
    Ok(trace)
}

/// Memory of apps in MiB. Of the last two days there is none.
fn memory_of(file: &Path) -> Result<HashMap<String, f64>, Unreadable> {
    let mut memory = HashMap::new();
    if file.exists() {
        lines(file, &["HashOwner", "HashApp", "SampleCount", "AverageAllocatedMb"], |fields| {
            let mib = number(fields.get(3), "AverageAllocatedMb")?;
            memory.insert(format!("{}/{}", fields[0], fields[1]), mib);
            Ok(())
        })?;
    }
    Ok(memory)
}

/// Times at the percentiles 0, 1, 25, 50, 75, 99 and 100.
struct Percentiles([f64; 7]);

impl Percentiles {
    fn draw(&self, random: &mut Random) -> f64 {
        const AT: [f64; 7] = [0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0];
        let here = random.unit();
        let upper = AT.partition_point(|at| *at < here).clamp(1, AT.len() - 1);
        let part = (here - AT[upper - 1]) / (AT[upper] - AT[upper - 1]);
        self.0[upper - 1] + part * (self.0[upper] - self.0[upper - 1])
    }
}

fn durations_of(file: &Path) -> Result<HashMap<String, Percentiles>, Unreadable> {
    let mut durations = HashMap::new();
    let header = ["HashOwner", "HashApp", "HashFunction", "Average", "Count", "Minimum", "Maximum"];
    lines(file, &header, |fields| {
        let mut times = [0.0; 7];
        let mut least = 0.0_f64;
        for (time, field) in times.iter_mut().zip(7..) {
            // Never falling, whatever was logged.
            least = least.max(number(fields.get(field), "a percentile")?.min(LONGEST_CALL * 1e3) * 1e3);
            *time = least;
        }
        durations.insert(format!("{}/{}", fields[1], fields[2]), Percentiles(times));
        Ok(())
    })?;
    Ok(durations)
}

/// Reads the file of 2021, or another of its kind. One that is shorter than the selection ends with its last call.
///
/// # Errors
/// What is wrong with it, and where; when its calls are, if none is in the selected time.
pub fn of_2021(file: &Path, selection: &Selection) -> Result<Trace, Unreadable> {
    let (from, until, span) = selection.bounds();
    let mut known: HashMap<String, u32> = HashMap::new();
    let mut functions = Vec::new();
    let mut calls: Vec<Call> = Vec::new();
    let (mut full, mut within) = (false, false);
    // When the first call begins, the last one begins, and the last one ends.
    let mut times: Option<[Micros; 3]> = None;
    lines(file, &["app", "func", "end_timestamp", "duration"], |fields| {
        let name = format!("{}/{}", fields[0], fields.get(1).copied().unwrap_or_default());
        let end = time(fields.get(2), LATEST, "end_timestamp")?;
        let takes = time(fields.get(3), LONGEST_CALL, "duration")?;
        let at = end.saturating_sub(takes);
        let [first, last, ended] = times.unwrap_or([at, at, end]);
        times = Some([first.min(at), last.max(at), ended.max(end)]);
        if !(from..until).contains(&at) {
            return Ok(());
        }
        within = true;
        if !chosen(&name, selection.part) {
            return Ok(());
        }
        full |= calls.len() == MOST_CALLS;
        if full {
            return Ok(());
        }
        let function = *known.entry(name.clone()).or_insert_with(|| {
            functions.push(function(name.clone(), selection, None));
            (functions.len() - 1) as u32
        });
        calls.push(Call { at: at - from, function, takes: takes.max(1) });
        Ok(())
    })?;
    if full {
        return Err(too_many(file));
    }
    let wrong = |text: String| Unreadable { file: file.to_owned(), line: 0, text };
    let Some([first, last, ended]) = times else { return Err(wrong("it has no calls".to_owned())) };
    if !within {
        let second = |time: Micros| time / SECOND;
        return Err(wrong(format!(
            "no call begins between {} s and {} s: the first one begins at {} s, the last one at {} s",
            second(from),
            second(until),
            second(first),
            second(last)
        )));
    }
    let span = span.min(ended.saturating_sub(from)).max(1);
    let title = format!("Azure Functions 2021, {} functions", functions.len());
    let mut trace = Trace { title, functions, calls, span };
    trace.sort();
    Ok(trace)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, String)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    fn day(minutes: &[(usize, u32)]) -> String {
        let mut counts = vec!["0".to_owned(); 1440];
        minutes.iter().for_each(|(minute, count)| counts[*minute] = count.to_string());
        counts.join(",")
    }

    fn files() -> Vec<(&'static str, String)> {
        let minutes: Vec<String> = (1..=1440).map(|n| n.to_string()).collect();
        let counts = format!(
            "HashOwner,HashApp,HashFunction,Trigger,{}\no,a,f,http,{}\no,a,t,timer,{}\n",
            minutes.join(","),
            day(&[(0, 3), (5, 2), (70, 9)]),
            day(&[(0, 1), (1, 1), (2, 1)]),
        );
        let durations = "HashOwner,HashApp,HashFunction,Average,Count,Minimum,Maximum,percentile_Average_0,percentile_Average_1,\
            percentile_Average_25,percentile_Average_50,percentile_Average_75,percentile_Average_99,percentile_Average_100\n\
            o,a,f,100,5,10,900,10,20,50,100,200,800,900\n";
        let memory = "HashOwner,HashApp,SampleCount,AverageAllocatedMb,x\no,a,9,96,1\n";
        vec![
            ("invocations_per_function_md.anon.d01.csv", counts),
            ("function_durations_percentiles.anon.d01.csv", durations.to_owned()),
            ("app_memory_percentiles.anon.d01.csv", memory.to_owned()),
        ]
    }

    #[test]
    fn minutes_become_calls_within_them() {
        let folder = folder(&files());
        let trace = of_2019(folder.path(), &Selection::default()).unwrap();
        assert_eq!((trace.functions.len(), trace.calls.len()), (2, 8));
        assert!(trace.functions.iter().all(|f| f.memory == 96 << 20 && f.cold > 0));
        let of = |name: &str| {
            let at = trace.functions.iter().position(|f| f.name == name).unwrap() as u32;
            trace.calls.iter().filter(move |call| call.function == at)
        };
        let minutes: Vec<_> = of("a/f").map(|call| call.at / MINUTE).collect();
        assert_eq!(minutes, [0, 0, 0, 5, 5]);
        assert!(of("a/f").all(|call| (10_000..=900_000).contains(&call.takes)));
        assert!(of("a/t").all(|call| call.at % MINUTE < SECOND));
        let later = Selection { from: Duration::from_secs(3600), ..Selection::default() };
        let later = of_2019(folder.path(), &later).unwrap();
        assert_eq!((later.calls.len(), later.calls[0].at / MINUTE), (9, 10));
    }

    #[test]
    fn lines_become_calls() {
        let text = "app,func,end_timestamp,duration\na,f,10.5,0.5\nb,f,5.25,0.25\na,f,4000,1\n";
        let folder = folder(&[("t.csv", text.to_owned())]);
        let trace = of_2021(&folder.path().join("t.csv"), &Selection::default()).unwrap();
        let calls: Vec<_> = trace.calls.iter().map(|c| (c.at, c.takes)).collect();
        assert_eq!(calls, [(5 * SECOND, SECOND / 4), (10 * SECOND, SECOND / 2)]);
        assert_eq!(trace.span, 3600 * SECOND);
        assert_eq!(trace.functions[trace.calls[0].function as usize].name, "b/f");
    }

    #[test]
    fn a_file_that_went_through_a_spreadsheet_is_the_same() {
        let text = "\u{feff}app,func,end_timestamp,duration\r\na,f,10.5,0.5\r\n\r\n\"b\",f,5.25,0.25\r\n";
        let folder = folder(&[("t.csv", text.to_owned())]);
        let trace = of_2021(&folder.path().join("t.csv"), &Selection::default()).unwrap();
        assert_eq!(trace.calls.len(), 2);
        assert_eq!(trace.functions[trace.calls[0].function as usize].name, "b/f");
        // Whatever is chosen of it.
        let all = Selection { span: Duration::MAX, from: Duration::from_secs(6), ..Selection::default() };
        let chosen = of_2021(&folder.path().join("t.csv"), &all).unwrap();
        assert_eq!((chosen.calls.len(), chosen.span), (1, 9 * SECOND / 2), "no longer than its calls");
        let later = Selection { from: Duration::from_secs(60), ..Selection::default() };
        let said = of_2021(&folder.path().join("t.csv"), &later).unwrap_err().to_string();
        let when =
            "no call begins between 60 s and 3660 s: the first one begins at 5 s, the last one at 10 s";
        assert!(said.ends_with(when), "{said}");
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let text = "app,func,end_timestamp,duration\na,f,10.5,0.5\na,f,soon,0.5\n";
        let folder = folder(&[("t.csv", text.to_owned()), ("u.csv", "x,y\n".to_owned())]);
        let error = |name: &str| of_2021(&folder.path().join(name), &Selection::default()).unwrap_err();
        assert!(error("t.csv").to_string().ends_with("t.csv, line 3: end_timestamp is `soon`, not a number"));
        assert!(error("u.csv").to_string().contains("should begin with app,func"));
        for (end, takes, what) in [
            ("10", "-5", "duration is -5 s, not between 0 and 1209600"),
            ("-1", "0", "end_timestamp is -1 s"),
            ("1e300", "1", "end_timestamp is 1000"),
            ("inf", "1", "end_timestamp is `inf`"),
            ("5", "1e300", "duration is 1000"),
            ("5", "", "duration is ``, not a number"),
        ] {
            let text = format!("app,func,end_timestamp,duration\na,f,{end},{takes}\n");
            std::fs::write(folder.path().join("v.csv"), text).unwrap();
            let said = error("v.csv").to_string();
            assert!(said.contains("v.csv, line 2: ") && said.contains(what), "{said}");
        }
        std::fs::write(folder.path().join("w.csv"), b"\x1f\x8b\x08\0\xff").unwrap();
        assert!(error("w.csv").to_string().ends_with("w.csv, line 1: it is packed: unpack it first"));
        std::fs::write(folder.path().join("w.csv"), "app,func,end_timestamp,duration\n\nhalf\n").unwrap();
        assert!(error("w.csv").to_string().ends_with("w.csv, line 3: end_timestamp is missing"));
        assert!(of_2019(folder.path(), &Selection::default()).is_err());
        let mut many = files();
        many[0].1 = many[0].1.replace("http,3,", &format!("http,{},", usize::MAX));
        let said = of_2019(self::folder(&many).path(), &Selection::default()).unwrap_err().to_string();
        assert!(said.contains("more than 20000000 calls"), "{said}");
        let mut files = files();
        files[0].1 = files[0].1.trim_end().to_owned() + ",7\n";
        let said = of_2019(self::folder(&files).path(), &Selection::default()).unwrap_err().to_string();
        assert!(said.ends_with("line 3: it has 1441 columns after the fourth, not 1440"), "{said}");
    }
}
