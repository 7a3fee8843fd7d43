//! What a terminal may ask for.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident = $word:literal,)*) => {
        /// One kind of request. Closing what one has opened needs no right of its own.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "lowercase")]
        #[repr(u8)]
        pub enum Operation { $($(#[$doc])* $name,)* }

        impl Operation {
            /// Every operation.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Its word, in tokens and on command lines.
            pub fn word(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }
        }
    };
}

operations! {
    /// Open a port of the mediator whose datagrams, if it is UDP, travel over the TCP channel.
    Open = "open",
    /// Open a UDP port of the mediator whose datagrams travel over a UDP channel.
    Redirect = "redirect",
    /// Connect an opened TCP port to a destination.
    Connect = "connect",
    /// Make an opened TCP port a server.
    Listen = "listen",
    /// Read the mediator's report and figures.
    Info = "info",
    /// List the mediators that the token names.
    List = "list",
}

/// The text is not an operation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no operation; there are open, redirect, connect, listen, info and list")]
pub struct BadOperation(String);

impl FromStr for Operation {
    type Err = BadOperation;
    fn from_str(text: &str) -> Result<Self, BadOperation> {
        Self::ALL.iter().copied().find(|op| op.word() == text).ok_or_else(|| BadOperation(text.to_owned()))
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A set of operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Operations(u8);

impl Operations {
    /// No operation.
    pub const NONE: Self = Self(0);
    /// Every operation.
    pub const ALL: Self = Self((1 << Operation::ALL.len()) - 1);

    /// Whether `op` is in the set.
    pub fn contains(self, op: Operation) -> bool {
        self.0 & (1 << op as u8) != 0
    }
}

impl FromIterator<Operation> for Operations {
    fn from_iter<I: IntoIterator<Item = Operation>>(ops: I) -> Self {
        Self(ops.into_iter().fold(0, |bits, op| bits | 1 << op as u8))
    }
}

const _: () = assert!(Operation::ALL.len() < 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_comes_back_from_its_word_and_is_named_in_the_error() {
        let help = "fly".parse::<Operation>().unwrap_err().to_string();
        for &op in Operation::ALL {
            assert_eq!(op.to_string().parse(), Ok(op));
            assert_eq!(serde_json::to_string(&op).unwrap(), format!("\"{op}\""));
            assert!(help.contains(op.word()));
        }
    }

    #[test]
    fn a_set_holds_exactly_what_was_put_in() {
        for &op in Operation::ALL {
            let set: Operations = [op].into_iter().collect();
            for &other in Operation::ALL {
                assert_eq!(set.contains(other), other == op);
            }
            assert!(Operations::ALL.contains(op) && !Operations::NONE.contains(op));
        }
    }
}
