//! The sockets that a function may make, by family, type and protocol.
//!
//! The kernel loads what is asked for and not there, for anybody: each family and protocol that is let through is code that a function can
//! have run, whether the machine uses it or not.

use libc::{BPF_ALU, BPF_AND, BPF_JA, BPF_JEQ, BPF_JMP, BPF_K, sock_filter};

use super::{ALLOW, answer, argument, jump, load, one_of, statement};

/// An address family, a type of sockets and a protocol that the kernel does not have, as far as a function can tell.
pub const NO_FAMILY: u32 = libc::SECCOMP_RET_ERRNO | libc::EAFNOSUPPORT as u32;
pub const NO_TYPE: u32 = libc::SECCOMP_RET_ERRNO | libc::ESOCKTNOSUPPORT as u32;
pub const NO_PROTOCOL: u32 = libc::SECCOMP_RET_ERRNO | libc::EPROTONOSUPPORT as u32;

/// Families without protocols that matter: none and local. Only local sockets come in pairs; for any other family, asking for a pair would have
/// the kernel load it.
pub const LOCAL: &[u32] = &[libc::AF_UNSPEC as u32, libc::AF_UNIX as u32];
/// IPv4 and IPv6: these types, and protocols that every kernel has built in. For others (SCTP, DCCP, L2TP) it would load code that nobody
/// uses, on the word of a function.
const INTERNET: &[u32] = &[libc::AF_INET as u32, libc::AF_INET6 as u32];
const TYPES: &[u32] = &[libc::SOCK_STREAM as u32, libc::SOCK_DGRAM as u32, libc::SOCK_RAW as u32];
const PROTOCOLS: &[u32] = &[
    libc::IPPROTO_IP as u32,
    libc::IPPROTO_ICMP as u32,
    libc::IPPROTO_TCP as u32,
    libc::IPPROTO_UDP as u32,
    libc::IPPROTO_ICMPV6 as u32,
    libc::IPPROTO_MPTCP as u32,
];
/// Netlink: what interfaces and routes there are. Not events of devices, audit, or the tables of the firewall.
const NETLINKS: &[u32] = &[libc::NETLINK_ROUTE as u32];
/// The part of a type that is not a flag.
const TYPE: u32 = 0xf;

/// Appends code that decides by the arguments of `socket`.
pub fn decide(program: &mut Vec<sock_filter>) {
    let of = |offset, values, other| {
        let mut part = Vec::new();
        one_of(offset, values, ALLOW, other, &mut part);
        part
    };
    let netlink = of(argument(2), NETLINKS, NO_PROTOCOL);
    let protocol = of(argument(2), PROTOCOLS, NO_PROTOCOL);
    let mut internet = vec![load(argument(1)), statement(BPF_ALU | BPF_AND | BPF_K, TYPE)];
    for (index, &value) in TYPES.iter().enumerate() {
        // To the protocol, behind the comparisons left and the answer.
        internet.push(jump(BPF_JEQ, value, (TYPES.len() - index) as u8, 0));
    }
    internet.push(answer(NO_TYPE));
    internet.extend(protocol);
    program.push(load(argument(0)));
    // Past the code for netlink, where it is not that.
    program.push(jump(BPF_JEQ, libc::AF_NETLINK as u32, 0, netlink.len() as u8));
    program.extend(netlink);
    for (index, &value) in INTERNET.iter().enumerate() {
        // To the code for IP, behind the comparisons left and the jump past it.
        program.push(jump(BPF_JEQ, value, (INTERNET.len() - index) as u8, 0));
    }
    program.push(sock_filter { code: (BPF_JMP | BPF_JA) as u16, jt: 0, jf: 0, k: internet.len() as u32 });
    program.extend(internet);
    one_of(argument(0), LOCAL, ALLOW, NO_FAMILY, program);
}
