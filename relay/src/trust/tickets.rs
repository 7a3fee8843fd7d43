//! Tickets of TLS sessions (RFC 8446 4.6.1): what a caller shows in its next handshake, so that neither the relay's signature
//! nor its check is needed. The keys of that connection are agreed anew all the same, so a ticket opens nothing that
//! was recorded.
//!
//! They are sealed with keys of which each holds for a day, made from the relay's own private key and certificate: so they
//! outlive a crash, when all mediators come at once; relays with one identity take each other's; and another certificate makes
//! all of them void. No file is kept, and shards share nothing that is written.

use std::fmt;
use std::ops::RangeInclusive;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use rustls::server::ProducesTickets;

use super::{State, unix_now};

/// Days for which a ticket holds: the most that a caller may take (RFC 8446 4.6.1).
const DAYS: u64 = 7;

const DAY_S: u64 = 24 * 60 * 60;

/// Bytes of the day that a ticket begins with.
const DAY_LEN: usize = 4;

/// Bytes of a ticket of ours: the session in it, its parts' lengths included, has about 120. Others are not worth a key's making.
const TICKET_LEN: RangeInclusive<usize> = 64..=512;

/// Bytes of a day's key.
const KEY_LEN: usize = 32;

/// Seals and opens tickets.
///
/// ```text
/// | day since 1970: 4 | nonce: 12 | sealed session, and tag: 16 |
/// ```
pub(super) struct Tickets {
    keys: Prk,
    certificate: [u8; 32],
}

/// How long a day's key is.
struct KeyLen;

impl KeyType for KeyLen {
    fn len(&self) -> usize {
        KEY_LEN
    }
}

impl Tickets {
    /// Those of the relay with this identity.
    pub(super) fn of(state: &State) -> Self {
        let keys = Salt::new(HKDF_SHA256, b"isthmus-relay session tickets").extract(state.private_key().secret_der());
        Self { keys, certificate: state.fingerprint().0 }
    }

    fn key(&self, day: [u8; DAY_LEN]) -> Option<RandomizedNonceKey> {
        let mut key = [0; KEY_LEN];
        self.keys.expand(&[&self.certificate, &day], KeyLen).ok()?.fill(&mut key).ok()?;
        RandomizedNonceKey::new(&AES_256_GCM, &key).ok()
    }

    fn seal(&self, today: u64, session: &[u8]) -> Option<Vec<u8>> {
        let day = u32::try_from(today).ok()?.to_be_bytes();
        let mut sealed = session.to_vec();
        let nonce = self.key(day)?.seal_in_place_append_tag(Aad::from(day), &mut sealed).ok()?;
        Some([&day, nonce.as_ref().as_slice(), &sealed].concat())
    }

    fn open(&self, today: u64, ticket: &[u8]) -> Option<Vec<u8>> {
        if !TICKET_LEN.contains(&ticket.len()) {
            return None;
        }
        let (&day, rest) = ticket.split_first_chunk::<DAY_LEN>()?;
        let (&nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        // Clocks of relays with one identity may differ by a little.
        let made = u64::from(u32::from_be_bytes(day));
        if !(today.saturating_sub(DAYS)..=today + 1).contains(&made) {
            return None;
        }
        let mut session = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(nonce);
        let length = self.key(day)?.open_in_place(nonce, Aad::from(day), &mut session).ok()?.len();
        session.truncate(length);
        Some(session)
    }
}

fn today() -> u64 {
    unix_now() / DAY_S
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        (DAYS * DAY_S) as u32
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.seal(today(), plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.open(today(), cipher)
    }
}

impl fmt::Debug for Tickets {
    /// Without the keys: configurations print how they make tickets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: &[u8] = &[7; 120];

    #[test]
    fn tickets_outlive_the_relay_for_a_week_and_no_longer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let before = Tickets::of(&State::open(&path).unwrap());
        let ticket = before.seal(20_000, SESSION).unwrap();
        assert_ne!(ticket, before.seal(20_000, SESSION).unwrap());
        let after = Tickets::of(&State::open(&path).unwrap());
        for (today, opened) in [(19_998, false), (19_999, true), (20_000, true), (20_007, true), (20_008, false)] {
            assert_eq!(after.open(today, &ticket).as_deref(), opened.then_some(SESSION), "{today}");
        }
    }

    #[test]
    fn tickets_of_another_relay_or_changed_ones_or_none_at_all_are_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let [one, other] = ["a", "b"].map(|name| Tickets::of(&State::open(&folder.path().join(name)).unwrap()));
        let ticket = one.seal(20_000, SESSION).unwrap();
        assert_eq!(other.open(20_000, &ticket), None);
        for at in 0..ticket.len() {
            let mut changed = ticket.clone();
            changed[at] ^= 1;
            assert_eq!(one.open(20_000, &changed), None, "{at}");
            assert_eq!(one.open(20_000, &ticket[..at]), None, "{at}");
        }
    }

    #[test]
    fn renewed_certificate_of_the_same_key_voids_them() {
        let folder = tempfile::tempdir().unwrap();
        let mut tickets = Tickets::of(&State::open(&folder.path().join("state")).unwrap());
        let ticket = tickets.seal(20_000, SESSION).unwrap();
        tickets.certificate[0] ^= 1;
        assert_eq!(tickets.open(20_000, &ticket), None);
    }
}
