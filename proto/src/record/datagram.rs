//! Datagrams of a UDP channel:
//!
//! ```text
//! | shard: 1 | kind: 4 bits, epoch: 4 bits | zero: 2 | channel: 4 | packet number: 8 |   associated data
//! | sealed plaintext ... | tag: 16 |
//! ```
//!
//! Numbers are big-endian. The shard comes first, since the kernel picks the relay's socket by that
//! byte. Each direction of each channel and epoch has its own key, derived from the tunnel's secret.

use std::ops::Range;

use rustls::crypto::tls13::HkdfExpander;
use zeroize::Zeroizing;

use super::TAG;
use super::keys::{Suite, TrafficKey};
use super::replay::{Replay, ReplayWindow};
use super::suites::tls13;
use crate::id::{ChannelId, ShardId};

/// Bytes before the sealed plaintext.
pub const DATAGRAM_HEADER: usize = 16;

/// Bytes that a datagram has beyond its plaintext.
pub const DATAGRAM_OVERHEAD: usize = DATAGRAM_HEADER + TAG;

/// The head of a datagram, in the clear but authenticated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DatagramHeader {
    /// The relay's shard that owns the channel.
    pub shard: ShardId,
    /// What the plaintext is: 0 to 15, given its meaning by the link.
    pub kind: u8,
    /// The low four bits of the key epoch. [`super::ChannelKeys::seal_into`] sets it.
    pub epoch: u8,
    /// The channel.
    pub channel: ChannelId,
    /// The packet number within channel, direction and epoch. [`super::ChannelKeys::seal_into`] sets it.
    pub packet: u64,
}

impl DatagramHeader {
    /// Reads a datagram's head, for choosing the keys. Nothing of it is to be believed before
    /// [`super::ChannelKeys::open`] took the datagram.
    ///
    /// # Errors
    /// [`DatagramError::Short`], [`DatagramError::Malformed`].
    pub fn parse(packet: &[u8]) -> Result<Self, DatagramError> {
        if packet.len() < DATAGRAM_OVERHEAD {
            return Err(DatagramError::Short);
        }
        let Some(&[shard, kind_epoch, 0, 0, c0, c1, c2, c3, p0, p1, p2, p3, p4, p5, p6, p7]) = packet.first_chunk()
        else {
            return Err(DatagramError::Malformed);
        };
        let number = u64::from_be_bytes([p0, p1, p2, p3, p4, p5, p6, p7]);
        if number >= EpochKeys::PACKETS_MAX {
            return Err(DatagramError::Malformed);
        }
        Ok(Self {
            shard: ShardId(shard),
            kind: kind_epoch >> 4,
            epoch: kind_epoch & 0xf,
            channel: ChannelId(u32::from_be_bytes([c0, c1, c2, c3])),
            packet: number,
        })
    }

    fn encode(&self) -> [u8; DATAGRAM_HEADER] {
        let mut bytes = [0; DATAGRAM_HEADER];
        bytes[0] = self.shard.0;
        bytes[1] = self.kind << 4 | self.epoch & 0xf;
        bytes[4..8].copy_from_slice(&self.channel.0.to_be_bytes());
        bytes[8..].copy_from_slice(&self.packet.to_be_bytes());
        bytes
    }
}

/// Why a datagram was not taken or could not be made. A received one that fails is dropped and counted; the
/// channel goes on, since anybody can send one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DatagramError {
    /// Shorter than any datagram can be.
    #[error("shorter than a datagram's head and tag")]
    Short,
    /// The head is none of this version.
    #[error("its head is none of this version")]
    Malformed,
    /// It belongs to another key epoch.
    #[error("it belongs to another key epoch")]
    WrongEpoch,
    /// Not sealed by the peer for this channel, direction and epoch, or changed on its way.
    #[error("it is not the peer's, or was changed on its way")]
    Forged,
    /// Authentic, but taken before.
    #[error("it was taken before")]
    Replayed,
    /// Authentic, but older than the replay window.
    #[error("it came too late to tell whether it was taken before")]
    TooOld,
    /// The buffer to seal into is too short, or the kind has more than four bits.
    #[error("it does not fit")]
    NoRoom,
    /// All packet numbers of this epoch are used.
    #[error("all packet numbers of this epoch are used; begin the next")]
    Exhausted,
    /// The cryptographic library failed; out of memory is the one known cause.
    #[error("the cryptographic library failed")]
    Crypto,
}

/// Which end of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The mediator or terminal.
    Caller,
    /// The relay.
    Relay,
}

/// One end's keys of one channel and epoch, with its send counter and replay window.
pub(super) struct EpochKeys {
    sealing: TrafficKey,
    opening: TrafficKey,
    /// Number of the next packet to seal.
    next: u64,
    window: ReplayWindow,
    epoch: u32,
}

impl EpochKeys {
    /// Packets that one epoch may seal, in each direction.
    pub(super) const PACKETS_MAX: u64 = 1 << 48;

    /// Packets after which [`EpochKeys::epoch_due`]: AES-GCM's advised bound for packets of at most
    /// 2 KiB (RFC 9001 B.1.1).
    pub(super) const EPOCH_AFTER: u64 = 1 << 28;

    /// Derives both directions' keys by HKDF-SHA256 from the tunnel's secret, which both ends share.
    /// The wire carries the low four bits of `epoch` only.
    ///
    /// # Errors
    /// [`DatagramError::Crypto`].
    pub(super) fn derive(secret: &[u8; 32], channel: ChannelId, epoch: u32, end: End) -> Result<Self, DatagramError> {
        let hkdf_sha256 = tls13(Suite::Aes128Gcm).hkdf_provider;
        let from_secret = hkdf_sha256.extract_from_secret(Some(b"isthmus/1 udp channel"), secret);
        let from_caller = derive_one(&*from_secret, channel, epoch, End::Caller)?;
        let from_relay = derive_one(&*from_secret, channel, epoch, End::Relay)?;
        let (sealing, opening) = match end {
            End::Caller => (from_caller, from_relay),
            End::Relay => (from_relay, from_caller),
        };
        Ok(Self { sealing, opening, next: 0, window: ReplayWindow::default(), epoch })
    }

    /// The key epoch.
    pub(super) fn epoch(&self) -> u32 {
        self.epoch
    }

    /// As much of the epoch as a datagram carries.
    pub(super) fn wire_epoch(&self) -> u8 {
        (self.epoch & 0xf) as u8
    }

    /// Whether this key has sealed as much as is wise, so that the next epoch should begin.
    pub(super) fn epoch_due(&self) -> bool {
        self.next >= Self::EPOCH_AFTER
    }

    /// Writes a whole datagram to the front of `out`: head, `payload` and `trailer` sealed one behind the
    /// other, tag. Gives its length, which is [`DATAGRAM_OVERHEAD`] more than theirs. Of `header`,
    /// epoch and packet number are ours, whatever they are set to.
    ///
    /// # Errors
    /// [`DatagramError::NoRoom`], [`DatagramError::Exhausted`], [`DatagramError::Crypto`].
    pub(super) fn seal_into(
        &mut self,
        header: DatagramHeader,
        payload: &[u8],
        trailer: &[u8],
        out: &mut [u8],
    ) -> Result<usize, DatagramError> {
        let length = DATAGRAM_OVERHEAD + payload.len() + trailer.len();
        let out = out.get_mut(..length).filter(|_| header.kind <= 0xf).ok_or(DatagramError::NoRoom)?;
        if self.next >= Self::PACKETS_MAX {
            return Err(DatagramError::Exhausted);
        }
        let head = DatagramHeader { epoch: self.wire_epoch(), packet: self.next, ..header }.encode();
        let (start, body) = out.split_at_mut(DATAGRAM_HEADER);
        start.copy_from_slice(&head);
        let nonce = self.sealing.nonce(self.next);
        self.sealing
            .context()
            .and_then(|context| context.seal_into(nonce, &head, payload, trailer, body))
            .map_err(|_| DatagramError::Crypto)?;
        self.next += 1;
        Ok(length)
    }

    /// Opens a whole datagram in place; gives where its plaintext lies. The sender's address may be
    /// believed from then on.
    ///
    /// # Errors
    /// Any [`DatagramError`] but those of sealing; the packet's bytes are then undefined.
    pub(super) fn open(&mut self, packet: &mut [u8]) -> Result<Range<usize>, DatagramError> {
        let header = DatagramHeader::parse(packet)?;
        if header.epoch != self.wire_epoch() {
            return Err(DatagramError::WrongEpoch);
        }
        let (head, body) = packet.split_first_chunk_mut::<DATAGRAM_HEADER>().ok_or(DatagramError::Short)?;
        let nonce = self.opening.nonce(header.packet);
        let context = self.opening.context().map_err(|_| DatagramError::Crypto)?;
        let length = context.open(nonce, head, body).map_err(|_| DatagramError::Forged)?.len();
        // Behind the proof of origin: a forged number must not move the window.
        self.window.accept(header.packet).map_err(|replay| match replay {
            Replay::Seen => DatagramError::Replayed,
            Replay::TooOld => DatagramError::TooOld,
        })?;
        Ok(DATAGRAM_HEADER..DATAGRAM_HEADER + length)
    }

    #[cfg(test)]
    pub(super) fn sealed(&self) -> u64 {
        self.next
    }

    #[cfg(test)]
    pub(super) fn set_sealed(&mut self, count: u64) {
        self.next = count;
    }

    /// Frees what can be built again (two key contexts of 632 B) or done without (which older packets have not come
    /// yet), for a channel that fell idle.
    pub(super) fn release_context(&mut self) {
        self.sealing.release();
        self.opening.release();
        self.window.rest();
    }

    /// Whether the key context for opening is built.
    pub(super) fn is_warm(&self) -> bool {
        self.opening.has_context()
    }

    /// One more than the largest packet number opened; 0 before any.
    pub(super) fn above(&self) -> u64 {
        self.window.next()
    }
}

/// The key and IV of the direction that begins at `from`.
fn derive_one(
    from_secret: &dyn HkdfExpander,
    channel: ChannelId,
    epoch: u32,
    from: End,
) -> Result<TrafficKey, DatagramError> {
    const KEY: usize = 16;
    const IV: usize = 12;
    let direction = match from {
        End::Caller => 0,
        End::Relay => 1,
    };
    let mut okm = Zeroizing::new([0; KEY + IV]);
    from_secret
        .expand_slice(&[&channel.0.to_be_bytes(), &epoch.to_be_bytes(), &[direction]], &mut *okm)
        .map_err(|_| DatagramError::Crypto)?;
    TrafficKey::new(Suite::Aes128Gcm, &okm[..KEY], &okm[KEY..]).map_err(|_| DatagramError::Crypto)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: [u8; 32] = [7; 32];
    const CHANNEL: ChannelId = ChannelId(0x0500_0123);
    const HEADER: DatagramHeader = DatagramHeader { shard: ShardId(3), kind: 2, epoch: 0, channel: CHANNEL, packet: 0 };

    fn keys(end: End) -> EpochKeys {
        EpochKeys::derive(&SECRET, CHANNEL, 9, end).unwrap()
    }

    fn sealed(keys: &mut EpochKeys, payload: &[u8], trailer: &[u8]) -> Vec<u8> {
        let mut out = vec![0xee; DATAGRAM_OVERHEAD + payload.len() + trailer.len()];
        assert_eq!(keys.seal_into(HEADER, payload, trailer, &mut out), Ok(out.len()));
        out
    }

    /// HKDF-SHA256 of the secret with the salt "isthmus/1 udp channel", expanded with channel, epoch and direction, as
    /// another implementation has it.
    #[test]
    fn keys_are_those_of_the_protocol() {
        let wanted = [
            (End::Caller, 0xc6ef_4470_b39f_ff2b_70ab_60fa_c03a_105c_u128, 0xf649_2fae_cbb0_c22f_418a_b178_u128),
            (End::Relay, 0x4c66_51c6_8ae6_97dc_b67a_e591_fa72_1913, 0xeac9_074d_eee1_9d68_8600_24f7),
        ];
        for (end, key, iv) in wanted {
            let known = TrafficKey::new(Suite::Aes128Gcm, &key.to_be_bytes(), &iv.to_be_bytes()[4..]).unwrap();
            let mut known = EpochKeys { sealing: known, ..keys(end) };
            assert_eq!(sealed(&mut keys(end), b"payload", b"trailer"), sealed(&mut known, b"payload", b"trailer"));
        }
    }

    #[test]
    fn payload_and_trailer_arrive_in_one_piece_in_both_directions() {
        for (from, to) in [(End::Caller, End::Relay), (End::Relay, End::Caller)] {
            let (mut from, mut to) = (keys(from), keys(to));
            for (number, (payload, trailer)) in
                [(&b""[..], &b""[..]), (b"", b"t"), (b"p", b""), (&[5; 1400], &[6; 26]), (&[5; 65_000], &[6; 8])]
                    .into_iter()
                    .enumerate()
            {
                let mut packet = sealed(&mut from, payload, trailer);
                let header = DatagramHeader { epoch: 9, packet: number as u64, ..HEADER };
                assert_eq!(DatagramHeader::parse(&packet), Ok(header));
                let range = to.open(&mut packet).unwrap();
                assert_eq!(packet[range], [payload, trailer].concat());
            }
        }
    }

    #[test]
    fn head_has_its_documented_layout() {
        let mut packet = sealed(&mut keys(End::Caller), b"", b"");
        assert_eq!(packet[..16], [3, 0x29, 0, 0, 5, 0, 1, 0x23, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(packet.len(), DATAGRAM_OVERHEAD);
        packet.pop();
        assert_eq!(DatagramHeader::parse(&packet), Err(DatagramError::Short));
        assert_eq!(DatagramHeader::parse(&[]), Err(DatagramError::Short));
        for (at, want) in [(2, DatagramError::Malformed), (3, DatagramError::Malformed), (9, DatagramError::Malformed)]
        {
            let mut packet = sealed(&mut keys(End::Caller), b"", b"");
            packet[at] = 1;
            assert_eq!(DatagramHeader::parse(&packet), Err(want), "byte {at}");
        }
    }

    #[test]
    fn datagram_changed_anywhere_is_refused() {
        let whole = sealed(&mut keys(End::Caller), b"payload", b"trailer");
        for at in 0..whole.len() {
            let mut packet = whole.clone();
            packet[at] ^= 0x10;
            assert!(keys(End::Relay).open(&mut packet).is_err(), "byte {at}");
        }
        let mut cut = whole[..whole.len() - 1].to_vec();
        assert_eq!(keys(End::Relay).open(&mut cut), Err(DatagramError::Forged));
        assert!(keys(End::Relay).open(&mut whole.clone()).is_ok());
    }

    #[test]
    fn keys_of_another_secret_channel_epoch_or_direction_refuse() {
        let whole = sealed(&mut keys(End::Caller), b"payload", b"");
        for (mut other, want) in [
            (EpochKeys::derive(&[8; 32], CHANNEL, 9, End::Relay).unwrap(), DatagramError::Forged),
            (EpochKeys::derive(&SECRET, ChannelId(0x0600_0123), 9, End::Relay).unwrap(), DatagramError::Forged),
            (EpochKeys::derive(&SECRET, CHANNEL, 10, End::Relay).unwrap(), DatagramError::WrongEpoch),
            // The same low four bits: told apart by the key.
            (EpochKeys::derive(&SECRET, CHANNEL, 9 + 16, End::Relay).unwrap(), DatagramError::Forged),
            (keys(End::Caller), DatagramError::Forged),
        ] {
            assert_eq!(other.open(&mut whole.clone()), Err(want));
        }
    }

    #[test]
    fn packet_is_taken_once_within_the_window_and_never_behind_it() {
        let (mut from, mut to) = (keys(End::Caller), keys(End::Relay));
        let packets: Vec<_> = (0..=256).map(|_| sealed(&mut from, b"x", b"")).collect();
        assert!(to.open(&mut packets[256].clone()).is_ok());
        assert_eq!(to.open(&mut packets[256].clone()), Err(DatagramError::Replayed));
        assert!(to.open(&mut packets[1].clone()).is_ok());
        assert_eq!(to.open(&mut packets[0].clone()), Err(DatagramError::TooOld));
    }

    #[test]
    fn forged_number_does_not_move_the_window() {
        let (mut from, mut to) = (keys(End::Caller), keys(End::Relay));
        let packet = sealed(&mut from, b"x", b"");
        let mut forged = packet.clone();
        forged[12] = 0xff;
        assert_eq!(to.open(&mut forged), Err(DatagramError::Forged));
        assert!(to.open(&mut packet.clone()).is_ok());
    }

    #[test]
    fn used_up_numbers_and_small_buffers_are_refused_without_using_a_number() {
        let mut from = keys(End::Caller);
        let mut out = [0; DATAGRAM_OVERHEAD + 3];
        assert_eq!(from.seal_into(HEADER, b"four", b"", &mut out), Err(DatagramError::NoRoom));
        assert_eq!(from.seal_into(HEADER, b"", b"four", &mut out), Err(DatagramError::NoRoom));
        let wide = DatagramHeader { kind: 16, ..HEADER };
        assert_eq!(from.seal_into(wide, b"", b"", &mut out), Err(DatagramError::NoRoom));
        assert_eq!(from.next, 0);
        from.next = EpochKeys::EPOCH_AFTER - 1;
        assert!(!from.epoch_due());
        sealed(&mut from, b"x", b"");
        assert!(from.epoch_due());
        from.next = EpochKeys::PACKETS_MAX - 1;
        let mut last = sealed(&mut from, b"x", b"");
        assert!(keys(End::Relay).open(&mut last).is_ok());
        assert_eq!(from.seal_into(HEADER, b"x", b"", &mut out), Err(DatagramError::Exhausted));
    }

    #[test]
    fn released_contexts_are_built_again_on_use() {
        let (mut from, mut to) = (keys(End::Caller), keys(End::Relay));
        for _ in 0..3 {
            assert!(to.open(&mut sealed(&mut from, b"x", b"")).is_ok());
            assert!(from.sealing.has_context() && to.opening.has_context());
            from.release_context();
            to.release_context();
            assert!(!from.sealing.has_context() && !to.opening.has_context());
        }
    }
}
