//! What a function may reach.
//!
//! Never: the host itself by any of its addresses, loopback, link-local (where clouds keep their credentials), other such
//! services by their well-known addresses, multicast, and what is no destination at all. The operator denies more, and allows
//! parts of that again. Names are resolved by the host's servers, which need not be reachable otherwise: inside they have addresses of their
//! own, answered at port 53 only.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use stoker_core::cidr::Cidr;
use tokio::sync::Semaphore;

/// Port of name servers.
const NAMES: u16 = 53;
/// Name servers inside have this address and the following.
const SERVERS: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);
/// Connections of all functions of a driver at once; 128 KiB each, at most.
const CONNECTIONS: usize = 2048;
/// As many as C libraries ask.
const MOST_SERVERS: usize = 3;

/// Never reached, whatever the operator says.
const NEVER: &[&str] = &[
    // This host, and no host.
    "0.0.0.0/8",
    "127.0.0.0/8",
    "::/128",
    "::1/128",
    // Link-local: 169.254.169.254 is where most clouds serve metadata and credentials.
    "169.254.0.0/16",
    "fe80::/10",
    // Metadata and host services elsewhere: AWS and GCP over IPv6, Alibaba, Azure; Oracle's is in the block of protocol assignments.
    "fd00:ec2::/32",
    "fd20:ce::/32",
    "100.100.100.200/32",
    "168.63.129.16/32",
    "192.0.0.0/24",
    "fd53:746f:6b65::/48",
    // To many, or reserved.
    "224.0.0.0/4",
    "240.0.0.0/4",
    "ff00::/8",
    // Ways to write the fourth version's addresses in the sixth's.
    "::ffff:0:0/96",
    "::/96",
    "64:ff9b::/32",
    "2002::/16",
    "2001::/32",
];

/// What the operator says about `network: egress`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// Not to be reached.
    pub deny: Vec<Cidr>,
    /// To be reached though it is denied above; not what is never reached.
    pub allow: Vec<Cidr>,
    /// Name servers; the host's if empty.
    pub resolvers: Vec<IpAddr>,
}

/// Decides for all sandboxes of a driver.
#[derive(Debug)]
pub struct Policy {
    never: Vec<Cidr>,
    deny: Vec<Cidr>,
    allow: Vec<Cidr>,
    servers: Vec<SocketAddr>,
    /// Lines of the host's `resolv.conf` that say how names are to be searched.
    search: String,
    /// Connections of all functions at once: what they have on their way is the runner's memory.
    pub connections: Arc<Semaphore>,
    /// The host has a way out by the sixth version of the protocol.
    pub six: bool,
}

impl Policy {
    /// Reads how the host resolves names.
    ///
    /// # Errors
    /// When the host's `resolv.conf` is needed and cannot be read.
    pub fn new(config: &Config) -> io::Result<Self> {
        let text = match std::fs::read_to_string("/etc/resolv.conf") {
            // Then names are not resolved, as on the host.
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            text => text?,
        };
        Ok(Self::with(config, &text))
    }

    fn with(config: &Config, resolv_conf: &str) -> Self {
        let listed = resolv_conf.lines().filter_map(|line| line.strip_prefix("nameserver")).map(|rest| {
            // An interface may be named behind it, which says where a link-local server is: not for us.
            rest.trim().split('%').next().unwrap_or_default().parse()
        });
        let hosts: Vec<IpAddr> = listed.filter_map(Result::ok).collect();
        let servers = if config.resolvers.is_empty() { &hosts } else { &config.resolvers };
        let search = resolv_conf
            .lines()
            .filter(|line| ["search ", "domain ", "options "].iter().any(|word| line.starts_with(word)))
            .map(|line| format!("{line}\n"))
            .collect();
        let six = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))
            .and_then(|socket| socket.connect((Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 1), NAMES)))
            .is_ok();
        Self {
            never: NEVER.iter().filter_map(|range| range.parse().ok()).collect(),
            deny: config.deny.clone(),
            allow: config.allow.clone(),
            servers: servers
                .iter()
                .take(MOST_SERVERS)
                .map(|server| SocketAddr::new(*server, NAMES))
                .collect(),
            search,
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
            six,
        }
    }

    /// What a function's `/etc/resolv.conf` says.
    pub fn resolver(&self) -> String {
        let servers = (0..self.servers.len()).map(|number| format!("nameserver {}\n", server(number)));
        format!("# Answered by the runner.\n{}{}", servers.collect::<String>(), self.search)
    }

    /// Where a connection or datagram to `wanted` goes, if it may.
    pub fn target(&self, wanted: SocketAddr) -> Option<SocketAddr> {
        let number = (0..self.servers.len()).find(|number| IpAddr::V4(server(*number)) == wanted.ip());
        if let Some(number) = number {
            return self.servers.get(number).filter(|_| wanted.port() == NAMES).copied();
        }
        let address = wanted.ip();
        let any = |ranges: &[Cidr]| ranges.iter().any(|range| range.holds(address));
        let denied = any(&self.never) || (any(&self.deny) && !any(&self.allow));
        (!denied && !is_own(address)).then_some(wanted)
    }
}

fn server(number: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(SERVERS.to_bits() + number as u32)
}

/// Whether an address is one of this host's, now: what is sent there would come from there. Sends nothing.
fn is_own(address: IpAddr) -> bool {
    let any: IpAddr =
        if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let source = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((address, NAMES))?;
        socket.local_addr()
    });
    // No way there means that it is elsewhere; the connection says so.
    source.is_ok_and(|source| source.ip() == address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(deny: &[&str], allow: &[&str]) -> Policy {
        let ranges = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let config = Config { deny: ranges(deny), allow: ranges(allow), resolvers: Vec::new() };
        Policy::with(
            &config,
            "nameserver 127.0.0.53\nnameserver 10.0.0.2\noptions ndots:2\nsearch a.example\n",
        )
    }

    fn reaches(policy: &Policy, address: &str) -> bool {
        policy.target(address.parse().unwrap()).is_some()
    }

    #[test]
    fn every_range_that_is_never_reached_is_one() {
        for range in NEVER {
            assert!(range.parse::<Cidr>().is_ok(), "{range}");
        }
    }

    #[test]
    fn the_host_and_the_services_of_clouds_are_never_reached() {
        let policy = policy(&[], &["0.0.0.0/0", "::/0"]);
        for address in [
            "127.0.0.1:80",
            "127.9.9.9:80",
            "0.0.0.0:80",
            "169.254.169.254:80",
            "100.100.100.200:80",
            "168.63.129.16:80",
            "192.0.0.192:80",
            "192.0.0.2:80",
            "224.0.0.1:80",
            "255.255.255.255:80",
            "[::1]:80",
            "[::]:80",
            "[fe80::1]:80",
            "[fd00:ec2::254]:80",
            "[::ffff:127.0.0.1]:80",
            "[::ffff:169.254.169.254]:80",
            "[64:ff9b::a9fe:a9fe]:80",
            "[ff02::1]:80",
        ] {
            assert!(!reaches(&policy, address), "{address}");
        }
        assert!(reaches(&policy, "203.0.113.9:443"));
        assert!(reaches(&policy, "[2001:db8::9]:443"));
        assert!(reaches(&policy, "10.1.2.3:5432"));
    }

    #[test]
    fn the_operator_denies_and_allows_again() {
        let policy = policy(&["10.0.0.0/8", "::/0"], &["10.1.2.3"]);
        assert!(!reaches(&policy, "10.1.2.4:80"));
        assert!(reaches(&policy, "10.1.2.3:80"));
        assert!(!reaches(&policy, "[2001:db8::9]:443"));
        assert!(reaches(&policy, "203.0.113.9:443"));
    }

    #[test]
    fn name_servers_are_reached_by_their_inner_addresses_only() {
        let policy = policy(&["10.0.0.0/8"], &[]);
        let target = |address: &str| policy.target(address.parse().unwrap()).map(|target| target.to_string());
        assert_eq!(target("192.0.0.8:53").as_deref(), Some("127.0.0.53:53"));
        assert_eq!(target("192.0.0.9:53").as_deref(), Some("10.0.0.2:53"));
        assert_eq!(target("192.0.0.10:53"), None);
        assert_eq!(target("192.0.0.8:80"), None);
        assert_eq!(target("127.0.0.53:53"), None);
        let written = "# Answered by the runner.\nnameserver 192.0.0.8\nnameserver 192.0.0.9\noptions ndots:2\nsearch a.example\n";
        assert_eq!(policy.resolver(), written);
    }
}
