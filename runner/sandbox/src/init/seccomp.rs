//! The system calls a function may make: an allow-list, as a BPF program shaped as a binary tree.
//!
//! The kernel runs the program before every system call and once per call number when it is installed, so its shape
//! counts: as a tree it answers after about seven comparisons, where a list would take hundreds. The list is what
//! container engines allow by default without any capability, less what functions have no use for and attackers had
//! (io_uring, ptrace and its kin, 32-bit calls). Not known to this list means `ENOSYS`, so that C libraries fall
//! back; known and refused means `EPERM`.

use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, c_long, sock_filter,
};

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

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;
const REFUSE: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const ABSENT: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
/// An address family the kernel does not have, as far as a function can tell.
const NO_FAMILY: u32 = libc::SECCOMP_RET_ERRNO | libc::EAFNOSUPPORT as u32;

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
/// Local, IPv4, IPv6 and netlink (what interfaces there are) sockets.
const FAMILIES: &[u32] = &[
    libc::AF_UNSPEC as u32,
    libc::AF_UNIX as u32,
    libc::AF_INET as u32,
    libc::AF_INET6 as u32,
    libc::AF_NETLINK as u32,
];
/// Terminal requests that put words into another's mouth.
const IOCTLS: &[u32] = &[libc::TIOCSTI as u32, 0x541c];

/// Missing from `libc`.
#[cfg(target_arch = "x86_64")]
const IO_PGETEVENTS: c_long = 333;
#[cfg(target_arch = "aarch64")]
const IO_PGETEVENTS: c_long = 292;

/// Allowed whatever the arguments. Numbers without a name: fchmodat2, map_shadow_stack, futex_wake, futex_wait,
/// futex_requeue, mseal.
const ALLOWED: &[c_long] = &[
    // Files and directories.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_lseek,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fcntl,
    libc::SYS_flock,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync,
    libc::SYS_syncfs,
    libc::SYS_sync_file_range,
    libc::SYS_truncate,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fadvise64,
    libc::SYS_readahead,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_chdir,
    libc::SYS_fchdir,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_unlinkat,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_readlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    452,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_umask,
    libc::SYS_utimensat,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_fgetxattr,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_flistxattr,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_tee,
    libc::SYS_vmsplice,
    libc::SYS_name_to_handle_at,
    libc::SYS_io_setup,
    libc::SYS_io_destroy,
    libc::SYS_io_submit,
    libc::SYS_io_cancel,
    libc::SYS_io_getevents,
    IO_PGETEVENTS,
    // Waiting.
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_signalfd4,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_pipe2,
    libc::SYS_futex,
    libc::SYS_futex_waitv,
    454,
    455,
    456,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_membarrier,
    libc::SYS_rseq,
    libc::SYS_restart_syscall,
    // Memory.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_msync,
    libc::SYS_mincore,
    libc::SYS_madvise,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_munlock,
    libc::SYS_mlockall,
    libc::SYS_munlockall,
    libc::SYS_remap_file_pages,
    libc::SYS_memfd_create,
    libc::SYS_pkey_alloc,
    libc::SYS_pkey_free,
    libc::SYS_pkey_mprotect,
    453,
    462,
    // Processes and signals.
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_tgkill,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_process_mrelease,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_sigaltstack,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getpgid,
    libc::SYS_setpgid,
    libc::SYS_getsid,
    libc::SYS_setsid,
    libc::SYS_set_tid_address,
    libc::SYS_prctl,
    libc::SYS_seccomp,
    libc::SYS_getrlimit,
    libc::SYS_setrlimit,
    libc::SYS_prlimit64,
    libc::SYS_getrusage,
    libc::SYS_times,
    libc::SYS_getpriority,
    libc::SYS_setpriority,
    libc::SYS_ioprio_get,
    libc::SYS_ioprio_set,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_restrict_self,
    // Identity: asking, and changing to what one is already.
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getresuid,
    libc::SYS_getresgid,
    libc::SYS_getgroups,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    libc::SYS_capget,
    libc::SYS_capset,
    // Scheduling and time.
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_setparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_setscheduler,
    libc::SYS_sched_getattr,
    libc::SYS_sched_setattr,
    libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min,
    libc::SYS_sched_rr_get_interval,
    libc::SYS_getcpu,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_getitimer,
    libc::SYS_setitimer,
    libc::SYS_timer_create,
    libc::SYS_timer_delete,
    libc::SYS_timer_settime,
    libc::SYS_timer_gettime,
    libc::SYS_timer_getoverrun,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    // Network.
    libc::SYS_socketpair,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    // Between processes, and what the system is.
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_shmdt,
    libc::SYS_shmctl,
    libc::SYS_semget,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_semctl,
    libc::SYS_msgget,
    libc::SYS_msgsnd,
    libc::SYS_msgrcv,
    libc::SYS_msgctl,
    libc::SYS_mq_open,
    libc::SYS_mq_unlink,
    libc::SYS_mq_timedsend,
    libc::SYS_mq_timedreceive,
    libc::SYS_mq_notify,
    libc::SYS_mq_getsetattr,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getrandom,
];

/// Older forms that only this architecture still has.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[c_long] = &[
    libc::SYS_open,
    libc::SYS_creat,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_pipe,
    libc::SYS_dup2,
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_alarm,
    libc::SYS_pause,
    libc::SYS_time,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
    libc::SYS_getdents,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_rename,
    libc::SYS_link,
    libc::SYS_unlink,
    libc::SYS_symlink,
    libc::SYS_readlink,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_mknod,
    libc::SYS_getpgrp,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_signalfd,
    libc::SYS_inotify_init,
    libc::SYS_arch_prctl,
    libc::SYS_modify_ldt,
    libc::SYS_get_thread_area,
    libc::SYS_set_thread_area,
];
#[cfg(target_arch = "aarch64")]
const ALLOWED_HERE: &[c_long] = &[];

/// What the tree decides for one call number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Return(u32),
    /// The first argument without these bits.
    Without(u32),
    /// The first argument among these, else this answer.
    Among(&'static [u32], u32),
    /// The second argument not among these.
    Not(&'static [u32]),
}

/// The program.
pub fn filter() -> Vec<sock_filter> {
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
    set(libc::SYS_clone, Verdict::Without(NAMESPACES));
    set(libc::SYS_personality, Verdict::Among(PERSONALITIES, REFUSE));
    set(libc::SYS_socket, Verdict::Among(FAMILIES, NO_FAMILY));
    set(libc::SYS_ioctl, Verdict::Not(IOCTLS));
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
        Verdict::Without(bits) => {
            program.push(load(argument(0)));
            program.push(statement(BPF_ALU | BPF_AND | BPF_K, bits));
            program.push(jump(BPF_JEQ, 0, 0, 1));
            program.push(answer(ALLOW));
            program.push(answer(REFUSE));
        }
        Verdict::Among(values, other) => one_of(argument(0), values, ALLOW, other, program),
        Verdict::Not(values) => one_of(argument(1), values, REFUSE, ALLOW, program),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel would.
    fn run(program: &[sock_filter], number: u32, arguments: [u32; 2]) -> (u32, usize) {
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
                        offset if offset == argument(0) => arguments[0],
                        offset if offset == argument(1) => arguments[1],
                        _ => unreachable!("not loaded"),
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
            let (verdict, steps) = run(&program, number, [0, 0]);
            most = most.max(steps);
            let listed = ALLOWED.iter().chain(ALLOWED_HERE).any(|&allowed| allowed == c_long::from(number));
            if listed {
                assert_eq!(verdict, ALLOW, "call {number}");
            } else if number > NEWEST {
                assert_eq!(verdict, ABSENT, "call {number}");
            } else {
                let conditional = [libc::SYS_clone, libc::SYS_personality, libc::SYS_socket, libc::SYS_ioctl]
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
            for arguments in [[0, 0], [u32::MAX, u32::MAX]] {
                let verdict = run(&program, number as u32, arguments).0;
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
    fn arguments_decide_where_they_must() {
        let program = filter();
        let of = |number: c_long, arguments| run(&program, number as u32, arguments).0;
        assert_eq!(of(libc::SYS_clone, [(libc::CLONE_VM | libc::CLONE_THREAD) as u32, 0]), ALLOW);
        for flag in [libc::CLONE_NEWUSER, libc::CLONE_NEWNS, libc::CLONE_NEWNET, libc::CLONE_NEWPID] {
            assert_eq!(of(libc::SYS_clone, [flag as u32 | libc::SIGCHLD as u32, 0]), REFUSE);
        }
        assert_eq!(of(libc::SYS_clone3, [0, 0]), ABSENT);
        assert_eq!(of(libc::SYS_socket, [libc::AF_INET as u32, 0]), ALLOW);
        for family in [libc::AF_VSOCK, libc::AF_ALG, libc::AF_PACKET, libc::AF_XDP] {
            assert_eq!(of(libc::SYS_socket, [family as u32, 0]), NO_FAMILY);
        }
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
}
