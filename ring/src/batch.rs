//! Batches of pieces for one send.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::{fmt, ptr};

use socket2::SockAddr;

use crate::control::ControlWriter;
use crate::piece::Piece;
use crate::shelf::{Recycle, Shelved};

/// Most pieces in one batch.
pub const BATCH_PIECES_MAX: usize = 64;

/// Bytes for one stream, in order: up to [`BATCH_PIECES_MAX`] pieces. Made by [`crate::Ring::send_batch`].
pub struct SendBatch(pub(crate) Shelved<Gathered>);

impl SendBatch {
    /// Adds a piece at the end.
    ///
    /// # Panics
    /// When the batch [is full](SendBatch::is_full).
    pub fn push(&mut self, piece: Piece) {
        self.0.push(piece);
    }

    /// Number of pieces.
    pub fn len(&self) -> usize {
        self.0.pieces.len()
    }

    /// Whether there is no piece.
    pub fn is_empty(&self) -> bool {
        self.0.pieces.is_empty()
    }

    /// Sum of the pieces' lengths in bytes.
    pub fn bytes(&self) -> usize {
        self.0.bytes
    }

    /// Whether no further piece fits.
    pub fn is_full(&self) -> bool {
        self.0.pieces.len() >= BATCH_PIECES_MAX
    }

    /// Takes the first `n` bytes away, as sent; pieces that are used up are freed. `n` beyond the end empties the batch.
    pub fn advance(&mut self, n: usize) {
        self.0.advance(n);
    }

    /// Takes out all pieces, in order.
    pub fn drain(&mut self) -> impl DoubleEndedIterator<Item = Piece> + '_ {
        self.0.bytes = 0;
        self.0.pieces.drain(..)
    }
}

impl fmt::Debug for SendBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SendBatch({} pieces, {} bytes)", self.len(), self.bytes())
    }
}

/// Datagrams for one destination: up to [`BATCH_PIECES_MAX`] pieces, gathered into one payload. Made by
/// [`crate::Ring::datagram_batch`].
///
/// Without `segment` the payload is one datagram. With it the kernel cuts the payload every `segment` bytes
/// (`UDP_SEGMENT`): at most 128 segments and 65,507 bytes; only the last may be shorter, so every piece but the last has to
/// be a multiple of `segment` for pieces to be datagrams.
pub struct DatagramBatch(pub(crate) Shelved<Letters>);

impl DatagramBatch {
    /// Destination; `None` on a connected socket.
    pub fn set_to(&mut self, to: Option<SocketAddr>) {
        self.0.to = to;
    }

    /// Destination, as set.
    pub fn to(&self) -> Option<SocketAddr> {
        self.0.to
    }

    /// Size in bytes of each datagram but the last.
    pub fn set_segment(&mut self, segment: Option<u16>) {
        self.0.segment = segment;
    }

    /// Segment size, as set.
    pub fn segment(&self) -> Option<u16> {
        self.0.segment
    }

    /// Source address; `None` lets the kernel choose.
    pub fn set_from(&mut self, from: Option<IpAddr>) {
        self.0.from = from;
    }

    /// Adds a piece at the end.
    ///
    /// # Panics
    /// When the batch [is full](DatagramBatch::is_full).
    pub fn push(&mut self, piece: Piece) {
        self.0.gathered.push(piece);
    }

    /// Number of pieces.
    pub fn len(&self) -> usize {
        self.0.gathered.pieces.len()
    }

    /// Whether there is no piece.
    pub fn is_empty(&self) -> bool {
        self.0.gathered.pieces.is_empty()
    }

    /// Sum of the pieces' lengths in bytes.
    pub fn bytes(&self) -> usize {
        self.0.gathered.bytes
    }

    /// Whether no further piece fits.
    pub fn is_full(&self) -> bool {
        self.len() >= BATCH_PIECES_MAX
    }

    /// Takes out all pieces, in order.
    pub fn drain(&mut self) -> impl DoubleEndedIterator<Item = Piece> + '_ {
        self.0.gathered.bytes = 0;
        self.0.gathered.pieces.drain(..)
    }
}

impl fmt::Debug for DatagramBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (to, segment) = (self.to(), self.segment());
        write!(f, "DatagramBatch({} pieces, {} bytes, to {to:?}, segment {segment:?})", self.len(), self.bytes())
    }
}

/// Pieces and the kernel's description of them.
pub(crate) struct Gathered {
    pieces: VecDeque<Piece>,
    bytes: usize,
    vectors: Vec<libc::iovec>,
    message: libc::msghdr,
}

/// What the kernel is to send: addresses into a batch, good while the batch stays where it is and is not touched.
pub(crate) enum Prepared {
    One(*const u8, u32),
    Many(*const libc::msghdr),
}

impl Gathered {
    fn push(&mut self, piece: Piece) {
        assert!(self.pieces.len() < BATCH_PIECES_MAX, "a batch takes {BATCH_PIECES_MAX} pieces");
        self.bytes += piece.len();
        self.pieces.push_back(piece);
    }

    fn advance(&mut self, n: usize) {
        let mut left = n.min(self.bytes);
        self.bytes -= left;
        while let Some(piece) = self.pieces.front_mut() {
            if left < piece.len() {
                piece.advance(left);
                break;
            }
            left -= piece.len();
            self.pieces.pop_front();
        }
    }

    /// Describes the pieces. The pointers stay good until the next call on `self` or its end.
    pub(crate) fn prepare(&mut self) -> Prepared {
        if let [piece] = self.pieces.make_contiguous() {
            // A piece is less than 4 GiB by construction.
            return Prepared::One(piece.as_ptr(), piece.len() as u32);
        }
        self.fill_vectors();
        Prepared::Many(&raw const self.message)
    }

    fn fill_vectors(&mut self) {
        self.vectors.clear();
        for piece in &mut self.pieces {
            self.vectors.push(libc::iovec { iov_base: piece.as_mut_ptr().cast(), iov_len: piece.len() });
        }
        self.message.msg_iov = self.vectors.as_mut_ptr();
        self.message.msg_iovlen = self.vectors.len() as _;
    }
}

impl Default for Gathered {
    fn default() -> Self {
        Self {
            pieces: VecDeque::with_capacity(BATCH_PIECES_MAX),
            bytes: 0,
            vectors: Vec::with_capacity(BATCH_PIECES_MAX),
            message: empty_message(),
        }
    }
}

impl Recycle for Gathered {
    fn clear(&mut self) {
        self.pieces.clear();
        self.bytes = 0;
    }
}

/// A message header without name, data or control.
pub(crate) fn empty_message() -> libc::msghdr {
    // SAFETY: a `msghdr` is integers and pointers, for which zeros are valid.
    unsafe { std::mem::zeroed() }
}

/// Pieces, their destination and control messages.
#[derive(Default)]
pub(crate) struct Letters {
    gathered: Gathered,
    to: Option<SocketAddr>,
    from: Option<IpAddr>,
    segment: Option<u16>,
    name: Option<SockAddr>,
    control: ControlWriter,
}

impl Letters {
    /// Describes the datagrams. The pointer stays good until the next call on `self` or its end.
    pub(crate) fn prepare(&mut self) -> *const libc::msghdr {
        self.gathered.fill_vectors();
        self.control.clear();
        // A segment that is not shorter than the payload asks for nothing, and 0 is refused by the kernel.
        if let Some(segment) = self.segment.filter(|&s| s > 0 && usize::from(s) < self.gathered.bytes) {
            self.control.segment(segment);
        }
        if let Some(from) = self.from {
            self.control.source(from);
        }
        self.name = self.to.map(SockAddr::from);
        let message = &mut self.gathered.message;
        (message.msg_name, message.msg_namelen) = match &self.name {
            Some(name) => (name.as_ptr().cast_mut().cast(), name.len()),
            None => (ptr::null_mut(), 0),
        };
        let control = self.control.bytes();
        (message.msg_control, message.msg_controllen) = match control.len() {
            0 => (ptr::null_mut(), 0),
            len => (control.as_mut_ptr().cast(), len as _),
        };
        &raw const *message
    }
}

impl Recycle for Letters {
    fn clear(&mut self) {
        self.gathered.clear();
        (self.to, self.from, self.segment) = (None, None, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shelf::Shelf;

    #[test]
    fn advance_stops_at_any_byte_and_frees_what_is_used_up() {
        for n in 0..=9 {
            let mut batch = SendBatch(Shelf::new().take());
            for text in ["ab", "", "cde", "f"] {
                batch.push(Piece::copy_from(text.as_bytes(), 0, 0));
            }
            assert_eq!((batch.len(), batch.bytes()), (4, 6));
            batch.advance(n);
            assert_eq!(batch.bytes(), 6usize.saturating_sub(n));
            assert_eq!(batch.drain().flat_map(|p| p.to_vec()).collect::<Vec<_>>(), &b"abcdef"[n.min(6)..], "{n}");
            assert!(batch.is_empty() && batch.bytes() == 0);
        }
    }

    #[test]
    fn a_dropped_batch_is_used_again_and_comes_empty() {
        let shelf = Shelf::<Gathered>::new();
        let mut batch = SendBatch(shelf.take());
        batch.push(Piece::copy_from(b"x", 0, 0));
        let address = &raw const *batch.0;
        drop(batch);
        let again = SendBatch(shelf.take());
        assert_eq!((&raw const *again.0, again.len(), again.bytes()), (address, 0, 0));
    }
}
