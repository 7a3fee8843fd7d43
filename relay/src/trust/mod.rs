//! Who may do what: the keys in the state directory, tokens, TLS.

mod glob;
mod grant;
mod jwks;
mod keys;
mod operation;
mod revoked;
mod ring;
mod set;
mod state_dir;
mod tickets;
mod tls;
mod token;

#[cfg(test)]
mod tests;

pub use glob::{BadGlob, Glob};
pub use grant::{Credential, Grant, Holder};
pub use operation::{BadOperation, Operation, Operations};
pub use revoked::{Entry, Revoked, Target, certificate_named, token_named};
pub use set::{Judges, Shown, Trust, TrustOptions, TrustSource};
pub use state_dir::{Fingerprint, State};
pub use tls::{SERVER_NAME, first_expiry, server_config};
pub use token::{TerminalScope, TokenKey};

/// The wall clock in seconds since 1970; 0 before that.
pub fn unix_now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Lower-case hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
