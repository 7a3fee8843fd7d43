//! Blocks: the allocations that pieces share.
//!
//! A heap block is one allocation, header and bytes together. A pooled block's bytes are page-aligned and separate from
//! its header, so that a block of 16 KiB takes exactly four pages.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::Cell;
use std::ptr::NonNull;
use std::rc::Rc;

use crate::pool::Pool;

const PAGE_BYTES: usize = 4096;

/// A block's header.
pub(crate) struct Block {
    /// Pieces that refer to the block; 0 while an [`IdleBlock`] owns it.
    pub(crate) refs: Cell<u32>,
    /// Size of the byte area.
    pub(crate) bytes: u32,
    /// Start of the byte area, which was zeroed once at allocation and is initialised ever since.
    pub(crate) data: NonNull<u8>,
    /// The pool to return to: set from hand-out to return only, since a free block that kept its pool alive
    /// would be a cycle.
    pub(crate) home: Cell<Option<Rc<Pool>>>,
    /// Whether `data` is an allocation of its own.
    pub(crate) pooled: bool,
}

impl Block {
    fn combined_layout(bytes: usize) -> (Layout, usize) {
        let area = Layout::array::<u8>(bytes).unwrap_or_else(|_| too_large(bytes));
        let (layout, offset) = Layout::new::<Self>().extend(area).unwrap_or_else(|_| too_large(bytes));
        (layout.pad_to_align(), offset)
    }

    fn area_layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes.max(1), PAGE_BYTES).unwrap_or_else(|_| too_large(bytes))
    }
}

fn too_large(bytes: usize) -> ! {
    panic!("a block of {bytes} bytes is larger than the address space")
}

fn block_bytes(bytes: usize) -> u32 {
    assert!(bytes < u32::MAX as usize, "a block is smaller than 4 GiB");
    bytes as u32
}

/// Sole owner of a block that no piece refers to: on a free list, lent to the kernel, or on its way to a piece.
pub(crate) struct IdleBlock(NonNull<Block>);

impl IdleBlock {
    /// A heap block of `bytes`, zeroed.
    pub(crate) fn heap(bytes: usize) -> Self {
        let size = block_bytes(bytes);
        let (layout, offset) = Block::combined_layout(bytes);
        // SAFETY: the layout's size is not zero, since it has the header in it.
        let base = unsafe { alloc_zeroed(layout) };
        let Some(block) = NonNull::new(base.cast::<Block>()) else { handle_alloc_error(layout) };
        // SAFETY: `offset` lies in the allocation by construction of the layout, and `base` is not null.
        let data = unsafe { NonNull::new_unchecked(base.add(offset)) };
        // SAFETY: the allocation is fresh, large enough and aligned for a header.
        unsafe { block.write(Block { refs: Cell::new(0), bytes: size, data, home: Cell::new(None), pooled: false }) };
        Self(block)
    }

    /// A page-aligned block of `bytes`, zeroed.
    pub(crate) fn pooled(bytes: usize) -> Self {
        let size = block_bytes(bytes);
        let layout = Block::area_layout(bytes);
        // SAFETY: the layout's size is at least one byte.
        let base = unsafe { alloc_zeroed(layout) };
        let Some(data) = NonNull::new(base) else { handle_alloc_error(layout) };
        let header = Box::new(Block { refs: Cell::new(0), bytes: size, data, home: Cell::new(None), pooled: true });
        Self(NonNull::from(Box::leak(header)))
    }

    /// Takes over a block whose last piece is gone.
    ///
    /// # Safety
    /// `block` came from [`IdleBlock::into_shared`], its count is 0 and nothing else refers to it.
    pub(crate) unsafe fn from_shared(block: NonNull<Block>) -> Self {
        Self(block)
    }

    /// Gives the block away with a count of one, to return to `home` at the end.
    pub(crate) fn into_shared(self, home: Option<Rc<Pool>>) -> NonNull<Block> {
        let block = self.0;
        std::mem::forget(self);
        // SAFETY: `self` was the sole owner of a live header.
        let header = unsafe { block.as_ref() };
        header.refs.set(1);
        header.home.set(home);
        block
    }

    /// Start of the byte area; the whole area is initialised and nobody else's while `self` lives.
    pub(crate) fn data(&self) -> NonNull<u8> {
        // SAFETY: `self` owns a live header.
        unsafe { self.0.as_ref().data }
    }

    /// Writes to every page, so that the first use does not stall on page faults.
    pub(crate) fn prefault(&self) {
        // SAFETY: `self` owns a live header.
        let bytes = unsafe { self.0.as_ref().bytes } as usize;
        for offset in (0..bytes).step_by(PAGE_BYTES) {
            // SAFETY: inside the area, which `self` owns alone; volatile so that the write is not seen as redundant.
            unsafe { self.data().add(offset).write_volatile(0) };
        }
    }
}

impl Drop for IdleBlock {
    fn drop(&mut self) {
        // SAFETY: `self` is the sole owner; the layouts are those of the allocation, computed from the same size.
        unsafe {
            let Block { bytes, data, pooled, .. } = *self.0.as_ref();
            if pooled {
                dealloc(data.as_ptr(), Block::area_layout(bytes as usize));
                drop(Box::from_raw(self.0.as_ptr()));
            } else {
                self.0.drop_in_place();
                dealloc(self.0.as_ptr().cast(), Block::combined_layout(bytes as usize).0);
            }
        }
    }
}
