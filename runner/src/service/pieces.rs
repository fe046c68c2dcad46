//! A body on its way through: pieces that are passed on as they came, uncopied, as far as they are worth it.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Shorter pieces are joined: a window of single bytes must not become a quarter of a million entries and frames.
const WORTH: usize = 4096;

/// Pieces in their order.
#[derive(Default)]
pub struct Pieces {
    queue: VecDeque<Bytes>,
    /// Short ones, behind the queue.
    tail: BytesMut,
    len: usize,
}

impl Pieces {
    /// Bytes of all pieces.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of the first piece.
    pub fn front(&self) -> usize {
        self.queue.front().map_or(self.tail.len(), Bytes::len)
    }

    pub fn push(&mut self, piece: Bytes) {
        self.len += piece.len();
        if piece.len() < WORTH {
            self.tail.extend_from_slice(&piece);
            return;
        }
        if !self.tail.is_empty() {
            self.queue.push_back(self.tail.split().freeze());
        }
        self.queue.push_back(piece);
    }

    /// At most `most` bytes from the front: of one piece, so that nothing is copied. Nothing if there is nothing.
    pub fn take(&mut self, most: usize) -> Bytes {
        let mut front = match self.queue.pop_front() {
            Some(front) => front,
            None => self.tail.split().freeze(),
        };
        let taken = front.split_to(front.len().min(most));
        if !front.is_empty() {
            self.queue.push_front(front);
        }
        self.len -= taken.len();
        taken
    }

    /// Everything in one piece.
    pub fn whole(&mut self) -> Bytes {
        let len = std::mem::take(&mut self.len);
        if self.queue.is_empty() {
            return self.tail.split().freeze();
        }
        if self.queue.len() == 1 && self.tail.is_empty() {
            return self.queue.pop_front().unwrap_or_default();
        }
        let mut all = BytesMut::with_capacity(len);
        self.queue.drain(..).for_each(|piece| all.extend_from_slice(&piece));
        all.extend_from_slice(&self.tail.split());
        all.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out() {
        let sizes = [1, 2, 5000, 3, 4096, 70_000, 4095, 1, 0];
        for most in [1000, 65_536, usize::MAX] {
            let (mut pieces, mut all) = (Pieces::default(), Vec::new());
            for (n, size) in sizes.into_iter().enumerate() {
                let piece = vec![n as u8; size];
                all.extend_from_slice(&piece);
                pieces.push(piece.into());
                assert_eq!(pieces.len(), all.len());
            }
            let mut out = pieces.take(most).to_vec();
            while !pieces.is_empty() {
                let piece = pieces.take(most);
                assert!(!piece.is_empty() && piece.len() <= most);
                out.extend_from_slice(&piece);
            }
            assert_eq!(out, all);
            assert!(pieces.take(most).is_empty());
        }
        let mut pieces = Pieces::default();
        assert!(pieces.whole().is_empty());
        pieces.push(Bytes::from_static(b"ab"));
        pieces.push(vec![b'c'; 5000].into());
        pieces.push(Bytes::from_static(b"d"));
        let whole = pieces.whole();
        assert!(whole.len() == 5003 && whole.starts_with(b"abc") && whole.ends_with(b"cd"));
        assert!(pieces.is_empty() && pieces.whole().is_empty());
    }

    #[test]
    fn long_pieces_are_not_copied() {
        let piece = Bytes::from(vec![7; 9000]);
        let mut pieces = Pieces::default();
        pieces.push(piece.clone());
        assert_eq!(pieces.take(100).as_ptr(), piece.as_ptr());
        assert_eq!(pieces.whole().as_ptr(), piece[100..].as_ptr());
    }
}
