//! The log, on standard error; its level can be changed while the mediator runs.

use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

type Set = Box<dyn Fn(LevelFilter) -> Result<(), String> + Send + Sync>;

/// How the running log's level is changed; there is one log for a process.
static SET: OnceLock<Set> = OnceLock::new();

fn filter(level: LevelFilter) -> EnvFilter {
    // Of the level alone: what other programs' variables say is not ours.
    EnvFilter::default().add_directive(level.into())
}

/// Starts logging.
pub fn init(level: LevelFilter) {
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter(level))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_filter_reloading();
    let handle = log.reload_handle();
    // It fails only where a subscriber is set already, as in a test: that one is then the better one.
    if log.try_init().is_ok() {
        let _ = SET.set(Box::new(move |level| handle.reload(filter(level)).map_err(|error| error.to_string())));
    }
}

/// Changes the level. Where the log is another program's, as in a test, nothing changes.
pub(crate) fn set(level: LevelFilter) {
    if let Some(Err(error)) = SET.get().map(|set| set(level)) {
        tracing::warn!(error, "the log keeps its level");
    }
}
