//! The picture on a screen: totals, balancers, runners, functions; or one of them closely.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Cell, Paragraph, Row, Table, TableState};
use stoker_core::histogram;
use stoker_core::units::format_cpu;
use tokio::time::Instant;

use super::columns::{self, BALANCERS, Column, FUNCTIONS, RUNNERS, age, bar, rate, share, time};
use super::model::{BalancerRow, FunctionRow, Gain, Picture, RunnerRow, State};
use super::ui::{Pane, Sort, Ui};
use crate::output::{human_size, printable};

/// Widest column of names.
const NAMES: u16 = 60;

const KEYS: &str = "q quit · tab other table · ↑↓ choose · enter closely · s/S sort · r reverse · / filter · p pause · ? help";

const HELP: &str = "\
  q, Ctrl-C        leave                         tab         the other table
  p, space         stand still, and go on        ↑ ↓ j k     choose a row (PgUp, PgDn, Home, End)
  s, S             sort by the next column,      enter       look at it closely, and back
                   by the one before it          /           show only what has this in its name
  r                the other way round           esc         back; else no filter
  Ctrl-Z           to the shell (fg: back)       ?, h        this help

  CALLS/S, P50, P99, COLD, ERRORS: of the calls that ended within the time that is said above, as balancers saw them, from a call's
  arrival to the end of its answer. A COLD call caused the launch that served it. RUNNING, WAITING (at runners), IDLE: as runners told
  last. QUEUED: calls that wait in a balancer. UNSERVED: calls that left without a runner. LATER: calls for later that wait, how long
  the oldest has been due, and how many end a second.
  █ at work  ▒ held by idle containers, given up on demand  · free";

/// Draws everything.
pub fn draw(frame: &mut Frame<'_>, picture: &Picture, ui: &mut Ui, now: Instant) {
    let styles = Styles { colours: ui.colours };
    let (balancers, runners) = (picture.balancers.len() as u16, picture.runners.len() as u16);
    let height = frame.area().height;
    // What is left is of the functions: they are at least as many lines as the runners.
    let runners = (runners + 2).min((height.saturating_sub(balancers + 6) / 2).max(3));
    let [title, total, lost, of_balancers, of_runners, body, footer] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(balancers.min(5) + 2),
        Constraint::Length(runners),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(self::title(picture, ui, styles), title);
    frame.render_widget(totals(picture, styles), total);
    frame.render_widget(trouble(picture, styles, now), lost);
    frame.render_widget(keys(ui, styles), footer);
    if ui.help {
        let area = of_balancers.union(body);
        frame.render_widget(Paragraph::new(HELP), area);
        return;
    }
    let (rows, functions) = ui.chosen(picture);
    if let Some(name) = &ui.closely {
        let area = of_balancers.union(body);
        let text = match ui.pane {
            Pane::Runners => rows.iter().find(|row| row.name == *name).map(|row| runner(row, styles)),
            Pane::Functions => {
                functions.iter().find(|row| row.name == *name).map(|row| function(row, styles))
            }
        };
        let gone = || Text::from(format!("{} is not there any more; esc leads back.", printable(name)));
        frame.render_widget(Paragraph::new(text.unwrap_or_else(gone)), area);
        return;
    }
    let all: Vec<&BalancerRow> = picture.balancers.iter().collect();
    table(frame, of_balancers, &BALANCERS, &all, None, false, &mut TableState::default(), styles);
    let focus = ui.pane;
    let sort = ui.sort_runners;
    table(frame, of_runners, &RUNNERS, &rows, Some(sort), focus == Pane::Runners, &mut ui.runners, styles);
    let sort = ui.sort_functions;
    table(
        frame,
        body,
        &FUNCTIONS,
        &functions,
        Some(sort),
        focus == Pane::Functions,
        &mut ui.functions,
        styles,
    );
}

/// Lines that a picture needs to be shown whole.
pub fn height(picture: &Picture) -> u16 {
    let rows = picture.balancers.len().min(5) + picture.runners.len().max(picture.functions.len()) * 2;
    u16::try_from(rows + 14).unwrap_or(u16::MAX)
}

/// Colours, or none.
#[derive(Debug, Clone, Copy)]
struct Styles {
    colours: bool,
}

impl Styles {
    fn colour(self, colour: Color) -> Style {
        if self.colours { Style::new().fg(colour) } else { Style::new() }
    }

    fn faint(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    fn bold(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    fn bad(self) -> Style {
        self.colour(Color::Red).add_modifier(Modifier::BOLD)
    }

    fn head(self, focus: bool) -> Style {
        let style = if focus { self.colour(Color::Cyan) } else { Style::new() };
        style.add_modifier(Modifier::BOLD)
    }
}

fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

fn title(picture: &Picture, ui: &Ui, styles: Styles) -> Line<'static> {
    let live = picture.balancers.iter().filter(|row| row.state == State::Live).count();
    let all = picture.balancers.len();
    let mut about = format!(
        "  {} · {} · {}",
        if live == all { count(all, "balancer") } else { format!("{live} of {}", count(all, "balancer")) },
        count(picture.runners.len(), "runner"),
        count(picture.functions.len(), "function"),
    );
    if picture.left_out > 0 {
        about += &format!(" ({} less busy ones are not shown)", picture.left_out);
    }
    if !picture.window.is_zero() {
        about += &format!(" · rates of the last {}", age(picture.window));
    }
    for zone in picture.zones.iter().filter(|zone| zone.desired_runners > zone.runners) {
        let name =
            if zone.zone.is_empty() { String::new() } else { format!("zone {} ", printable(&zone.zone)) };
        about += &format!(" · {name}wants {} runners", zone.desired_runners);
    }
    let mut spans = vec![Span::styled("stoker top", styles.bold()), Span::raw(about)];
    if ui.paused {
        spans.push(Span::styled("  paused", styles.bad()));
    }
    Line::from(spans)
}

fn totals(picture: &Picture, styles: Styles) -> Line<'static> {
    let gain = &picture.total;
    let sum = |of: fn(&BalancerRow) -> u64| {
        picture.balancers.iter().filter(|row| row.state == State::Live).map(of).sum::<u64>().to_string()
    };
    let mut spans = Vec::new();
    for (name, value) in [
        ("calls/s", rate(gain.rate)),
        ("p50", time(gain.percentile(0.5))),
        ("p99", time(gain.percentile(0.99))),
        ("cold", share(gain.share(gain.cold))),
        ("errors", share(gain.share(gain.errors()))),
        ("inside", sum(|row| row.activity.in_flight.into())),
        ("queued", sum(|row| row.activity.queued.into())),
    ] {
        let style = if name == "errors" && gain.errors() > 0 { styles.bad() } else { styles.bold() };
        spans.extend([
            Span::styled(format!("{name} "), styles.faint()),
            Span::styled(value, style),
            Span::raw("   "),
        ]);
    }
    Line::from(spans)
}

/// What is in the way of seeing how things are.
fn trouble(picture: &Picture, styles: Styles, now: Instant) -> Line<'static> {
    let lost: Vec<_> = picture
        .balancers
        .iter()
        .filter_map(|row| match &row.state {
            State::Lost { why, since, again } => Some((row, why, since, again)),
            State::Asked | State::Live => None,
        })
        .collect();
    let Some((row, why, since, again)) = lost.first() else { return Line::default() };
    let stale = if lost.len() == picture.balancers.len() { "this is old: " } else { "" };
    let since = age(now.saturating_duration_since(**since));
    let next = match again {
        None => "it is not asked again".to_owned(),
        Some(at) if *at <= now => "asking again".to_owned(),
        Some(at) => format!("asked again in {}", age(at.saturating_duration_since(now))),
    };
    let text = format!("{stale}{} lost for {since}, {next}: {}", printable(&row.name), printable(why));
    Line::styled(text, styles.bad())
}

fn keys(ui: &Ui, styles: Styles) -> Line<'static> {
    if ui.typing {
        return Line::from(vec![
            Span::styled("filter: ", styles.bold()),
            Span::raw(format!("{}▏", ui.filter)),
        ]);
    }
    let mut spans = Vec::new();
    if !ui.filter.is_empty() {
        spans.push(Span::styled(format!("filter: {}  ", printable(&ui.filter)), styles.bold()));
    }
    spans.push(Span::styled(KEYS, styles.faint()));
    Line::from(spans)
}

fn table<R>(
    frame: &mut Frame<'_>,
    area: Rect,
    columns: &[Column<R>],
    rows: &[&R],
    sort: Option<Sort>,
    focus: bool,
    state: &mut TableState,
    styles: Styles,
) {
    let shown = columns::fitting(columns, area.width);
    let others: u16 = shown.iter().skip(1).map(|at| columns[*at].width + 1).sum();
    let longest = rows.iter().map(|row| (columns[0].text)(row).chars().count()).max().unwrap_or(0);
    let name = u16::try_from(longest).unwrap_or(NAMES).clamp(columns[0].width, NAMES);
    let name = name.min(area.width.saturating_sub(others)).max(columns[0].width);
    let widths: Vec<_> = shown.iter().map(|at| if *at == 0 { name } else { columns[*at].width }).collect();
    let head = shown.iter().map(|at| {
        let arrow = match sort {
            Some(Sort { column, down }) if column == *at => {
                if down {
                    "▾"
                } else {
                    "▴"
                }
            }
            _ => "",
        };
        cell(*at, columns, format!("{}{arrow}", columns[*at].title), styles.head(focus))
    });
    let lines = rows.iter().map(|row| {
        Row::new(shown.iter().map(|at| {
            let column = &columns[*at];
            let style = if (column.bad)(row) { styles.bad() } else { Style::new() };
            let text = printable(&(column.text)(row));
            let text = if *at == 0 { columns::shortened(text, name.into()) } else { text };
            cell(*at, columns, text, style)
        }))
    });
    let table = Table::new(lines, widths.into_iter().map(Constraint::Length))
        .header(Row::new(head))
        .column_spacing(1)
        .row_highlight_style(if focus {
            Style::new().add_modifier(Modifier::REVERSED)
        } else {
            Style::new()
        });
    if state.selected().is_some_and(|at| at >= rows.len()) {
        state.select(rows.len().checked_sub(1));
    }
    frame.render_stateful_widget(table, area, state);
}

/// Words stand on the left, numbers on the right.
fn cell<R>(at: usize, columns: &[Column<R>], text: String, style: Style) -> Cell<'static> {
    let line = Line::styled(text, style);
    let words = at == 0 || matches!(columns[at].title, "STATE" | "ZONE" | "MEMORY" | "CPU");
    Cell::from(if words { line } else { line.right_aligned() })
}

fn pairs(rows: &[(&str, String)], styles: Styles) -> Vec<Line<'static>> {
    let rows = rows.iter().filter(|(_, value)| !value.is_empty());
    rows.map(|(name, value)| {
        Line::from(vec![Span::styled(format!("{name:<12}"), styles.faint()), Span::raw(printable(value))])
    })
    .collect()
}

fn function(row: &FunctionRow, styles: Styles) -> Text<'static> {
    let gain = &row.gain;
    let [caller, function, platform] = gain.failed;
    let p = |part| time(gain.percentile(part));
    let mut lines = pairs(
        &[
            ("function", row.name.clone()),
            ("format", format!("{}, {} a container", row.format, human_size(row.memory))),
            (
                "containers",
                format!(
                    "{} running, {} idle, on {}",
                    row.busy,
                    row.idle,
                    count(row.runners as usize, "runner")
                ),
            ),
            ("waiting", row.waiting.to_string()),
            ("calls", format!("{} a second; {} since the balancers started", rate(gain.rate), row.calls)),
            ("times", format!("p50 {}   p90 {}   p99 {}   p99.9 {}", p(0.5), p(0.9), p(0.99), p(0.999))),
            ("cold", format!("{} of {}", gain.cold, gain.calls)),
            (
                "errors",
                format!(
                    "{} by the caller, {} by the function, {} by the platform",
                    caller, function, platform
                ),
            ),
        ],
        styles,
    );
    lines.extend(spread(gain, styles));
    let more = format!("stoker logs {0} --follow    ·    stoker describe {0}", row.name);
    lines.extend([Line::default(), Line::styled(printable(&more), styles.faint())]);
    Text::from(lines)
}

/// How long the calls took: one line for times from 1, 2, 3, 5 and 7 of each tenfold on.
fn spread(gain: &Gain, styles: Styles) -> Vec<Line<'static>> {
    const WIDTH: f64 = 40.0;
    let mut bars: Vec<(u64, u64)> = Vec::new();
    for (slot, count) in gain.times.iter().enumerate() {
        match bars.last_mut() {
            Some((_, sum)) if !histogram::is_round(slot) => *sum += count,
            _ => bars.push((histogram::begin(slot), *count)),
        }
    }
    let used = |(_, count): &(u64, u64)| *count > 0;
    let (Some(first), Some(last)) = (bars.iter().position(used), bars.iter().rposition(used)) else {
        return Vec::new();
    };
    let most = bars.iter().map(|(_, count)| *count).max().unwrap_or(1) as f64;
    let mut lines = vec![Line::default()];
    lines.extend(bars[first..=last].iter().map(|(from, count)| {
        let cells = (*count as f64 / most * WIDTH).ceil() as usize;
        Line::from(vec![
            Span::styled(format!("{:>10} ", time(Some(*from))), styles.faint()),
            Span::styled("█".repeat(cells), styles.colour(Color::Cyan)),
            Span::raw(format!(" {count}")),
        ])
    }));
    lines
}

fn runner(row: &RunnerRow, styles: Styles) -> Text<'static> {
    let c = &row.capacity;
    let state =
        if row.reason.is_empty() { row.state.to_owned() } else { format!("{}: {}", row.state, row.reason) };
    let mut labels: Vec<_> = c.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    labels.sort();
    let cores = |millis: u64| format_cpu(u32::try_from(millis).unwrap_or(u32::MAX));
    Text::from(pairs(
        &[
            ("runner", row.name.clone()),
            ("state", state),
            ("address", c.address.clone()),
            ("zone", c.zone.clone()),
            ("labels", labels.join(", ")),
            ("life", format!("{:016x}, record {}, heard {} ago", c.incarnation, c.sequence, age(row.age))),
            (
                "memory",
                format!(
                    "{} {} at work, {} idle, of {}",
                    bar(row.memory, 24),
                    human_size(row.memory.busy),
                    human_size(row.memory.idle),
                    human_size(row.memory.total)
                ),
            ),
            (
                "cpu",
                format!("{} {} of {} at work", bar(row.cpu, 24), cores(row.cpu.busy), cores(row.cpu.total)),
            ),
            (
                "slots",
                format!(
                    "{} {} at work, {} idle, of {}",
                    bar(row.slots, 24),
                    row.slots.busy,
                    row.slots.idle,
                    row.slots.total
                ),
            ),
            ("calls", format!("{} a second; {} inside, {} waiting", rate(row.rate), c.in_flight, c.waiting)),
            (
                "containers",
                format!(
                    "{} busy, {} idle, of {}",
                    row.busy,
                    row.idle,
                    count(c.functions.len(), "version of function")
                ),
            ),
        ],
        styles,
    ))
}
