//! Recycled boxes: a batch costs no allocation once its predecessor is done.

use std::cell::RefCell;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

/// Most boxes kept for reuse.
const KEPT_MAX: usize = 256;

/// What can be used again after [`Recycle::clear`].
pub(crate) trait Recycle: Default {
    /// Lets go of everything but the memory.
    fn clear(&mut self);
}

/// Where boxes wait for their next use.
pub(crate) struct Shelf<T> {
    boxes: RefCell<Vec<Box<T>>>,
}

impl<T: Recycle> Shelf<T> {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self { boxes: RefCell::default() })
    }

    /// A box from the shelf, or a new one.
    pub(crate) fn take(self: &Rc<Self>) -> Shelved<T> {
        let boxed = self.boxes.borrow_mut().pop().unwrap_or_default();
        Shelved { boxed: ManuallyDrop::new(boxed), shelf: self.clone() }
    }
}

/// A box that returns to its shelf when dropped.
pub(crate) struct Shelved<T: Recycle> {
    boxed: ManuallyDrop<Box<T>>,
    shelf: Rc<Shelf<T>>,
}

impl<T: Recycle> Deref for Shelved<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.boxed
    }
}

impl<T: Recycle> DerefMut for Shelved<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.boxed
    }
}

impl<T: Recycle> Drop for Shelved<T> {
    fn drop(&mut self) {
        // SAFETY: this is the only take, and `self` is not used afterwards.
        let mut boxed = unsafe { ManuallyDrop::take(&mut self.boxed) };
        boxed.clear();
        let mut boxes = self.shelf.boxes.borrow_mut();
        if boxes.len() < KEPT_MAX {
            boxes.push(boxed);
        }
    }
}
