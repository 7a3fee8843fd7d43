//! Pools: blocks of one size, last in first out, so that the warmest memory is used next.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::block::IdleBlock;
use crate::piece::Piece;

/// A pool's sizes. A block is `headroom + payload + tailroom` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// Bytes before received data, for headers to be written.
    pub headroom: usize,
    /// Bytes that the kernel may fill.
    pub payload: usize,
    /// Bytes after received data, for a tag.
    pub tailroom: usize,
    /// Blocks lent to the kernel at once while receives find one. The fewer there are, the warmer each is.
    pub provided_usual: u16,
    /// Most blocks lent to the kernel at once, after receives that found none; a power of two, at most 32,768.
    pub provided_max: u16,
    /// Most blocks in existence.
    pub blocks_max: usize,
    /// Blocks that are allocated and touched at start.
    pub prefault: usize,
}

impl PoolConfig {
    /// The plain TCP side: blocks of exactly 16 KiB; 64 of them are 1 MiB, about one core's second-level cache.
    pub const STREAM: Self = Self {
        headroom: 32,
        payload: 16_320,
        tailroom: 32,
        provided_usual: 64,
        provided_max: 64,
        blocks_max: 4096,
        prefault: 64,
    };
    /// The tunnel side: 512 KiB, and before it room for a partial record, which is at most 5 + 2^14 + 256 = 16,645 bytes
    /// (RFC 8446, 5.2).
    pub const BULK: Self = Self {
        headroom: 16_704,
        payload: 512 * 1024,
        tailroom: 32,
        provided_usual: 4,
        provided_max: 4,
        blocks_max: 256,
        prefault: 4,
    };
    /// The tunnel side while little comes: greetings, maintain packets, requests. Very many links may have that at a time,
    /// and a large block for each would either be too much memory or too few blocks.
    pub const SMALL: Self = Self {
        headroom: 16_704,
        payload: 4096,
        tailroom: 32,
        provided_usual: 256,
        provided_max: 256,
        blocks_max: 4096,
        prefault: 0,
    };
    /// UDP: a whole coalesced train of datagrams (at most 65,535 bytes) with its addresses. A few sockets whose trains are long
    /// need no more blocks than fit a core's cache; a thousand with a datagram each need one each.
    pub const DATAGRAM: Self = Self {
        headroom: 64,
        payload: 66 * 1024,
        tailroom: 64,
        provided_usual: 16,
        provided_max: 256,
        blocks_max: 512,
        prefault: 0,
    };

    /// Bytes of a block.
    pub fn block_bytes(&self) -> usize {
        self.headroom + self.payload + self.tailroom
    }
}

/// Figures of one pool. `live = free + provided + held`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Blocks in existence.
    pub live: usize,
    /// Blocks on the free list.
    pub free: usize,
    /// Blocks lent to the kernel.
    pub provided: usize,
    /// Blocks that pieces refer to.
    pub held: usize,
    /// Most blocks ever held at once.
    pub held_max: usize,
    /// Blocks that the kernel has once the ring is entered.
    pub lent: usize,
    /// Receives that ended because the kernel found no block (`ENOBUFS`).
    pub exhausted: u64,
}

/// So often within [`SHORT`] must the ring be entered after receives that found no block before more are lent: where many sockets
/// receive, each turn, and not a few times in a burst, whose memory would stay in use.
const STARVED: u32 = 32;

const SHORT: Duration = Duration::from_millis(100);

/// For so long must no receive have found the ring without a block before fewer are lent again, and again before still fewer are.
const CALM: Duration = Duration::from_secs(2);

pub(crate) struct Pool {
    config: PoolConfig,
    free: RefCell<Vec<IdleBlock>>,
    live: Cell<usize>,
    held: Cell<usize>,
    held_max: Cell<usize>,
    exhausted: Cell<u64>,
    /// What is lent now, unless many are held: between the usual number and the most.
    lending: Cell<usize>,
    /// Receives that had found no block when the ring was entered last.
    exhausted_before: Cell<u64>,
    /// How often it was entered after such receives, and since when that is counted.
    starved: Cell<(u32, Option<Instant>)>,
    /// Since when it was not, while more than usual is lent.
    calm_since: Cell<Option<Instant>>,
}

impl Pool {
    pub(crate) fn new(config: PoolConfig) -> Rc<Self> {
        let pool = Self {
            config,
            free: RefCell::default(),
            live: Cell::new(0),
            held: Cell::new(0),
            held_max: Cell::new(0),
            exhausted: Cell::new(0),
            lending: Cell::new(usize::from(config.provided_usual.min(config.provided_max))),
            exhausted_before: Cell::new(0),
            starved: Cell::new((0, None)),
            calm_since: Cell::new(None),
        };
        let warm = config.prefault.min(config.blocks_max).min(pool.free_max());
        for _ in 0..warm {
            let block = IdleBlock::pooled(config.block_bytes());
            block.prefault();
            pool.free.borrow_mut().push(block);
        }
        pool.live.set(warm);
        Rc::new(pool)
    }

    pub(crate) fn config(&self) -> &PoolConfig {
        &self.config
    }

    /// The warmest free block, or a new one; `None` at `blocks_max`.
    pub(crate) fn take(&self) -> Option<IdleBlock> {
        if let Some(block) = self.free.borrow_mut().pop() {
            return Some(block);
        }
        if self.live.get() >= self.config.blocks_max {
            return None;
        }
        self.live.set(self.live.get() + 1);
        Some(IdleBlock::pooled(self.config.block_bytes()))
    }

    /// Makes a piece of `block`, with `len` bytes in view after the headroom.
    pub(crate) fn hand_out(self: &Rc<Self>, block: IdleBlock, len: usize) -> Piece {
        debug_assert!(len <= self.config.payload);
        self.held.set(self.held.get() + 1);
        self.held_max.set(self.held_max.get().max(self.held.get()));
        let start = self.config.headroom;
        let end = start + len.min(self.config.payload);
        // SAFETY: the block is this pool's, hence of `block_bytes()`, which `end` cannot exceed.
        unsafe { Piece::of_block(block.into_shared(Some(self.clone())), start as u32, end as u32) }
    }

    /// Takes back a block that was handed out.
    pub(crate) fn put(&self, block: IdleBlock) {
        self.held.set(self.held.get() - 1);
        self.put_unused(block);
    }

    /// Takes back a block that was only lent to the kernel.
    pub(crate) fn put_unused(&self, block: IdleBlock) {
        let mut free = self.free.borrow_mut();
        if free.len() < self.free_max() {
            free.push(block);
        } else {
            self.live.set(self.live.get() - 1);
        }
    }

    pub(crate) fn count_exhausted(&self) {
        self.exhausted.set(self.exhausted.get() + 1);
    }

    /// Lends more where receives find no block again and again, and fewer after a long time without; to be called each time
    /// the ring is entered. The clock is asked after such receives, and while more than usual is lent.
    pub(crate) fn adapt(&self, now: impl FnOnce() -> Instant) {
        let usual = usize::from(self.config.provided_usual);
        if self.exhausted.get() != self.exhausted_before.replace(self.exhausted.get()) {
            self.on_exhausted(now());
        } else if self.lending.get() > usual {
            let now = now();
            let since = self.calm_since.get().unwrap_or(now);
            self.calm_since.set(Some(since));
            if now.saturating_duration_since(since) >= CALM {
                self.calm_since.set(Some(now));
                self.lending.set((self.lending.get() / 2).max(usual));
                self.trim();
            }
        }
    }

    fn on_exhausted(&self, now: Instant) {
        self.calm_since.set(None);
        let (times, since) = match self.starved.get() {
            (times, Some(since)) if now.saturating_duration_since(since) <= SHORT => (times + 1, since),
            _ => (1, now),
        };
        if times < STARVED {
            self.starved.set((times, Some(since)));
            return;
        }
        self.starved.set((0, None));
        self.lending.set((self.lending.get() * 2).min(usize::from(self.config.provided_max)));
    }

    /// Gives free blocks back to the allocator, down to [`Pool::free_max`].
    fn trim(&self) {
        let mut free = self.free.borrow_mut();
        let over = free.len().saturating_sub(self.free_max());
        // The coldest.
        free.drain(..over);
        self.live.set(self.live.get() - over);
    }

    /// How many blocks the kernel has once the ring is entered: with those in use as many as are to be lent now, but at least
    /// a quarter of that, since many slow receivers that hold blocks must not starve the rest.
    pub(crate) fn lent(&self) -> usize {
        let lending = self.lending.get();
        lending.saturating_sub(self.held.get()).max(lending / 4).max(1)
    }

    pub(crate) fn stats(&self) -> PoolStats {
        let (live, free, held) = (self.live.get(), self.free.borrow().len(), self.held.get());
        PoolStats {
            live,
            free,
            held,
            provided: live - free - held,
            held_max: self.held_max.get(),
            lent: self.lent(),
            exhausted: self.exhausted.get(),
        }
    }

    /// Above this, free blocks go back to the allocator.
    fn free_max(&self) -> usize {
        2 * self.lending.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: PoolConfig = PoolConfig {
        headroom: 8,
        payload: 48,
        tailroom: 8,
        provided_usual: 2,
        provided_max: 2,
        blocks_max: 6,
        prefault: 1,
    };

    #[test]
    fn blocks_return_last_in_first_out_and_the_bound_holds() {
        let pool = Pool::new(SMALL);
        assert_eq!(pool.stats(), PoolStats { live: 1, free: 1, lent: 2, ..PoolStats::default() });
        let mut pieces: Vec<_> = std::iter::from_fn(|| pool.take()).map(|b| pool.hand_out(b, 3)).collect();
        assert_eq!(pieces.len(), 6);
        assert_eq!((pieces[0].headroom(), pieces[0].len(), pieces[0].tailroom()), (8, 3, 53));
        let last = pieces.pop().map(|p| p.as_ptr());
        let again = pool.take().map(|b| pool.hand_out(b, 3));
        assert_eq!(again.as_ref().map(|p| p.as_ptr()), last);
        drop((pieces, again));
        // Four free blocks are kept (twice what is lent), two went back to the allocator.
        assert_eq!(pool.stats(), PoolStats { live: 4, free: 4, held_max: 6, lent: 2, ..PoolStats::default() });
    }

    #[test]
    fn more_are_lent_after_receives_that_found_none_and_fewer_after_long_calm() {
        let pool = Pool::new(PoolConfig { provided_max: 8, blocks_max: 64, ..SMALL });
        let now = Cell::new(Instant::now());
        let lent = |exhausted: u64, later: Duration| {
            pool.exhausted.set(pool.exhausted.get() + exhausted);
            now.set(now.get() + later);
            pool.adapt(|| now.get());
            pool.stats().lent
        };
        const SOON: Duration = Duration::from_millis(1);
        let starve = || (0..STARVED).fold(0, |_, _| lent(1, SOON));
        // However many found none before the ring is entered, it is one reason for more.
        assert_eq!([lent(0, CALM), lent(9, SOON), starve(), starve(), starve()], [2, 2, 4, 8, 8]);
        // What is held is not lent as well, but for a quarter.
        let hold = |count| (0..count).map_while(|_| pool.take()).map(|b| pool.hand_out(b, 1)).collect::<Vec<_>>();
        let held = [5, 20].map(|count| (hold(count), lent(0, Duration::ZERO)));
        assert_eq!(held.each_ref().map(|(_, lent)| *lent), [3, 2]);
        drop(held);
        assert_eq!((pool.stats().free, lent(0, CALM - SOON)), (16, 8));
        // Free blocks beyond twice as many go with them.
        assert_eq!((lent(0, SOON), pool.stats().free, pool.stats().live), (4, 8, 8));
        // One that finds none begins the time anew; each step takes as long, however late the ring is entered.
        assert_eq!([lent(0, CALM - SOON), lent(1, SOON), lent(0, CALM), lent(0, CALM - SOON)], [4; 4]);
        assert_eq!([lent(0, 5 * CALM), lent(0, CALM)], [2, 2]);
        // A few now and then are none.
        assert!((0..10 * STARVED).all(|_| lent(1, SHORT / (STARVED - 2)) == 2));
    }

    #[test]
    fn pieces_outlive_their_pool() {
        let pool = Pool::new(SMALL);
        let mut piece = pool.take().map(|b| pool.hand_out(b, 4)).into_iter().collect::<Vec<_>>();
        piece[0].copy_from_slice(b"kept");
        drop(pool);
        let front = piece[0].split_to(2);
        assert_eq!((&*front, &*piece[0]), (&b"ke"[..], &b"pt"[..]));
    }
}
