//! A bound on what reading an archive may keep in memory: the reader of archives holds long names and headers there, however long they
//! claim to be.

use std::cell::Cell;
use std::io::{self, Read, Seek, SeekFrom};
use std::rc::Rc;

use crate::error::{Error, through_io};

/// Gives no more than it is allowed to. Whoever reads the archive sets the allowance before each entry: that of headers, and then that
/// of its content.
pub(crate) struct Metered<R> {
    inner: R,
    allowance: Rc<Cell<u64>>,
}

impl<R> Metered<R> {
    pub fn new(inner: R, allowance: Rc<Cell<u64>>) -> Self {
        Self { inner, allowance }
    }
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        match self.allowance.get().checked_sub(n as u64) {
            Some(left) => self.allowance.set(left),
            None => return Err(through_io(Error::image("the headers of a file are larger than 1 MiB"))),
        }
        Ok(n)
    }
}

/// What is passed over costs nothing.
impl<R: Seek> Seek for Metered<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}
