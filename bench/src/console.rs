//! Words to whoever looks. A reader that has gone does not end a run: what stands around it would stay.

use std::fmt;
use std::io::{Write, stderr, stdout};

/// A line on standard error.
pub fn note(line: fmt::Arguments<'_>) {
    // There is nobody left to be told.
    let _ = writeln!(stderr(), "{line}");
}

/// Text on standard output.
pub fn put(text: fmt::Arguments<'_>) {
    // As above.
    let _ = stdout().write_fmt(text).and_then(|()| stdout().flush());
}
