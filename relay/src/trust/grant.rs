//! What somebody who proved who he is may do, and what that proof was.

use std::net::SocketAddr;

use aws_lc_rs::digest::{SHA256, digest};
use isthmus_proto::policy::{self, AllowRule};
use serde::{Deserialize, Serialize};

use super::token::everywhere;
use super::{Glob, Operation, Operations};

/// In which role somebody may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Holder {
    /// As the mediator of that name.
    Mediator,
    /// As a terminal of that name.
    Terminal,
}

/// What the holder of a checked token or certificate may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Its role.
    pub holder: Holder,
    /// The mediator's or terminal's name.
    pub name: String,
    /// What it may ask for; a mediator asks for nothing.
    pub operations: Operations,
    /// Where it may go; a mediator goes nowhere.
    pub destinations: Vec<AllowRule>,
    /// The mediators that it may use; a mediator's own name.
    pub mediators: Glob,
    /// What the session's right to live on depends on.
    pub credential: Credential,
}

impl Grant {
    /// All that the mediators allow, for whoever comes where nobody is asked for a token.
    pub fn everything(name: &str, mediators: Glob) -> Self {
        Self {
            holder: Holder::Terminal,
            name: name.to_owned(),
            operations: Operations::ALL,
            destinations: everywhere(),
            mediators,
            credential: Credential::NOBODYS,
        }
    }

    /// Whether the holder may ask for `op`.
    pub fn permits(&self, op: Operation) -> bool {
        self.operations.contains(op)
    }

    /// Whether the holder may go to `to` through a mediator.
    pub fn permits_destination(&self, to: SocketAddr) -> bool {
        policy::allows(&self.destinations, to)
    }
}

/// The proof that a session came in with, as little of it as tells whether it still holds: every tunnel keeps one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Credential {
    /// [`digest64`] of the token's `jti`, or of the SHA-256 of what a certificate's authority signed, in hexadecimal
    /// digits.
    pub id: u64,
    /// The same of a whole certificate's SHA-256, by which revocation lists of earlier versions name it; of a token, `id`.
    pub print: u64,
    /// Which key it was verified with.
    pub key: u64,
    /// When it was issued, in seconds since 1970; zero if it does not say.
    pub issued: u64,
    /// When it ends, in seconds since 1970.
    pub expires: u64,
}

impl Credential {
    /// Of those who come where nobody is asked for a proof: it neither ends nor can be revoked.
    pub const NOBODYS: Self = Self { id: 0, print: 0, key: 0, issued: 0, expires: u64::MAX };
}

/// The first 64 bits of a text's SHA-256. Whoever could make two texts collide would only get his own token refused.
pub(super) fn digest64(text: &[u8]) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&digest(&SHA256, text).as_ref()[..8]);
    u64::from_be_bytes(first)
}
