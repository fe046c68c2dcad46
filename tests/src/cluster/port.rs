//! Ports that are a server's, whether it runs or not.

use std::hash::{BuildHasher as _, Hasher as _};
use std::net::{SocketAddr, TcpListener, UdpSocket};

/// Below those that the kernel gives out, so that none is given away while its server is down. The kit of etcd takes from here too,
/// by the same rule.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// A port of 127.0.0.1 that stays the same over restarts.
pub struct Port {
    pub address: SocketAddr,
    /// The same number in UDP: whoever else wants the port finds it taken.
    _claim: UdpSocket,
}

impl Port {
    /// Takes one.
    #[must_use]
    pub fn claim() -> Self {
        let random = std::hash::RandomState::new().build_hasher().finish();
        let first = PORTS.start + (random % u64::from(PORTS.end - PORTS.start)) as u16;
        let found = (first..PORTS.end).chain(PORTS.start..first).find_map(|number| {
            let address = SocketAddr::from(([127, 0, 0, 1], number));
            let claim = UdpSocket::bind(address).ok()?;
            TcpListener::bind(address).ok()?;
            Some(Self { address, _claim: claim })
        });
        found.expect("one of 12,000 ports is free")
    }
}
