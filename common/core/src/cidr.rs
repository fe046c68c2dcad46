//! Addresses that begin alike.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// One address, or all that begin with the same bits: `10.0.0.7`, `10.0.0.0/8`, `fd00::/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    first: IpAddr,
    bits: u32,
}

impl Cidr {
    /// Whether an address is one of them. One of IPv4 that is written as one of IPv6 (`::ffff:10.0.0.7`) is of IPv6: who wants the
    /// other makes it canonical.
    #[must_use]
    pub fn holds(&self, address: IpAddr) -> bool {
        // A shift by the whole width is no shift: then every address is one.
        let differs = (number(self.first) ^ number(address)).checked_shr(128 - self.bits).unwrap_or(0);
        self.first.is_ipv4() == address.is_ipv4() && differs == 0
    }
}

/// Its bits, from the first.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.first, self.bits)
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is no address and no network: write 10.0.0.7, 10.0.0.0/8 or fd00::/8");
        let (address, bits) =
            text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let first: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if first.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(most), |bits| bits.parse().map_err(|_| wrong()))?;
        if bits > most {
            return Err(format!("`{text}` has more bits than an address of its kind: write at most /{most}"));
        }
        Ok(Self { first, bits })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_holds_what_begins_alike() {
        for (network, inside, outside) in [
            ("10.0.0.7", "10.0.0.7", "10.0.0.8"),
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("10.9.9.9/8", "10.0.0.1", "::10.0.0.1"),
            ("192.0.2.128/25", "192.0.2.200", "192.0.2.127"),
            ("::ffff:0:0/96", "::ffff:192.0.2.200", "192.0.2.200"),
            ("0.0.0.0/0", "203.0.113.9", "2001:db8::1"),
            ("::/0", "2001:db8::1", "203.0.113.9"),
            ("fd00::/8", "fdff::1", "fe00::1"),
            ("::1", "::1", "::2"),
        ] {
            let cidr: Cidr = network.parse().unwrap();
            assert!(cidr.holds(inside.parse().unwrap()), "{network:?} {inside}");
            assert!(!cidr.holds(outside.parse().unwrap()), "{network:?} {outside}");
        }
    }

    #[test]
    fn what_is_none_is_told() {
        for (wrong, right) in [
            ("", "10.0.0.0/8"),
            ("proxy.example", "10.0.0.0/8"),
            ("10.0.0.1:80", "10.0.0.0/8"),
            ("10.0.0/8", "10.0.0.0/8"),
            ("10.0.0.0/", "10.0.0.0/8"),
            ("10.0.0.0/-1", "10.0.0.0/8"),
            ("10.0.0.0/33", "at most /32"),
            ("fd00::/129", "at most /128"),
        ] {
            let told = wrong.parse::<Cidr>().unwrap_err();
            assert!(told.contains(right) && told.contains(&format!("`{wrong}`")), "{told}");
        }
    }
}
