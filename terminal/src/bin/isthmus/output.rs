//! The standard output.

use std::io::Write;

use anyhow::Context;

/// Writes at once. A closed pipe is an error and, other than with `println!`, no panic.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("cannot write to the standard output")
}
