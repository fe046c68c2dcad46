//! The function's end of its way out: an interface whose packets the runner reads and writes.
//!
//! Made in the sandbox's own network namespace, where it is the only way; its addresses are none that anybody else has. It goes with the
//! namespace, so there is nothing to clear away.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};

use crate::egress::{DEVICE, INSIDE, INSIDE_6, MTU};
use crate::sys;
use crate::wire::{Failure, Step};

const NAME: &std::ffi::CStr = c"out0";
/// Addresses of an interface that are its own and nobody else's.
const WHOLE: (u8, u8) = (32, 128);
/// `IFA_F_NODAD`: nobody else is there to have the address.
const NO_DETECTION: u8 = 0x02;
/// Attributes, by the names the kernel has for them.
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_OIF: u16 = 4;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RT_SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;

/// Makes the interface, with every address beyond it. `six`: the sixth version of the protocol as well.
pub fn make(six: bool) -> Result<OwnedFd, Failure> {
    let step = |what: &'static str| move || format!("{what} the interface for the way out");
    let tunnel: OwnedFd = File::options()
        .read(true)
        .write(true)
        .open(DEVICE)
        .step(|| format!("open {DEVICE} for the way out"))?
        .into();
    sys::make_tunnel(tunnel.as_fd(), NAME).step(step("make"))?;
    let link = Link::new().step(step("configure"))?;
    link.up().step(step("set up"))?;
    link.address(IpAddr::V4(INSIDE)).step(step("give an address to"))?;
    link.default_route(libc::AF_INET as u8).step(step("lead all routes to"))?;
    if six {
        link.address(IpAddr::V6(INSIDE_6)).step(step("give an address to"))?;
        link.default_route(libc::AF_INET6 as u8).step(step("lead all routes to"))?;
    }
    Ok(tunnel)
}

/// A conversation with the kernel about one interface.
struct Link {
    socket: OwnedFd,
    index: u32,
}

impl Link {
    fn new() -> std::io::Result<Self> {
        // The family's first protocol, which is about interfaces and routes.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        let index = rustix::net::netdevice::name_to_index(&socket, &NAME.to_string_lossy())?;
        Ok(Self { socket, index })
    }

    fn up(&self) -> std::io::Result<()> {
        let up = (libc::IFF_UP as u32).to_ne_bytes();
        let mut body = vec![0; 4];
        body.extend(self.index.to_ne_bytes());
        body.extend(up);
        body.extend(up);
        attribute(&mut body, IFLA_MTU, &(MTU as u32).to_ne_bytes());
        self.ask(libc::RTM_NEWLINK, 0, &body)
    }

    fn address(&self, address: IpAddr) -> std::io::Result<()> {
        let (family, prefix, bytes) = match address {
            IpAddr::V4(address) => (libc::AF_INET, WHOLE.0, Ipv4Addr::octets(&address).to_vec()),
            IpAddr::V6(address) => (libc::AF_INET6, WHOLE.1, Ipv6Addr::octets(&address).to_vec()),
        };
        let mut body = vec![family as u8, prefix, NO_DETECTION, 0];
        body.extend(self.index.to_ne_bytes());
        attribute(&mut body, IFA_LOCAL, &bytes);
        attribute(&mut body, IFA_ADDRESS, &bytes);
        self.ask(libc::RTM_NEWADDR, libc::NLM_F_CREATE, &body)
    }

    fn default_route(&self, family: u8) -> std::io::Result<()> {
        let mut body = vec![family, 0, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_LINK, RTN_UNICAST];
        body.extend([0; 4]);
        attribute(&mut body, RTA_OIF, &self.index.to_ne_bytes());
        self.ask(libc::RTM_NEWROUTE, libc::NLM_F_CREATE, &body)
    }

    /// Sends one request, and hears whether it was done.
    fn ask(&self, kind: u16, flags: libc::c_int, body: &[u8]) -> std::io::Result<()> {
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags) as u16;
        let mut message = Vec::with_capacity(16 + body.len());
        message.extend((16 + body.len() as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend([0; 8]);
        message.extend(body);
        sendto(&self.socket, &message, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        let mut answer = [0; 4096];
        let (length, _) = recv(&self.socket, &mut answer[..], RecvFlags::empty())?;
        // A header of 16 bytes, then the error, negative.
        match answer.get(..length).and_then(|answer| answer.get(16..20)).and_then(|code| code.try_into().ok())
        {
            Some(code) => match i32::from_ne_bytes(code) {
                0 => Ok(()),
                code => Err(std::io::Error::from_raw_os_error(-code)),
            },
            None => Err(std::io::ErrorKind::InvalidData.into()),
        }
    }
}

/// Appends an attribute, padded to four bytes as its followers expect.
fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend((4 + value.len() as u16).to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}
