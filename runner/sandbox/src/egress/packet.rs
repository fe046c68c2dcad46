//! IP packets of a tunnel: what they are, and datagrams for the way back.

use std::net::SocketAddr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    IpAddress, IpProtocol, IpRepr, Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr, TcpPacket, UdpPacket, UdpRepr,
};

use super::MTU;

/// Hops of what we send; there are none on a tunnel.
const HOPS: u8 = 64;

/// What we make of a packet from a function.
#[derive(Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    /// Of a TCP connection; one that begins it, if `opens`.
    Stream {
        from: SocketAddr,
        to: SocketAddr,
        opens: bool,
    },
    Datagram {
        from: SocketAddr,
        to: SocketAddr,
        payload: &'a [u8],
    },
    /// Fragments, ICMP, and what makes no sense.
    Other,
}

/// Looks at a packet. Nothing in it is trusted.
pub fn read(packet: &[u8]) -> Packet<'_> {
    parse(packet).unwrap_or(Packet::Other)
}

fn parse(packet: &[u8]) -> Option<Packet<'_>> {
    let (protocol, source, destination, payload): (_, std::net::IpAddr, std::net::IpAddr, _) =
        match packet.first()? >> 4 {
            4 => {
                let ip = Ipv4Packet::new_checked(packet).ok()?;
                if ip.more_frags() || ip.frag_offset() != 0 {
                    return None;
                }
                let (source, destination) = (ip.src_addr(), ip.dst_addr());
                (ip.next_header(), source.into(), destination.into(), ip.payload())
            }
            6 => {
                let ip = Ipv6Packet::new_checked(packet).ok()?;
                let (source, destination) = (ip.src_addr(), ip.dst_addr());
                (ip.next_header(), source.into(), destination.into(), ip.payload())
            }
            _ => return None,
        };
    match protocol {
        IpProtocol::Tcp => {
            let tcp = TcpPacket::new_checked(payload).ok()?;
            let from = SocketAddr::new(source, tcp.src_port());
            let to = SocketAddr::new(destination, tcp.dst_port());
            let opens = tcp.syn() && !tcp.ack() && !tcp.rst() && !tcp.fin();
            Some(Packet::Stream { from, to, opens })
        }
        IpProtocol::Udp => {
            let udp = UdpPacket::new_checked(payload).ok()?;
            let from = SocketAddr::new(source, udp.src_port());
            let to = SocketAddr::new(destination, udp.dst_port());
            Some(Packet::Datagram { from, to, payload: udp.payload() })
        }
        _ => None,
    }
}

/// A datagram as a packet for the tunnel; nothing where it would not fit.
pub fn datagram(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Option<Vec<u8>> {
    let udp = UdpRepr { src_port: from.port(), dst_port: to.port() };
    let length = udp.header_len() + payload.len();
    let ip = match (from, to) {
        (SocketAddr::V4(from), SocketAddr::V4(to)) => IpRepr::Ipv4(Ipv4Repr {
            src_addr: *from.ip(),
            dst_addr: *to.ip(),
            next_header: IpProtocol::Udp,
            payload_len: length,
            hop_limit: HOPS,
        }),
        (SocketAddr::V6(from), SocketAddr::V6(to)) => IpRepr::Ipv6(Ipv6Repr {
            src_addr: *from.ip(),
            dst_addr: *to.ip(),
            next_header: IpProtocol::Udp,
            payload_len: length,
            hop_limit: HOPS,
        }),
        _ => return None,
    };
    let head = ip.header_len();
    if head + length > MTU {
        return None;
    }
    let mut packet = vec![0; head + length];
    let checksums = ChecksumCapabilities::default();
    ip.emit(&mut packet, &checksums);
    let (source, destination) = (IpAddress::from(from.ip()), IpAddress::from(to.ip()));
    udp.emit(
        &mut UdpPacket::new_unchecked(packet.get_mut(head..)?),
        &source,
        &destination,
        payload.len(),
        |space| space.copy_from_slice(payload),
        &checksums,
    );
    Some(packet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_reads_as_it_was_written() {
        for (from, to) in [("203.0.113.1:53", "192.0.0.2:4000"), ("[2001:db8::1]:53", "[fd00::2]:4000")] {
            let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
            let packet = datagram(from, to, b"hello").unwrap();
            assert_eq!(read(&packet), Packet::Datagram { from, to, payload: b"hello" });
        }
        let (from, to) = ("203.0.113.1:53".parse().unwrap(), "192.0.0.2:4000".parse().unwrap());
        assert!(datagram(from, to, &[0; MTU]).is_none());
    }

    #[test]
    fn nonsense_of_any_length_is_read_without_harm() {
        let packet =
            datagram("203.0.113.1:53".parse().unwrap(), "192.0.0.2:4000".parse().unwrap(), b"hello").unwrap();
        for length in 0..packet.len() {
            assert_eq!(read(&packet[..length]), Packet::Other, "{length} bytes");
        }
        for byte in 0..packet.len() {
            for value in [0, 1, 0x0f, 0x45, 0x60, 0xff] {
                let mut broken = packet.clone();
                broken[byte] = value;
                read(&broken);
            }
        }
    }
}
