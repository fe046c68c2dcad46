//! Function formats as pure codecs: bytes in, events out, no I/O.
