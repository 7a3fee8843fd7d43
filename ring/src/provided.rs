//! Provided rings: blocks lent to the kernel, from which it picks where to receive.
//!
//! A buffer's identifier is its position in the ring. A bundle takes consecutive positions, so that its first identifier
//! (all that a completion names) tells the rest, whatever the order of the completions.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Instant;

use io_uring::Submitter;
use io_uring::types::BufRingEntry;

use crate::block::IdleBlock;
use crate::piece::Piece;
use crate::pool::Pool;

const PAGE_BYTES: usize = 4096;

pub(crate) struct ProvidedRing {
    /// Shared with the kernel: `slots.len()` entries.
    entries: NonNull<BufRingEntry>,
    layout: Layout,
    /// Owners of what is lent, by position.
    slots: Box<[Option<IdleBlock>]>,
    /// Position after the last lent block, counted without wrapping at the ring's size.
    tail: u16,
    provided: usize,
    group: u16,
    pool: Rc<Pool>,
}

impl ProvidedRing {
    /// An empty ring for `pool`, as buffer group `group`, not yet known to the kernel.
    pub(crate) fn new(pool: Rc<Pool>, group: u16) -> Self {
        let count = usize::from(pool.config().provided_max);
        let bytes = count * size_of::<BufRingEntry>();
        // `count` is at most 2^15, so that neither the product nor the layout can overflow.
        let Ok(layout) = Layout::from_size_align(bytes.next_multiple_of(PAGE_BYTES), PAGE_BYTES) else {
            unreachable!("at most 32,768 entries of 16 bytes")
        };
        // SAFETY: a multiple of the page size that is not zero, since `provided_max` was checked to be a power of two.
        let base = unsafe { alloc_zeroed(layout) };
        let Some(entries) = NonNull::new(base.cast()) else { handle_alloc_error(layout) };
        let slots = (0..count).map(|_| None).collect();
        Self { entries, layout, slots, tail: 0, provided: 0, group, pool }
    }

    /// Makes the ring known to the kernel, which reads it until [`ProvidedRing::unregister`].
    ///
    /// # Safety
    /// `self` must not be dropped before it is unregistered or `submitter`'s ring is gone.
    pub(crate) unsafe fn register(&self, submitter: &Submitter<'_>) -> io::Result<()> {
        let address = self.entries.as_ptr() as u64;
        // SAFETY: page-aligned memory of `slots.len()` entries that lives as the caller promises.
        unsafe { submitter.register_buf_ring_with_flags(address, self.slots.len() as u16, self.group, 0) }
    }

    pub(crate) fn unregister(&self, submitter: &Submitter<'_>) -> io::Result<()> {
        submitter.unregister_buf_ring(self.group)
    }

    pub(crate) fn group(&self) -> u16 {
        self.group
    }

    pub(crate) fn pool(&self) -> &Rc<Pool> {
        &self.pool
    }

    /// Lends blocks to the kernel until it has as many as [`Pool::lent`] says.
    pub(crate) fn top_up(&mut self) {
        let max = self.slots.len();
        self.pool.adapt(Instant::now);
        let target = self.pool.lent();
        if self.provided >= target {
            return;
        }
        while self.provided < target {
            let position = usize::from(self.tail) & (max - 1);
            // The tail has come round to a block whose completion has not been taken yet.
            if self.slots[position].is_some() {
                break;
            }
            let Some(block) = self.pool.take() else { break };
            self.write_entry(position, &block);
            self.slots[position] = Some(block);
            self.tail = self.tail.wrapping_add(1);
            self.provided += 1;
        }
        // SAFETY: the first entry was zeroed at allocation, and the tail's field is a 2-byte aligned u16 that, while
        // shared with the kernel, is only accessed atomically.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.entries.as_ptr()).cast_mut()) };
        // Release: the kernel must see the entries before the tail that covers them.
        tail.store(self.tail, Ordering::Release);
    }

    /// The one block at position `id` with `bytes` received.
    pub(crate) fn take_one(&mut self, id: u16, bytes: usize) -> Option<Piece> {
        let block = self.take_slot(usize::from(id))?;
        if bytes == 0 {
            self.pool.put_unused(block);
            return None;
        }
        Some(self.pool.hand_out(block, bytes))
    }

    /// The consecutive blocks from position `first` on that hold `bytes` of a bundle, in order.
    pub(crate) fn take_run(&mut self, first: u16, bytes: usize, pieces: &mut Vec<Piece>) {
        let mut left = bytes;
        let mut position = usize::from(first);
        while left > 0 {
            let Some(block) = self.take_slot(position) else { break };
            // Some kernels from 6.10 on shorten an entry when a receive's limit ends within it, even if that receive then has
            // to wait and the entry serves another one, so the entry's own length counts. 6.18.44 was not seen to.
            let filled = left.min(self.entry_len(position));
            pieces.push(self.pool.hand_out(block, filled));
            left -= filled;
            position = (position + 1) & (self.slots.len() - 1);
        }
        debug_assert_eq!(left, 0, "the kernel filled a position that was not lent");
    }

    fn take_slot(&mut self, position: usize) -> Option<IdleBlock> {
        let block = self.slots.get_mut(position)?.take()?;
        self.provided -= 1;
        Some(block)
    }

    fn write_entry(&mut self, position: usize, block: &IdleBlock) {
        let config = self.pool.config();
        // SAFETY: `position` is below the ring's size. The position is vacant, so that the kernel, which reads entries
        // below the tail only, does not look at it; the fields written leave out the tail, which shares the first entry.
        unsafe {
            let entry = &mut *self.entries.as_ptr().add(position);
            entry.set_addr(block.data().as_ptr().add(config.headroom) as u64);
            entry.set_len(config.payload as u32);
            entry.set_bid(position as u16);
        }
    }

    fn entry_len(&self, position: usize) -> usize {
        // SAFETY: the caller took this position's slot, so it is in bounds and consumed: the kernel no longer writes to it.
        unsafe { (*self.entries.as_ptr().add(position)).len() as usize }
    }
}

impl Drop for ProvidedRing {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout; by the contract of `register` the kernel is done with it.
        unsafe { dealloc(self.entries.as_ptr().cast(), self.layout) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::PoolConfig;

    fn ring() -> ProvidedRing {
        let (provided_usual, provided_max) = (4, 4);
        let sizes = PoolConfig {
            headroom: 8,
            payload: 100,
            tailroom: 8,
            provided_usual,
            provided_max,
            blocks_max: 8,
            prefault: 0,
        };
        ProvidedRing::new(Pool::new(sizes), 0)
    }

    fn lengths(pieces: &[Piece]) -> Vec<usize> {
        pieces.iter().map(|p| p.len()).collect()
    }

    #[test]
    fn an_entry_that_the_kernel_shortened_holds_no_more_than_it_says() {
        let mut ring = ring();
        ring.top_up();
        // SAFETY: in bounds; no kernel knows this ring.
        unsafe { (*ring.entries.as_ptr()).set_len(30) };
        let mut pieces = Vec::new();
        ring.take_run(0, 180, &mut pieces);
        assert_eq!(lengths(&pieces), [30, 100, 50]);
    }

    #[test]
    fn runs_wrap_round_the_ring_and_come_in_any_order() {
        let mut ring = ring();
        ring.top_up();
        let (mut late, mut early) = (Vec::new(), Vec::new());
        ring.take_run(2, 150, &mut late);
        ring.take_run(0, 200, &mut early);
        assert_eq!((lengths(&early), lengths(&late)), (vec![100, 100], vec![100, 50]));
        drop((early, late));
        ring.top_up();
        ring.take_run(3, 250, &mut Vec::new());
        // Positions 0 and 1 are lent anew; the tail stops at 2, whose completion is still to be taken.
        ring.top_up();
        assert_eq!(ring.provided, 3);
        assert!(ring.take_one(2, 7).is_some_and(|piece| piece.len() == 7));
        assert!(ring.take_one(2, 7).is_none() && ring.take_one(99, 7).is_none());
    }
}
