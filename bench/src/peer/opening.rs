//! How a stream begins: its first byte says what it wants, and a TLS record before it is passed over. So a stream can be led
//! by the server name of a ClientHello, which belongs to the host as much as what follows.

use isthmus_ring::Piece;

use crate::load::client_hello::{HANDSHAKE, HEADER};

/// How far a stream is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Opening {
    /// Bytes of a record's header that were there.
    header: usize,
    /// Bytes of the record that are to come.
    left: usize,
}

impl Opening {
    /// The wish, if it is there. What precedes it is taken from the pieces, and so is the wish.
    pub(super) fn take_from(&mut self, pieces: &mut [Piece]) -> Option<u8> {
        pieces.iter_mut().find_map(|piece| {
            let (count, wish) = self.read(piece);
            piece.advance(count);
            wish
        })
    }

    /// How many of these bytes are the opening's, and the wish.
    fn read(&mut self, bytes: &[u8]) -> (usize, Option<u8>) {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            match self.header {
                0 if byte != HANDSHAKE => return (at + 1, Some(byte)),
                // Its last two bytes are the length; what is before them does not fit.
                0..HEADER => {
                    self.left = (self.left << 8 | usize::from(byte)) & 0xffff;
                    self.header += 1;
                    at += 1;
                }
                _ if self.left > 0 => {
                    let some = self.left.min(bytes.len() - at);
                    self.left -= some;
                    at += some;
                }
                _ => return (at + 1, Some(byte)),
            }
        }
        (at, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(parts: &[&[u8]]) -> Vec<Piece> {
        let piece = |part: &&[u8]| {
            let mut piece = Piece::with_capacity(0, part.len());
            piece.append(part.len()).copy_from_slice(part);
            piece
        };
        parts.iter().map(piece).collect()
    }

    #[test]
    fn wish_is_the_first_byte_or_the_one_after_a_record() {
        let record = [&[HANDSHAKE, 3, 1, 1, 4], [9; 260].as_slice()].concat();
        for before in [[].as_slice(), &record] {
            let stream = [before, b"Urest"].concat();
            for cut in 0..stream.len() {
                let mut pieces = pieces(&[&stream[..cut], &stream[cut..]]);
                assert_eq!(Opening::default().take_from(&mut pieces), Some(b'U'), "cut at {cut}");
                assert_eq!(pieces.iter().flat_map(|piece| piece.to_vec()).collect::<Vec<_>>(), b"rest", "cut at {cut}");
            }
        }
    }

    #[test]
    fn record_without_a_wish_waits_for_it() {
        let mut opening = Opening::default();
        assert_eq!(opening.take_from(&mut pieces(&[&[HANDSHAKE, 3, 1, 0], &[2, 7]])), None);
        assert_eq!(opening.take_from(&mut pieces(&[&[7]])), None);
        assert_eq!(opening.take_from(&mut pieces(&[])), None);
        assert_eq!(opening.take_from(&mut pieces(&[b"D"])), Some(b'D'));
    }
}
