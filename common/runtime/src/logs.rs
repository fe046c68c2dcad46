//! Where the process's own log goes: STDERR, as lines for people or as JSON.

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, fmt};

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Lines for people; colours unless `NO_COLOR` is set.
    Pretty,
    /// One JSON object a line.
    Json,
}

/// Sends the log to STDERR. `filter` is `level` or `target=level,…`, like `info,stoker_lb=debug`; what cannot be read counts as
/// `info`. A second call changes nothing.
pub fn init(style: Style, filter: &str) {
    let targets: Targets = filter.parse().unwrap_or_else(|_| Targets::new().with_default(LevelFilter::INFO));
    let layer = match style {
        Style::Pretty => {
            let colours = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
            fmt::layer().with_writer(std::io::stderr).with_ansi(colours).boxed()
        }
        Style::Json => fmt::layer().json().with_writer(std::io::stderr).boxed(),
    };
    // An embedding program or a test may have its own subscriber: it keeps it.
    if tracing_subscriber::registry().with(layer.with_filter(targets)).try_init().is_err() {
        tracing::debug!("a log subscriber was installed before");
    }
}
