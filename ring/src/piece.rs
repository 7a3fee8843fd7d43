//! Pieces: exclusive ranges of a shared block.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::slice;

use crate::block::{Block, IdleBlock};

/// A buffer handle of one thread: it owns the extent `[lo, hi)` of a block alone and shows `[start, end)` of it.
///
/// ```text
///  block: | ...another piece... |lo   headroom   |start   view   |end   tailroom   |hi ...another piece... |
/// ```
/// The view is what [`Deref`] gives. Splitting makes disjoint extents; the block goes back to its pool, or to the
/// allocator, with its last piece. Bytes outside of the view are initialised but arbitrary.
pub struct Piece {
    block: NonNull<Block>,
    lo: u32,
    start: u32,
    end: u32,
    hi: u32,
}

impl Piece {
    /// A heap block with `bytes` as the view and room on both sides.
    pub fn copy_from(bytes: &[u8], headroom: usize, tailroom: usize) -> Self {
        let mut piece = Self::with_capacity(headroom, bytes.len() + tailroom);
        piece.append(bytes.len()).copy_from_slice(bytes);
        piece
    }

    /// A heap block with an empty view after `headroom` bytes, and `capacity` bytes of tailroom.
    pub fn with_capacity(headroom: usize, capacity: usize) -> Self {
        let bytes = headroom + capacity;
        let block = IdleBlock::heap(bytes).into_shared(None);
        // The block's constructor has checked that `bytes` fits 32 bits.
        Self { block, lo: 0, start: headroom as u32, end: headroom as u32, hi: bytes as u32 }
    }

    /// The first piece of a block: all of it as the extent.
    ///
    /// # Safety
    /// `block` came from [`IdleBlock::into_shared`] just now, and `start <= end <=` its size.
    pub(crate) unsafe fn of_block(block: NonNull<Block>, start: u32, end: u32) -> Self {
        // SAFETY: the caller hands over a live block.
        let hi = unsafe { block.as_ref().bytes };
        debug_assert!(start <= end && end <= hi);
        Self { block, lo: 0, start, end, hi }
    }

    /// Bytes in view.
    #[inline]
    pub fn len(&self) -> usize {
        (self.end - self.start) as usize
    }

    /// Whether the view is empty.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Bytes that the view can grow by to the front.
    #[inline]
    pub fn headroom(&self) -> usize {
        (self.start - self.lo) as usize
    }

    /// Bytes that the view can grow by at the end.
    #[inline]
    pub fn tailroom(&self) -> usize {
        (self.hi - self.end) as usize
    }

    /// Grows the view by `n` bytes to the front and gives those, for a header to be written.
    ///
    /// # Panics
    /// When `n` exceeds [`Piece::headroom`].
    #[inline]
    pub fn prepend(&mut self, n: usize) -> &mut [u8] {
        assert!(n <= self.headroom(), "prepend of {n} bytes into {} of headroom", self.headroom());
        self.start -= n as u32;
        &mut self[..n]
    }

    /// Grows the view by `n` bytes at the end and gives those.
    ///
    /// # Panics
    /// When `n` exceeds [`Piece::tailroom`].
    #[inline]
    pub fn append(&mut self, n: usize) -> &mut [u8] {
        assert!(n <= self.tailroom(), "append of {n} bytes into {} of tailroom", self.tailroom());
        let len = self.len();
        self.end += n as u32;
        &mut self[len..]
    }

    /// Takes `n` bytes from the front of the view; they become headroom.
    ///
    /// # Panics
    /// When `n` exceeds [`Piece::len`].
    #[inline]
    pub fn advance(&mut self, n: usize) {
        assert!(n <= self.len(), "advance by {n} of {} bytes", self.len());
        self.start += n as u32;
    }

    /// Cuts the view to its first `len` bytes; the rest becomes tailroom. Nothing happens when it is shorter already.
    #[inline]
    pub fn truncate(&mut self, len: usize) {
        if len < self.len() {
            self.end = self.start + len as u32;
        }
    }

    /// Splits off the first `n` bytes of the view, with the headroom; `self` keeps the rest, with the tailroom.
    /// Neither has room on the side of the cut.
    ///
    /// # Panics
    /// When `n` exceeds [`Piece::len`].
    #[inline]
    pub fn split_to(&mut self, n: usize) -> Self {
        assert!(n <= self.len(), "split at {n} of {} bytes", self.len());
        // SAFETY: `self` keeps the block alive.
        let refs = unsafe { &self.block.as_ref().refs };
        // A wrapped count would free a block in use. Empty pieces make any count possible, if only in theory.
        refs.set(refs.get().checked_add(1).expect("fewer than 2^32 pieces of one block"));
        let cut = self.start + n as u32;
        let front = Self { block: self.block, lo: self.lo, start: self.start, end: cut, hi: cut };
        (self.lo, self.start) = (cut, cut);
        front
    }

    /// Size in bytes of the whole block that this piece keeps from being reused.
    #[inline]
    pub fn block_bytes(&self) -> usize {
        // SAFETY: `self` keeps the block alive.
        unsafe { self.block.as_ref().bytes as usize }
    }

    /// Whether the block belongs to one of a ring's pools.
    #[inline]
    pub fn is_pooled(&self) -> bool {
        // SAFETY: `self` keeps the block alive.
        unsafe { self.block.as_ref().pooled }
    }

    fn view(&self) -> NonNull<u8> {
        // SAFETY: the block is alive, and `start` lies within it.
        unsafe { self.block.as_ref().data.add(self.start as usize) }
    }
}

impl Deref for Piece {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: the area was zeroed at allocation; [start, end) lies in the extent that only `self` owns (split_to makes
        // disjoint extents, and pieces are neither Clone nor Send), and `&self` forbids writing through `self`.
        unsafe { slice::from_raw_parts(self.view().as_ptr(), self.len()) }
    }
}

impl DerefMut for Piece {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` makes it the only access.
        unsafe { slice::from_raw_parts_mut(self.view().as_ptr(), self.len()) }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        // SAFETY: `self` has kept the block alive until now.
        let header = unsafe { self.block.as_ref() };
        let left = header.refs.get() - 1;
        header.refs.set(left);
        if left == 0 {
            let home = header.home.take();
            // SAFETY: the count is 0, so that no piece refers to the block any more.
            let block = unsafe { IdleBlock::from_shared(self.block) };
            match home {
                Some(pool) => pool.put(block),
                None => drop(block),
            }
        }
    }
}

impl fmt::Debug for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Piece({} < {} bytes > {})", self.headroom(), self.len(), self.tailroom())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_grow_and_shrink_within_their_extent() {
        let mut piece = Piece::copy_from(b"payload", 4, 3);
        piece.prepend(4).copy_from_slice(b"head");
        piece.append(3).copy_from_slice(b"end");
        assert_eq!(&*piece, b"headpayloadend");
        assert_eq!((piece.headroom(), piece.tailroom(), piece.block_bytes()), (0, 0, 14));
        piece.advance(4);
        piece.truncate(7);
        piece.truncate(100);
        assert_eq!(&*piece, b"payload");
        assert_eq!((piece.headroom(), piece.tailroom()), (4, 3));
        assert!(!piece.is_pooled());
    }

    #[test]
    fn split_pieces_are_disjoint_and_outlive_each_other() {
        let mut rest = Piece::copy_from(b"aabbcc", 2, 2);
        let mut first = rest.split_to(2);
        let mut second = rest.split_to(2);
        assert_eq!((first.headroom(), first.tailroom()), (2, 0));
        assert_eq!((second.headroom(), second.tailroom()), (0, 0));
        assert_eq!((rest.headroom(), rest.tailroom()), (0, 2));
        second.copy_from_slice(b"xx");
        first.prepend(2).copy_from_slice(b"--");
        rest.append(2);
        assert_eq!((&*first, &*second, &rest[..2]), (&b"--aa"[..], &b"xx"[..], &b"cc"[..]));
        drop(rest);
        drop(first);
        assert_eq!(&*second, b"xx");
    }

    #[test]
    fn random_splits_keep_every_byte_and_overlap_nowhere() {
        for seed in 1..=50u64 {
            let mut state = seed;
            let mut random = |below: usize| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) as usize % below
            };
            let bytes: Vec<u8> = (0..200).map(|_| random(256) as u8).collect();
            let mut pieces = vec![Piece::copy_from(&bytes, 5, 5)];
            for _ in 0..20 {
                let at = random(pieces.len());
                let cut = random(pieces[at].len() + 1);
                let front = pieces[at].split_to(cut);
                pieces.insert(at, front);
            }
            assert_eq!(pieces.iter().flat_map(|p| p.to_vec()).collect::<Vec<_>>(), bytes, "seed {seed}");
            // What one piece writes, into all of its extent, no other one sees.
            let last = pieces.len() - 1;
            let before: Vec<Vec<u8>> = pieces.iter().map(|p| p.to_vec()).collect();
            for (i, piece) in pieces.iter_mut().enumerate().filter(|(i, _)| i % 2 == 0) {
                let (head, tail) = (piece.headroom(), piece.tailroom());
                assert_eq!((head, tail), (if i == 0 { 5 } else { 0 }, if i == last { 5 } else { 0 }), "seed {seed}");
                piece.prepend(head);
                piece.append(tail);
                piece.fill(0xee);
            }
            for (i, piece) in pieces.iter().enumerate().filter(|(i, _)| i % 2 == 1) {
                assert_eq!(&**piece, &before[i][..], "seed {seed}");
            }
        }
    }

    #[test]
    fn rooms_refuse_one_byte_too_many() {
        let refused = |f: fn(&mut Piece)| {
            let mut piece = Piece::copy_from(b"abc", 2, 1);
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| f(&mut piece))).is_err()
        };
        assert!(
            !refused(|p| {
                p.prepend(2);
            }) && refused(|p| {
                p.prepend(3);
            })
        );
        assert!(
            !refused(|p| {
                p.append(1);
            }) && refused(|p| {
                p.append(2);
            })
        );
        assert!(!refused(|p| p.advance(3)) && refused(|p| p.advance(4)));
        assert!(!refused(|p| drop(p.split_to(3))) && refused(|p| drop(p.split_to(4))));
    }
}
