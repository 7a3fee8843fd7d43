//! A UDP channel's keys over its whole life: epoch after epoch, each end turning to the next when its
//! keys have sealed enough, and following the other end when that does.

use std::ops::Range;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::datagram::{DatagramError, DatagramHeader, End, EpochKeys};
use crate::id::ChannelId;
use crate::rare::{Empty, Rare};

/// The secret that all UDP channels of a link share.
pub type UdpSecret = Arc<Zeroizing<[u8; 32]>>;

/// One end's keys of one channel.
pub struct ChannelKeys {
    secret: UdpSecret,
    channel: ChannelId,
    end: End,
    current: EpochKeys,
    aside: Rare<Aside>,
    newest: bool,
}

/// Keys of the epochs beside the present one.
#[derive(Default)]
struct Aside {
    /// Of the one before, for what was still on its way.
    former: Option<EpochKeys>,
    /// Of the next one, since somebody claims that it has begun: made once, however many claim it.
    next: Option<EpochKeys>,
}

impl Empty for Aside {
    const EMPTY: &'static Self = &Self { former: None, next: None };
}

impl ChannelKeys {
    /// Derives the keys by HKDF-SHA256 from the tunnel's secret, which both ends share.
    ///
    /// # Errors
    /// [`DatagramError::Crypto`].
    pub fn derive(secret: &[u8; 32], channel: ChannelId, epoch: u32, end: End) -> Result<Self, DatagramError> {
        Self::derive_shared(&Arc::new(Zeroizing::new(*secret)), channel, epoch, end)
    }

    /// The same from a secret that several channels share.
    ///
    /// # Errors
    /// [`DatagramError::Crypto`].
    pub fn derive_shared(secret: &UdpSecret, channel: ChannelId, epoch: u32, end: End) -> Result<Self, DatagramError> {
        let current = EpochKeys::derive(secret, channel, epoch, end)?;
        Ok(Self { secret: secret.clone(), channel, end, current, aside: Rare::default(), newest: false })
    }

    /// The key epoch.
    pub fn epoch(&self) -> u32 {
        self.current.epoch()
    }

    /// Writes a whole datagram to the front of `out`: head, `payload` and `trailer` sealed one behind the
    /// other, tag. Gives its length, which is [`super::DATAGRAM_OVERHEAD`] more than theirs. Of `header`,
    /// epoch and packet number are ours, whatever they are set to.
    ///
    /// # Errors
    /// [`DatagramError::NoRoom`], [`DatagramError::Exhausted`] (after 2^32 epochs), [`DatagramError::Crypto`].
    pub fn seal_into(
        &mut self,
        header: DatagramHeader,
        payload: &[u8],
        trailer: &[u8],
        out: &mut [u8],
    ) -> Result<usize, DatagramError> {
        if self.current.epoch_due() {
            let next = self.take_next()?;
            self.turn(next);
        }
        self.current.seal_into(header, payload, trailer, out)
    }

    /// Opens a whole datagram of this epoch, the one before, or the next, which an authentic datagram
    /// begins; in place. Gives where its plaintext lies. The sender's address may be believed from then on.
    ///
    /// # Errors
    /// Any [`DatagramError`] but those of sealing; the packet's bytes are then undefined.
    pub fn open(&mut self, packet: &mut [u8]) -> Result<Range<usize>, DatagramError> {
        self.newest = false;
        let header = DatagramHeader::parse(packet)?;
        if header.epoch != self.current.wire_epoch() {
            if self.aside.former.as_ref().is_some_and(|former| former.wire_epoch() == header.epoch)
                && let Some(former) = &mut self.aside.former
            {
                return former.open(packet);
            }
            if header.epoch != self.next_wire_epoch() {
                return Err(DatagramError::WrongEpoch);
            }
            let mut next = self.take_next()?;
            let opened = next.open(packet);
            match opened {
                Ok(_) => {
                    self.turn(next);
                    self.newest = true;
                }
                Err(_) => self.aside.next = Some(next),
            }
            return opened;
        }
        let above = self.current.above();
        let range = self.current.open(packet)?;
        self.newest = header.packet >= above;
        Ok(range)
    }

    /// Whether opening a datagram of this head would make the next epoch's keys, which costs more than all else that a
    /// datagram does, on its word alone: the other end turns when it has sealed [`EpochKeys::EPOCH_AFTER`] datagrams, and
    /// not half as many have come.
    pub fn is_doubtful(&self, header: &DatagramHeader) -> bool {
        header.epoch == self.next_wire_epoch()
            && self.aside.next.is_none()
            && self.current.above() < EpochKeys::EPOCH_AFTER / 2
    }

    /// Whether opening makes no key context anew.
    pub fn is_warm(&self) -> bool {
        self.current.is_warm()
    }

    /// Whether the datagram opened last is newer than all before it: only such a one may change where
    /// the other end is believed to be.
    pub fn newest(&self) -> bool {
        self.newest
    }

    /// Frees what can be built again, for a channel that fell idle.
    pub fn release_context(&mut self) {
        self.current.release_context();
        self.aside.clear();
    }

    fn next_wire_epoch(&self) -> u8 {
        self.current.wire_epoch().wrapping_add(1) & 0xf
    }

    fn take_next(&mut self) -> Result<EpochKeys, DatagramError> {
        if self.aside.next.is_some()
            && let Some(next) = self.aside.next.take()
        {
            return Ok(next);
        }
        // Epochs never come back: the same key with the same packet numbers would be the end of AES-GCM.
        let epoch = self.current.epoch().checked_add(1).ok_or(DatagramError::Exhausted)?;
        EpochKeys::derive(&self.secret, self.channel, epoch, self.end)
    }

    fn turn(&mut self, next: EpochKeys) {
        let former = std::mem::replace(&mut self.current, next);
        *self.aside = Aside { former: Some(former), next: None };
    }

    #[cfg(test)]
    pub(super) fn current_mut(&mut self) -> &mut EpochKeys {
        &mut self.current
    }
}

/// There are two and more of them for each of very many tunnels.
const _: () = assert!(size_of::<ChannelKeys>() <= 160);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::DATAGRAM_OVERHEAD;

    const CHANNEL: ChannelId = ChannelId(5);

    fn keys(epoch: u32, end: End) -> ChannelKeys {
        ChannelKeys::derive(&[7; 32], CHANNEL, epoch, end).unwrap()
    }

    fn sealed(from: &mut ChannelKeys) -> Vec<u8> {
        let mut out = vec![0; DATAGRAM_OVERHEAD + 1];
        let header = DatagramHeader { channel: CHANNEL, ..DatagramHeader::default() };
        from.seal_into(header, b"x", b"", &mut out).unwrap();
        out
    }

    #[test]
    fn an_end_that_has_sealed_enough_turns_and_the_other_follows() {
        for epoch in [0, 14, 15, 300] {
            let (mut from, mut to) = (keys(epoch, End::Caller), keys(epoch, End::Relay));
            let mut late = sealed(&mut from);
            let mut replay = late.clone();
            from.current_mut().set_sealed(EpochKeys::EPOCH_AFTER);
            assert!(to.open(&mut sealed(&mut from)).is_ok());
            assert_eq!((from.epoch(), to.epoch()), (epoch + 1, epoch + 1));
            // What was on its way is still taken, once, and moves no address.
            assert!(to.newest());
            assert!(to.open(&mut late).is_ok());
            assert!(!to.newest());
            assert_eq!(to.open(&mut replay), Err(DatagramError::Replayed));
            // The follower seals in the new epoch as well.
            assert!(from.open(&mut sealed(&mut to)).is_ok());
        }
    }

    #[test]
    fn forged_epoch_turns_nothing() {
        let (mut from, mut to) = (keys(0, End::Caller), keys(0, End::Relay));
        let mut packet = sealed(&mut from);
        packet[1] = packet[1] & 0xf0 | 1;
        assert_eq!(to.open(&mut packet), Err(DatagramError::Forged));
        packet[1] = packet[1] & 0xf0 | 2;
        assert_eq!(to.open(&mut packet), Err(DatagramError::WrongEpoch));
        assert_eq!(to.epoch(), 0);
        assert!(to.open(&mut sealed(&mut from)).is_ok());
    }

    /// A datagram that claims to be of another epoch.
    fn forged(from: &mut ChannelKeys, epoch: u8) -> Vec<u8> {
        let mut packet = sealed(from);
        packet[1] = packet[1] & 0xf0 | epoch;
        packet
    }

    #[test]
    fn next_epochs_keys_are_made_once_however_many_claim_that_it_has_begun() {
        let (mut from, mut to) = (keys(15, End::Caller), keys(15, End::Relay));
        let (packet, other) = (forged(&mut from, 0), forged(&mut from, 1));
        assert!(!to.is_doubtful(&DatagramHeader::parse(&other).unwrap()));
        assert_eq!(to.open(&mut other.clone()), Err(DatagramError::WrongEpoch));
        // No other epoch's keys are made at all.
        assert!(to.aside.next.is_none());
        assert!(to.is_doubtful(&DatagramHeader::parse(&packet).unwrap()));
        assert_eq!(to.open(&mut packet.clone()), Err(DatagramError::Forged));
        to.aside.next.as_mut().unwrap().set_sealed(7);
        assert!(!to.is_doubtful(&DatagramHeader::parse(&packet).unwrap()));
        assert_eq!(to.open(&mut packet.clone()), Err(DatagramError::Forged));
        // The same ones: they still have what was set.
        assert_eq!(to.aside.next.as_ref().unwrap().sealed(), 7);
        // They are the ones that the epoch then begins with, and a channel that rests gives them back.
        from.current_mut().set_sealed(EpochKeys::EPOCH_AFTER);
        to.open(&mut sealed(&mut from)).unwrap();
        assert_eq!(to.current.sealed(), 7);
        assert_eq!((to.epoch(), to.aside.next.is_none()), (16, true));
        assert_eq!(to.open(&mut forged(&mut from, 1)), Err(DatagramError::Forged));
        to.release_context();
        assert!(to.aside.next.is_none());
    }

    #[test]
    fn next_epoch_is_no_longer_doubted_once_half_of_this_one_has_come() {
        let (mut from, mut to) = (keys(0, End::Caller), keys(0, End::Relay));
        for (count, doubtful) in [(EpochKeys::EPOCH_AFTER / 2 - 2, true), (EpochKeys::EPOCH_AFTER / 2 - 1, false)] {
            from.current_mut().set_sealed(count);
            to.open(&mut sealed(&mut from)).unwrap();
            let packet = forged(&mut from, 1);
            assert_eq!(to.is_doubtful(&DatagramHeader::parse(&packet).unwrap()), doubtful, "{count}");
        }
    }

    #[test]
    fn last_epoch_is_the_end_and_not_the_first_again() {
        let mut from = keys(u32::MAX, End::Caller);
        from.current_mut().set_sealed(EpochKeys::EPOCH_AFTER);
        let header = DatagramHeader { channel: CHANNEL, ..DatagramHeader::default() };
        assert_eq!(from.seal_into(header, b"x", b"", &mut [0; 64]), Err(DatagramError::Exhausted));
    }

    #[test]
    fn only_a_newer_datagram_is_the_newest() {
        let (mut from, mut to) = (keys(0, End::Caller), keys(0, End::Relay));
        let mut packets = [sealed(&mut from), sealed(&mut from), sealed(&mut from)];
        let mut newest = |n: usize| {
            to.open(&mut packets[n]).unwrap();
            to.newest()
        };
        assert_eq!([newest(1), newest(0), newest(2)], [true, false, true]);
    }
}
