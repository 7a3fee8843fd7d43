//! The log's filter, as the relay's flags and operators write it.

use isthmus_service::{LogFormat, log};
use tracing_subscriber::EnvFilter;

/// Checks a filter such as `info` or `info,isthmus_relay=debug`.
///
/// # Errors
/// Why it is none.
pub fn check(filter: &str) -> Result<EnvFilter, String> {
    EnvFilter::try_new(filter)
        .map_err(|error| format!("'{filter}': {error}; write a level (error, warn, info, debug, trace) or a filter"))
}

/// Starts logging, with the threads' names, which tell the shards; a filter that cannot be used counts as `info`.
pub fn init(filter: &str, format: LogFormat) {
    log::init(EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info")), format, true);
}

/// Changes the filter. Where the log is another program's, as in a test, nothing changes.
///
/// # Errors
/// The filter is none.
pub fn set(filter: &str) -> Result<(), String> {
    log::set(check(filter)?)
}
