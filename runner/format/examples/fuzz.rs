//! Breaks golden requests and answers in ways that know what they are made of, and checks that what must hold still does.
//!
//! `cargo run --release --example fuzz -- FORMAT SECONDS [SEED]`: the same seed makes the same inputs in the same order. A finding is
//! printed as bytes that can become a golden file, and ends the run with status 1.

#[path = "../tests/formats/kit.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod kit;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use kit::{Row, answers, check_answer, check_request, pieces, rows};
use stoker_core::function::Format;
use stoker_format::Limits;

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        if end == 0 { 0 } else { (self.next() % end as u64) as usize }
    }

    fn of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }

    fn range(&mut self, length: usize, most: usize) -> std::ops::Range<usize> {
        let start = self.below(length + 1);
        start..start + self.below((length - start).min(most) + 1)
    }
}

/// What the formats are made of, and what breaks parsers.
const TOKENS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    "\"",
    ":",
    ",",
    "\\",
    "\\u",
    "\\ud800",
    "\\udc00",
    "\\u0000",
    "\\\"",
    "null",
    "true",
    "false",
    "-0",
    "1e999",
    "0.0",
    "18446744073709551616",
    "-1",
    "{}",
    "[]",
    "\"\"",
    "\"body\":",
    "\"content_type\":",
    "\"protocol\":",
    "\"headers\":",
    "\"status_code\":",
    "\"body_encoding\":\"base64\"",
    "\"body_length\":",
    "\"chunked\":true",
    "\"data\":",
    "\"data_base64\":",
    "\"specversion\":\"1.0\"",
    "\"datacontenttype\":",
    "\"contentType\":",
    "\"extensions\":",
    "\"fnheaders\":\"{}\"",
    "\"fnstatuscode\":404",
    "\"result\":",
    "\"invokeid\":",
    "\"errors\":true",
    "\"billing\":{}",
    "\"ok\":true",
    "\r\n",
    "\n",
    "\n\n",
    "\r",
    " ",
    "\t",
    "\0",
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.1 100 Continue\r\n\r\n",
    "HTTP/1.0 502 x\r\n",
    "Content-Length: 0\r\n",
    "Content-Length: 99999999999999999999\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Connection: close\r\n",
    "0\r\n\r\n",
    "ffffffffffffffff\r\n",
    "1\r\na\r\n",
    ";x=y",
    "é",
    "😀",
    "\u{feff}",
];

fn mutate(bytes: &mut Vec<u8>, others: &[Vec<u8>], random: &mut Random) {
    for _ in 0..=random.below(6) {
        let length = bytes.len();
        match random.below(13) {
            0 if length > 0 => {
                let at = random.below(length);
                bytes[at] ^= 1 << random.below(8);
            }
            1 => {
                let at = random.below(length + 1);
                bytes.insert(at, random.next() as u8);
            }
            2 => {
                let range = random.range(length, 40);
                bytes.drain(range);
            }
            3 => {
                let range = random.range(length, 60);
                let copy = bytes[range].to_vec();
                let at = random.below(length + 1);
                bytes.splice(at..at, copy);
            }
            4 => bytes.truncate(random.below(length + 1)),
            5 if !others.is_empty() => {
                let other = random.of(others);
                let piece = other[random.range(other.len(), 200)].to_vec();
                let range = random.range(length, 40);
                bytes.splice(range, piece);
            }
            6 | 7 => {
                let token = random.of(TOKENS).as_bytes().to_vec();
                let range = random.range(length, 3);
                bytes.splice(range, token);
            }
            8 => {
                // A number becomes another.
                if let Some(start) = bytes.iter().position(u8::is_ascii_digit) {
                    let end = start + bytes[start..].iter().take_while(|b| b.is_ascii_digit()).count();
                    let number = *random.of(&[
                        "0",
                        "1",
                        "-5",
                        "7e2",
                        "65536",
                        "4294967296",
                        "9223372036854775808",
                        "2.50",
                    ]);
                    bytes.splice(start..end, number.bytes());
                }
            }
            9 => {
                let token = random.of(TOKENS).repeat(1 + random.below(200));
                let at = random.below(length + 1);
                bytes.splice(at..at, token.into_bytes());
            }
            10 => {
                let range = random.range(length, 30);
                bytes[range].iter_mut().for_each(|b| {
                    *b = if b.is_ascii_lowercase() { b.to_ascii_uppercase() } else { b.to_ascii_lowercase() }
                });
            }
            11 => {
                let mut lines: Vec<Vec<u8>> =
                    bytes.split_inclusive(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
                if lines.len() > 1 {
                    let (a, b) = (random.below(lines.len()), random.below(lines.len()));
                    lines.swap(a, b);
                    *bytes = lines.concat();
                }
            }
            _ => {
                let range = random.range(length, 20);
                bytes[range].iter_mut().for_each(|b| *b = random.next() as u8);
            }
        }
    }
    bytes.truncate(100_000);
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A call that differs from the one that is written down.
fn ask(row: &mut Row, others: &[Vec<u8>], random: &mut Random) {
    mutate(&mut row.body, others, random);
    if random.below(3) == 0 {
        row.whole = !row.whole;
    }
    if random.below(3) == 0 {
        let mut url = std::mem::take(&mut row.head.url).into_bytes();
        mutate(&mut url, others, random);
        row.head.url = text(url);
    }
    if random.below(4) == 0 && !row.head.headers.0.is_empty() {
        let at = random.below(row.head.headers.0.len());
        let mut value = row.head.headers.0[at].value.to_vec();
        mutate(&mut value, others, random);
        // Doors let no other in.
        value.retain(|b| !matches!(b, b'\r' | b'\n' | 0));
        row.head.headers.0[at].value = value.into();
    }
}

/// However the answer to a greeting is cut, it means the same.
fn check_startup(row: &Row, answer: &[u8], cuts: &[usize]) -> Result<(), String> {
    let run = |cuts: &[usize]| {
        let mut startup = row.codec().startup(&BTreeMap::new()).ok_or("the format has no greeting")?;
        let mut input = BytesMut::new();
        for piece in pieces(answer, cuts) {
            input.extend_from_slice(piece);
            if let Some(found) = startup.decode(&mut input, false) {
                return Ok(Some(found.is_ok()));
            }
        }
        Ok::<_, String>(startup.decode(&mut input, true).map(|r| r.is_ok()))
    };
    let (whole, cut) = (run(&[])?, run(cuts)?);
    // What comes behind a good answer is only seen when it is there.
    if whole.is_none() || cut.is_none() || (whole == Some(true) && cut != whole) {
        return Err(format!("a greeting ends as {whole:?} and {cut:?}"));
    }
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let usage = "usage: fuzz FORMAT SECONDS [SEED]";
    let format = Format::parse(arguments.first().expect(usage)).expect(usage);
    let seconds: u64 = arguments.get(1).expect(usage).parse().expect(usage);
    let seed: u64 = arguments.get(2).map_or(1, |s| s.parse().expect(usage));
    let rows: Vec<Row> = rows().into_iter().filter(|r| r.format == format).collect();
    let good: Vec<&Row> = rows.iter().filter(|r| !r.file("fault").exists()).collect();
    let corpus: Vec<Vec<u8>> = rows.iter().flat_map(answers).map(|(_, bytes)| bytes).collect();
    let bodies: Vec<Vec<u8>> = rows.iter().map(|r| r.body.clone()).chain(corpus.iter().cloned()).collect();
    let mut random = Random(seed);
    let (start, end) = (Instant::now(), Duration::from_secs(seconds));
    let (mut runs, mut kept, mut asked) = (0u64, 0u64, 0u64);
    // The panic message names what failed; this names the input.
    while start.elapsed() < end {
        for _ in 0..200 {
            let row = *random.of(&good);
            let mut answer = random.of(&corpus).clone();
            mutate(&mut answer, &corpus, &mut random);
            let cuts: Vec<usize> = (0..random.below(6)).map(|_| random.below(answer.len() + 1)).collect();
            let limits =
                if random.below(3) == 0 { Limits { message: 200, body: 100 } } else { Limits::default() };
            let mut call = random.of(&rows).clone();
            ask(&mut call, &bodies, &mut random);
            let found = std::panic::catch_unwind(|| {
                let events = check_answer(row, limits, &answer, &cuts)?;
                if format == Format::Mless {
                    check_startup(row, &answer, &cuts)?;
                }
                let fault = check_request(&call, &cuts)?;
                Ok::<_, String>((events, fault))
            });
            match found {
                Ok(Ok((events, fault))) => {
                    let last = events.last();
                    kept += u64::from(matches!(
                        last,
                        Some(stoker_format::Event::End(stoker_format::After::Reuse))
                    ));
                    asked += u64::from(fault.is_none());
                }
                Ok(Err(why)) => {
                    println!("{format} seed {seed} run {runs}: {why}");
                    println!(
                        "row {} limits {limits:?} cuts {cuts:?}\nanswer {}",
                        row.name,
                        answer.escape_ascii()
                    );
                    println!(
                        "call {} {:?} {:?}\nbody {}",
                        call.name,
                        call.head,
                        call.whole,
                        call.body.escape_ascii()
                    );
                    return ExitCode::FAILURE;
                }
                Err(_) => {
                    println!("{format} seed {seed} run {runs}: panicked");
                    println!(
                        "row {} limits {limits:?} cuts {cuts:?}\nanswer {}",
                        row.name,
                        answer.escape_ascii()
                    );
                    println!(
                        "call {} {:?} {:?}\nbody {}",
                        call.name,
                        call.head,
                        call.whole,
                        call.body.escape_ascii()
                    );
                    return ExitCode::FAILURE;
                }
            }
            runs += 1;
        }
    }
    println!(
        "{format} seed {seed}: {runs} runs in {seconds} s, {kept} answers kept their container, {asked} calls were written; no finding"
    );
    ExitCode::SUCCESS
}
