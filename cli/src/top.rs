//! `top`: the fleet as it is, on a terminal, once as text, or line by line for programs.
//!
//! What is shown comes at a beat from every balancer that was named ([`feed`]), becomes rows ([`model`]), and those a screen ([`view`]) as the
//! user wants it ([`ui`]). Whatever happens, the terminal is given back ([`screen`]).

mod columns;
mod feed;
mod model;
mod screen;
mod ui;
mod view;

use std::io::IsTerminal as _;
use std::time::Duration;

use crossterm::event::{Event, EventStream, KeyEventKind};
use crossterm::terminal;
use futures_util::StreamExt as _;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;

use self::feed::{News, What};
use self::model::{Gain, Model, Picture, State};
use self::screen::Screen;
use self::ui::{Next, Ui};
use crate::args::{Common, Output, Top};
use crate::failure::Failure;
use crate::output;

/// The screen is drawn at least so often: it says how old things are.
const TICK: Duration = Duration::from_secs(1);

/// How wide a text is that has no terminal.
const WIDTH: u16 = 120;

pub async fn run(args: Top, common: &Common) -> Result<(), Failure> {
    let servers: Vec<String> =
        common.server.split(',').map(|server| server.trim().to_owned()).filter(|s| !s.is_empty()).collect();
    if servers.is_empty() {
        return Err(Failure::usage(
            "no balancer is named",
            "write --server URL, or several: --server URL,URL",
        ));
    }
    let for_people = common.output == Output::Table;
    let on_screen = for_people && !args.once;
    if on_screen && !(std::io::stdout().is_terminal() && std::io::stdin().is_terminal()) {
        return Err(Failure::usage(
            "`stoker top` needs a terminal",
            "write --once for a text, or -o json for programs",
        ));
    }
    let mut model = Model::new(&servers);
    let mut news = feed::start(&servers, args.interval);
    first(&mut model, &mut news).await?;
    let mut ui = Ui::new(args.filter, args.sort as usize, output::colours());
    if on_screen {
        return watch(model, news, ui).await;
    }
    loop {
        while !model.has_rates() {
            hear(&mut model, &mut news).await;
            if model.lost_all() {
                return Err(Failure::away("no balancer is there any more", "look after it, and ask again"));
            }
        }
        let picture = model.picture(Instant::now());
        match for_people {
            true => output::print(&text(&picture, &mut ui))?,
            false => output::print(&format!("{}\n", json(&picture)))?,
        }
        if args.once {
            return Ok(());
        }
        hear(&mut model, &mut news).await;
    }
}

/// Waits until each has said something; fails where none is there, since that is more likely a mistake than a moment.
async fn first(model: &mut Model, news: &mut mpsc::Receiver<News>) -> Result<(), Failure> {
    let mut failed = None;
    while !model.asked_all() {
        // The tasks live as long as this is read.
        let Some((at, what)) = news.recv().await else { break };
        if let What::Lost(failure, _) = &what {
            failed.get_or_insert_with(|| failure.clone());
        }
        model.hear(at, what, Instant::now());
    }
    match failed {
        Some(failure) if model.lost_all() => Err(failure),
        _ => Ok(()),
    }
}

async fn hear(model: &mut Model, news: &mut mpsc::Receiver<News>) {
    if let Some((at, what)) = news.recv().await {
        model.hear(at, what, Instant::now());
    }
}

async fn watch(mut model: Model, mut news: mpsc::Receiver<News>, mut ui: Ui) -> Result<(), Failure> {
    let failed =
        |error: std::io::Error| Failure::platform(format!("the terminal cannot be used: {error}"), "");
    let listen = |kind| signal(kind).map_err(failed);
    let (mut interrupt, mut terminate, mut hangup) =
        (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?, listen(SignalKind::hangup())?);
    let mut screen = Screen::take().map_err(failed)?;
    let mut keys = EventStream::new();
    let mut tick = tokio::time::interval(TICK);
    let mut picture = model.picture(Instant::now());
    let signalled = loop {
        let now = Instant::now();
        if screen.terminal.draw(|frame| view::draw(frame, &picture, &mut ui, now)).is_err() {
            // It is gone: nobody looks any more.
            return Ok(());
        }
        tokio::select! {
            Some((at, what)) = news.recv() => {
                model.hear(at, what, Instant::now());
                // And what came while the last was drawn: a slow terminal shows what is, not what was.
                while let Ok((at, what)) = news.try_recv() {
                    model.hear(at, what, Instant::now());
                }
            }
            key = keys.next() => match key {
                Some(Ok(Event::Key(key))) if key.kind != KeyEventKind::Release => match ui.key(key, &picture) {
                    Next::Show => {}
                    Next::Quit => return Ok(()),
                    Next::Suspend => screen.suspend().map_err(failed)?,
                },
                // Another size is drawn anew like everything else.
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Ok(()),
            },
            _ = interrupt.recv() => break SignalKind::interrupt(),
            _ = terminate.recv() => break SignalKind::terminate(),
            _ = hangup.recv() => break SignalKind::hangup(),
            _ = tick.tick() => {}
        }
        if !ui.paused {
            let fresh = model.picture(Instant::now());
            // Of a fleet that cannot be seen the last is shown, and said to be old.
            picture = match model.lost_all() {
                true => Picture { balancers: fresh.balancers, ..picture },
                false => fresh,
            };
        }
    };
    drop(screen);
    // As a shell tells it of a program that a signal ended.
    std::process::exit(128 + signalled.as_raw_value());
}

/// One frame, as text.
fn text(picture: &Picture, ui: &mut Ui) -> String {
    let width = if std::io::stdout().is_terminal() {
        terminal::size().map_or(WIDTH, |(width, _)| width)
    } else {
        WIDTH
    };
    let backend = TestBackend::new(width, view::height(picture));
    let Ok(mut terminal) = Terminal::new(backend);
    let Ok(_) = terminal.draw(|frame| view::draw(frame, picture, ui, Instant::now()));
    let mut lines: Vec<String> = Vec::new();
    let buffer = terminal.backend().buffer();
    for row in buffer.content().chunks(usize::from(width.max(1))) {
        let line: String = row.iter().map(|cell| cell.symbol()).collect();
        let line = line.trim_end();
        // One blank between tables is enough.
        if !(line.is_empty() && lines.last().is_none_or(String::is_empty)) {
            lines.push(line.to_owned());
        }
    }
    // The keys are of no use here.
    lines.pop();
    lines.join("\n").trim_end().to_owned() + "\n"
}

fn gain(gain: &Gain) -> Value {
    let [caller, function, platform] = gain.failed;
    json!({
        "per_second": gain.rate, "calls": gain.calls, "cold": gain.cold,
        "errors": {"caller": caller, "function": function, "platform": platform},
        "p50_us": gain.percentile(0.5), "p90_us": gain.percentile(0.9), "p99_us": gain.percentile(0.99),
    })
}

/// The same for programs: one value, on one line.
fn json(picture: &Picture) -> Value {
    let held = |held: model::Held| json!({"busy": held.busy, "idle": held.idle, "total": held.total});
    json!({
        "window_ms": picture.window.as_millis() as u64,
        "calls": gain(&picture.total),
        "balancers": picture.balancers.iter().map(|row| json!({
            "name": row.name, "server": row.url, "live": row.state == State::Live, "version": row.activity.version,
            "calls": gain(&row.gain), "in_flight": row.activity.in_flight, "queued": row.activity.queued,
            "queued_bytes": row.activity.queued_bytes, "unserved_per_second": row.unserved,
            "later": row.activity.later.as_ref().map(|later| json!({
                "queued": later.queued, "running": later.running, "ended_per_second": row.later,
                "oldest_ms": later.oldest.map(|oldest| stoker_proto::convert::duration(oldest).as_millis() as u64),
            })),
        })).collect::<Vec<_>>(),
        "runners": picture.runners.iter().map(|row| json!({
            "runner": row.name, "state": row.state, "reason": row.reason, "zone": row.capacity.zone,
            "memory": held(row.memory), "cpu_millis": held(row.cpu), "slots": held(row.slots),
            "containers": {"idle": row.idle, "busy": row.busy}, "in_flight": row.capacity.in_flight,
            "waiting": row.capacity.waiting, "calls_per_second": row.rate, "age_ms": row.age.as_millis() as u64,
        })).collect::<Vec<_>>(),
        "functions": picture.functions.iter().map(|row| json!({
            "function": row.name, "calls": gain(&row.gain), "calls_ever": row.calls, "running": row.busy,
            "waiting": row.waiting, "idle": row.idle, "runners": row.runners,
        })).collect::<Vec<_>>(),
        "functions_left_out": picture.left_out,
    })
}
