//! Who may do what: the keys in the state directory, tokens, TLS.

mod glob;
mod keys;
mod operation;
mod state_dir;
mod tls;
mod token;

pub use glob::{BadGlob, Glob};
pub use operation::{BadOperation, Operation, Operations};
pub use state_dir::{Fingerprint, State};
pub use tls::{SERVER_NAME, server_config};
pub use token::{Grant, TerminalScope, TokenKey};

/// Lower-case hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
