//! Interfaces whose packets a program reads and writes.

#![allow(unsafe_code, reason = "an ioctl that no library has")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;

const FILE: &str = "/dev/net/tun";

/// Whether this machine has them.
pub fn is_there() -> bool {
    std::path::Path::new(FILE).exists()
}

/// Makes one, in the network namespace of this thread. It goes when the descriptor is closed.
pub fn make(name: &str) -> io::Result<OwnedFd> {
    let tun = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(FILE)?;
    // SAFETY: all zeroes is a request without a name.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the descriptor is open, and the request lives as long as the call.
    match unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) } {
        0 => Ok(tun.into()),
        _ => Err(io::Error::last_os_error()),
    }
}
