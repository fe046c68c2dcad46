use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, c_long, sock_filter,
};

use super::sockets::{NO_FAMILY, NO_PROTOCOL, NO_TYPE};
use super::*;

/// Runs the program as the kernel would.
fn run<const N: usize>(program: &[sock_filter], number: u32, arguments: [u64; N]) -> (u32, usize) {
    let (mut at, mut accumulator, mut steps) = (0, 0_u32, 0);
    loop {
        let instruction = program[at];
        steps += 1;
        at += 1;
        let code = u32::from(instruction.code);
        match code {
            c if c == BPF_LD | BPF_W | BPF_ABS => {
                accumulator = match instruction.k {
                    NUMBER => number,
                    ARCH => ARCHITECTURE,
                    offset => {
                        let halves = offset - argument(0);
                        let whole = arguments[halves as usize / 8];
                        if halves % 8 == HIGH { (whole >> 32) as u32 } else { whole as u32 }
                    }
                }
            }
            c if c == BPF_ALU | BPF_AND | BPF_K => accumulator &= instruction.k,
            c if c == BPF_RET | BPF_K => return (instruction.k, steps),
            c if c == BPF_JMP | libc::BPF_JA => at += instruction.k as usize,
            c => {
                let holds = if c == BPF_JMP | BPF_JGE | BPF_K {
                    accumulator >= instruction.k
                } else {
                    assert_eq!(c, BPF_JMP | BPF_JEQ | BPF_K);
                    accumulator == instruction.k
                };
                at += usize::from(if holds { instruction.jt } else { instruction.jf });
            }
        }
    }
}

#[test]
fn the_tree_says_what_the_list_says() {
    let program = filter();
    let mut most = 0;
    for number in 0..600_u32 {
        let (verdict, steps) = run(program, number, [0; 4]);
        most = most.max(steps);
        let listed = ALLOWED.iter().chain(ALLOWED_HERE).any(|&allowed| allowed == c_long::from(number));
        if listed {
            assert_eq!(verdict, ALLOW, "call {number}");
        } else if number > NEWEST {
            assert_eq!(verdict, ABSENT, "call {number}");
        } else {
            let conditional = [
                libc::SYS_clone,
                libc::SYS_personality,
                libc::SYS_socket,
                libc::SYS_socketpair,
                libc::SYS_ioctl,
                libc::SYS_setrlimit,
                libc::SYS_prlimit64,
                libc::SYS_mmap,
                libc::SYS_memfd_create,
                libc::SYS_shmget,
            ]
            .contains(&c_long::from(number));
            assert_eq!(verdict == ALLOW, conditional, "call {number}");
        }
    }
    assert!(most < 24, "{most} steps are not a tree's");
    assert!(program.len() < 400, "{} instructions", program.len());
}

/// Docker's default profile for a container without capabilities is the measure.
#[test]
fn nothing_is_allowed_that_others_deny() {
    use crate::conformance::calls::{DENIED, DENIED_BY_US, DENIED_HERE};
    let program = filter();
    for (name, number) in [DENIED, DENIED_HERE, DENIED_BY_US].concat() {
        for arguments in [[0; 3], [u64::MAX; 3]] {
            let verdict = run(program, number as u32, arguments).0;
            assert!([REFUSE, ABSENT].contains(&verdict), "{name} ({number}) is allowed");
        }
    }
}

/// A call of another architecture ends the process: its numbers mean something else.
#[test]
fn other_architectures_are_shut_out() {
    let program = filter();
    assert_eq!(program[0].k, ARCH);
    assert_eq!((program[1].k, program[1].jt, program[2].k), (ARCHITECTURE, 1, KILL));
}

#[test]
fn sockets_are_local_or_of_protocols_that_are_built_in() {
    let program = filter();
    let of = |arguments: [libc::c_int; 3]| {
        run(program, libc::SYS_socket as u32, arguments.map(|argument| argument as u64)).0
    };
    let stream = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    for kind in [stream, libc::SOCK_DGRAM, libc::SOCK_SEQPACKET] {
        assert_eq!(of([libc::AF_UNIX, kind, 0]), ALLOW);
    }
    for family in [libc::AF_INET, libc::AF_INET6] {
        for protocol in [0, libc::IPPROTO_TCP, libc::IPPROTO_MPTCP] {
            assert_eq!(of([family, stream, protocol]), ALLOW);
        }
        for protocol in [0, libc::IPPROTO_UDP, libc::IPPROTO_ICMP, libc::IPPROTO_ICMPV6] {
            assert_eq!(of([family, libc::SOCK_DGRAM, protocol]), ALLOW);
        }
        assert_eq!(of([family, stream, libc::IPPROTO_SCTP]), NO_PROTOCOL);
        assert_eq!(of([family, libc::SOCK_DGRAM, 115]), NO_PROTOCOL);
        for kind in [libc::SOCK_SEQPACKET, libc::SOCK_DCCP, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC] {
            assert_eq!(of([family, kind, 0]), NO_TYPE);
        }
    }
    assert_eq!(of([libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE]), ALLOW);
    for protocol in [libc::NETLINK_AUDIT, libc::NETLINK_KOBJECT_UEVENT, libc::NETLINK_NETFILTER] {
        assert_eq!(of([libc::AF_NETLINK, libc::SOCK_DGRAM, protocol]), NO_PROTOCOL);
    }
    for family in [libc::AF_VSOCK, libc::AF_ALG, libc::AF_PACKET, libc::AF_XDP, libc::AF_TIPC, -1] {
        assert_eq!(of([family, stream, 0]), NO_FAMILY);
    }
}

#[test]
fn the_size_of_dumps_stays_as_it_is() {
    let program = filter();
    let of = |number: c_long, arguments| run(program, number as u32, arguments).0;
    let (core, files) = (u64::from(libc::RLIMIT_CORE), u64::from(libc::RLIMIT_NOFILE));
    assert_eq!(of(libc::SYS_setrlimit, [core, 0x7fff_0000, 0]), PRETEND);
    assert_eq!(of(libc::SYS_setrlimit, [files, 0x7fff_0000, 0]), ALLOW);
    assert_eq!(of(libc::SYS_prlimit64, [0, core, 0]), ALLOW);
    for address in [8, 1 << 32, u64::MAX] {
        assert_eq!(of(libc::SYS_prlimit64, [0, core, address]), PRETEND);
        assert_eq!(of(libc::SYS_prlimit64, [0, files, address]), ALLOW);
    }
}

#[test]
fn arguments_decide_where_they_must() {
    let program = filter();
    let of = |number: c_long, [first, second]: [u32; 2]| {
        run(program, number as u32, [first.into(), second.into(), 0]).0
    };
    assert_eq!(of(libc::SYS_clone, [(libc::CLONE_VM | libc::CLONE_THREAD) as u32, 0]), ALLOW);
    for flag in [libc::CLONE_NEWUSER, libc::CLONE_NEWNS, libc::CLONE_NEWNET, libc::CLONE_NEWPID] {
        assert_eq!(of(libc::SYS_clone, [flag as u32 | libc::SIGCHLD as u32, 0]), REFUSE);
    }
    assert_eq!(of(libc::SYS_clone3, [0, 0]), ABSENT);
    assert_eq!(of(libc::SYS_socketpair, [libc::AF_UNIX as u32, 0]), ALLOW);
    assert_eq!(of(libc::SYS_socketpair, [libc::AF_TIPC as u32, 0]), NO_FAMILY);
    assert_eq!(of(libc::SYS_personality, [0x0040_0000, 0]), REFUSE);
    assert_eq!(of(libc::SYS_personality, [0xffff_ffff, 0]), ALLOW);
    assert_eq!(of(libc::SYS_ioctl, [0, libc::TIOCSTI as u32]), REFUSE);
    assert_eq!(of(libc::SYS_ioctl, [0, libc::FIONBIO as u32]), ALLOW);
    for call in [
        libc::SYS_mount,
        libc::SYS_ptrace,
        libc::SYS_bpf,
        libc::SYS_keyctl,
        libc::SYS_unshare,
        libc::SYS_setns,
    ] {
        assert_eq!(of(call, [0, 0]), REFUSE);
    }
    assert_eq!(of(0x4000_0000, [0, 0]), ABSENT);
}

/// Ordinary memory, files in memory and segments are everybody's; those of huge pages nobody's, in whatever size they are asked for.
#[test]
fn huge_pages_are_left_to_the_host() {
    let program = filter();
    let private = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
    let calls = [
        (libc::SYS_mmap, 3, private, libc::MAP_HUGETLB as u64, libc::MAP_HUGE_1GB as u64),
        (
            libc::SYS_memfd_create,
            1,
            libc::MFD_CLOEXEC.into(),
            libc::MFD_HUGETLB.into(),
            libc::MFD_HUGE_1GB.into(),
        ),
        (
            libc::SYS_shmget,
            2,
            libc::IPC_CREAT as u64 | 0o600,
            libc::SHM_HUGETLB as u64,
            libc::MAP_HUGE_2MB as u64,
        ),
    ];
    for (call, index, plain, huge, size) in calls {
        let with = |flags: u64| {
            let mut arguments = [0; 4];
            arguments[index] = flags;
            run(program, call as u32, arguments).0
        };
        assert_eq!(
            [with(plain), with(plain | huge), with(plain | huge | size)],
            [ALLOW, REFUSE, REFUSE],
            "call {call}"
        );
    }
}
