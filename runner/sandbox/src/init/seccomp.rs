//! The system calls a function may make: an allow-list, as a BPF program shaped as a binary tree.
//!
//! The kernel runs the program before every system call and once per call number when it is installed, so its shape
//! counts: as a tree it answers after about seven comparisons, where a list would take hundreds. The list is what
//! container engines allow by default without any capability, less what functions have no use for and attackers had
//! (io_uring, ptrace and its kin, 32-bit calls). Not known to this list means `ENOSYS`, so that C libraries fall
//! back; known and refused means `EPERM`.

mod allowed;
mod sockets;
#[cfg(test)]
mod tests;

use std::sync::LazyLock;

use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, c_long, sock_filter,
};

use self::allowed::{ALLOWED, ALLOWED_HERE};

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("the seccomp filter has no call numbers for this architecture");

/// Offsets in the kernel's `seccomp_data`; the low half of an argument comes first on both architectures.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const fn argument(index: u32) -> u32 {
    16 + 8 * index
}
/// From the low half of an argument to the high one.
const HIGH: u32 = 4;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;
const REFUSE: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const ABSENT: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
/// Not done, and the function is told that it was.
const PRETEND: u32 = libc::SECCOMP_RET_ERRNO;

/// The newest call that was weighed for this list (`mseal`); what comes after does not exist for functions.
const NEWEST: u32 = 462;

/// `clone` flags that make namespaces.
const NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;
/// Personalities that give nothing away: plain Linux, the ways it reports itself, and the question which it is.
const PERSONALITIES: &[u32] = &[0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];
/// Terminal requests that put words into another's mouth.
const IOCTLS: &[u32] = &[libc::TIOCSTI as u32, 0x541c];

/// The limit that stays as it is (see [`super::core_size`]): programs lower it to zero, and some end where they may not.
const CORE: u32 = libc::RLIMIT_CORE;

/// What the tree decides for one call number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Return(u32),
    /// The argument of this index without these bits.
    Without(u32, u32),
    /// The first argument among these, else this answer.
    Among(&'static [u32], u32),
    /// The second argument not among these.
    Not(&'static [u32]),
    /// Those of [`sockets`].
    Socket,
    /// `setrlimit` and `prlimit`, but for [`CORE`].
    SetLimit,
    SetOrAskLimit,
}

/// The program. Put together once: whoever is to be copied often asks for it before.
pub fn filter() -> &'static [sock_filter] {
    static FILTER: LazyLock<Vec<sock_filter>> = LazyLock::new(program);
    &FILTER
}

fn program() -> Vec<sock_filter> {
    let mut program = vec![load(ARCH), jump(BPF_JEQ, ARCHITECTURE, 1, 0), answer(KILL), load(NUMBER)];
    tree(&ranges(), &mut program);
    program
}

/// Runs of call numbers with the same verdict, covering every number, in order: (first number, verdict).
fn ranges() -> Vec<(u32, Verdict)> {
    let mut verdicts: Vec<Verdict> = vec![Verdict::Return(REFUSE); NEWEST as usize + 1];
    let mut set = |number: c_long, verdict| {
        if let Some(slot) = usize::try_from(number).ok().and_then(|number| verdicts.get_mut(number)) {
            *slot = verdict;
        }
    };
    for &number in ALLOWED.iter().chain(ALLOWED_HERE) {
        set(number, Verdict::Return(ALLOW));
    }
    // Its flags lie in memory, where no filter can look; absent, C libraries use clone.
    set(libc::SYS_clone3, Verdict::Return(ABSENT));
    set(libc::SYS_clone, Verdict::Without(0, NAMESPACES));
    // The kernel counts huge pages towards nobody's memory: a function would have all that its host keeps.
    set(libc::SYS_mmap, Verdict::Without(3, libc::MAP_HUGETLB as u32));
    set(libc::SYS_memfd_create, Verdict::Without(1, libc::MFD_HUGETLB));
    set(libc::SYS_shmget, Verdict::Without(2, libc::SHM_HUGETLB as u32));
    set(libc::SYS_personality, Verdict::Among(PERSONALITIES, REFUSE));
    set(libc::SYS_socket, Verdict::Socket);
    set(libc::SYS_socketpair, Verdict::Among(sockets::LOCAL, sockets::NO_FAMILY));
    set(libc::SYS_ioctl, Verdict::Not(IOCTLS));
    set(libc::SYS_setrlimit, Verdict::SetLimit);
    set(libc::SYS_prlimit64, Verdict::SetOrAskLimit);
    for number in [libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register] {
        set(number, Verdict::Return(ABSENT));
    }
    let mut ranges: Vec<(u32, Verdict)> = Vec::new();
    for (number, verdict) in (0..).zip(verdicts) {
        if ranges.last().is_none_or(|(_, last)| *last != verdict) {
            ranges.push((number, verdict));
        }
    }
    // The second calling convention of x86_64 numbers its calls from 2^30: absent as well.
    ranges.push((NEWEST + 1, Verdict::Return(ABSENT)));
    ranges
}

/// Appends code that decides between `ranges`, given that the number is in one of them.
fn tree(ranges: &[(u32, Verdict)], program: &mut Vec<sock_filter>) {
    match ranges {
        [] => {}
        [(_, verdict)] => leaf(*verdict, program),
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            let mut lower = Vec::new();
            tree(low, &mut lower);
            // A conditional jump reaches 255 instructions; an unconditional one any.
            match u8::try_from(lower.len()) {
                Ok(distance) => program.push(jump(BPF_JGE, high[0].0, distance, 0)),
                Err(_) => {
                    program.push(jump(BPF_JGE, high[0].0, 0, 1));
                    program.push(sock_filter {
                        code: (BPF_JMP | libc::BPF_JA) as u16,
                        jt: 0,
                        jf: 0,
                        k: lower.len() as u32,
                    });
                }
            }
            program.append(&mut lower);
            tree(high, program);
        }
    }
}

fn leaf(verdict: Verdict, program: &mut Vec<sock_filter>) {
    match verdict {
        Verdict::Return(value) => program.push(answer(value)),
        Verdict::Without(index, bits) => {
            program.push(load(argument(index)));
            program.push(statement(BPF_ALU | BPF_AND | BPF_K, bits));
            program.push(jump(BPF_JEQ, 0, 0, 1));
            program.push(answer(ALLOW));
            program.push(answer(REFUSE));
        }
        Verdict::Among(values, other) => one_of(argument(0), values, ALLOW, other, program),
        Verdict::Not(values) => one_of(argument(1), values, REFUSE, ALLOW, program),
        Verdict::Socket => sockets::decide(program),
        Verdict::SetLimit => one_of(argument(0), &[CORE], PRETEND, ALLOW, program),
        Verdict::SetOrAskLimit => {
            // The address of the new limit is null where it is only asked for. Both halves: one alone may be zero by design.
            program.push(load(argument(1)));
            program.push(jump(BPF_JEQ, CORE, 0, 4));
            program.push(load(argument(2)));
            program.push(jump(BPF_JEQ, 0, 0, 3));
            program.push(load(argument(2) + HIGH));
            program.push(jump(BPF_JEQ, 0, 0, 1));
            program.push(answer(ALLOW));
            program.push(answer(PRETEND));
        }
    }
}

fn one_of(offset: u32, values: &[u32], found: u32, other: u32, program: &mut Vec<sock_filter>) {
    program.push(load(offset));
    for (index, &value) in values.iter().enumerate() {
        // To the first answer, behind the comparisons left and the other answer.
        program.push(jump(BPF_JEQ, value, (values.len() - index) as u8, 0));
    }
    program.push(answer(other));
    program.push(answer(found));
}

fn load(offset: u32) -> sock_filter {
    statement(BPF_LD | BPF_W | BPF_ABS, offset)
}

fn answer(value: u32) -> sock_filter {
    statement(BPF_RET | BPF_K, value)
}

fn statement(code: u32, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

fn jump(comparison: u32, value: u32, yes: u8, no: u8) -> sock_filter {
    sock_filter { code: (BPF_JMP | comparison | BPF_K) as u16, jt: yes, jf: no, k: value }
}
