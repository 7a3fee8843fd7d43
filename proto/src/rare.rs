//! What few links have at a time, and none that is idle: a pointer's size while it is empty.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};

use slab::Slab;

use crate::wire::ControlBuf;

/// Boxed on its first change, and freed by [`Rare::clear`].
pub struct Rare<T>(Option<Box<T>>);

/// What has an empty value that needs no memory.
pub trait Empty: Default + 'static {
    /// It.
    const EMPTY: &'static Self;
}

impl<T: 'static> Empty for Vec<T> {
    const EMPTY: &'static Self = &Self::new();
}

impl Empty for ControlBuf {
    const EMPTY: &'static Self = &Self::new();
}

impl<T: 'static> Empty for VecDeque<T> {
    const EMPTY: &'static Self = &Self::new();
}

impl<T: 'static> Empty for Slab<T> {
    const EMPTY: &'static Self = &Self::new();
}

impl<T> Rare<T> {
    /// Empties it and frees its memory.
    pub fn clear(&mut self) {
        self.0 = None;
    }
}

impl<T> Rare<Vec<T>> {
    /// Takes what is in it, and frees its place.
    pub fn take(&mut self) -> Vec<T> {
        self.0.take().map_or_else(Vec::new, |boxed| *boxed)
    }
}

impl<T> Default for Rare<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Empty> Deref for Rare<T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.0.as_deref().unwrap_or(T::EMPTY)
    }
}

impl<T: Empty> DerefMut for Rare<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.get_or_insert_default()
    }
}

const _: () = assert!(size_of::<Rare<Vec<u8>>>() == size_of::<usize>());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_takes_no_memory_and_changing_does() {
        let mut rare: Rare<Vec<u8>> = Rare::default();
        assert!(rare.is_empty() && rare.iter().next().is_none());
        assert!(rare.0.is_none());
        rare.push(1);
        assert_eq!((rare.len(), rare.0.is_some()), (1, true));
        assert_eq!(rare.take(), [1]);
        rare.push(2);
        rare.clear();
        assert!(rare.0.is_none());
    }
}
