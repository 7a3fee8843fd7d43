//! The log's level, as the mediator's flags name it.

use isthmus_service::{LogFormat, log};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

fn filter(level: LevelFilter) -> EnvFilter {
    // Of the level alone: what other programs' variables say is not ours.
    EnvFilter::default().add_directive(level.into())
}

/// Starts logging.
pub fn init(level: LevelFilter, format: LogFormat) {
    log::init(filter(level), format, false);
}

/// Changes the level. Where the log is another program's, as in a test, nothing changes.
pub(crate) fn set(level: LevelFilter) {
    if let Err(error) = log::set(filter(level)) {
        tracing::warn!(error, "the log keeps its level");
    }
}
