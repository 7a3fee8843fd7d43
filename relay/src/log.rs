//! The log, on standard error; its filter can be changed while the relay runs.

use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;

type Set = Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>;

/// How the running log's filter is changed; there is one log for a process.
static SET: OnceLock<Set> = OnceLock::new();

/// Checks a filter such as `info` or `info,isthmus_relay=debug`.
///
/// # Errors
/// Why it is none.
pub fn check(filter: &str) -> Result<EnvFilter, String> {
    EnvFilter::try_new(filter)
        .map_err(|error| format!("'{filter}': {error}; write a level (error, warn, info, debug, trace) or a filter"))
}

/// Starts logging; a filter that cannot be used counts as `info`.
pub fn init(filter: &str) {
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colours)
        .with_filter_reloading();
    let handle = log.reload_handle();
    // It fails only where a subscriber is set already, as in a test: that one is then the better one.
    if log.try_init().is_ok() {
        let _ = SET.set(Box::new(move |filter| handle.reload(filter).map_err(|error| error.to_string())));
    }
}

/// Changes the filter. Where the log is another program's, as in a test, nothing changes.
///
/// # Errors
/// The filter is none.
pub fn set(filter: &str) -> Result<(), String> {
    let filter = check(filter)?;
    SET.get().map_or(Ok(()), |set| set(filter))
}
