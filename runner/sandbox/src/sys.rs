//! The system calls that no safe crate offers, each behind a small safe function.
//!
//! Everything unsafe of this crate that is not one of these few calls would be a mistake, so it lives here and nowhere else.

#![expect(unsafe_code, reason = "raw system calls; every block says why it is sound")]

use std::ffi::{CStr, CString};
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use rustix::process::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `CLONE_INTO_CGROUP`, absent from `libc` on some targets.
const INTO_CGROUP: u64 = 0x2_0000_0000;

/// Which side of a [`clone`] this is.
pub enum Side {
    Child,
    Parent { pid: Pid, pidfd: OwnedFd },
}

/// Copies this process (`clone3`, no shared memory), optionally straight into a cgroup v2 directory.
///
/// # Errors
/// What `clone3` says.
pub fn clone(namespaces: libc::c_int, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Side> {
    // SAFETY: all-zero is the documented "nothing asked for" of this plain struct of integers.
    let mut args: libc::clone_args = unsafe { mem::zeroed() };
    let mut pidfd: libc::c_int = -1;
    args.flags = namespaces as u64 | libc::CLONE_PIDFD as u64;
    args.pidfd = ptr::from_mut(&mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(directory) = cgroup {
        args.flags |= INTO_CGROUP;
        args.cgroup = directory.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM the child gets its own copy of the memory, like fork; callers are single-threaded
    // processes (the spawner and the inits it made), so the child may go on with ordinary code. `args` outlives the call.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Side::Child),
        pid => {
            let pid = Pid::from_raw(pid as i32)
                .ok_or_else(|| io::Error::other("clone3 gave an impossible process id"))?;
            // SAFETY: on success the kernel stored a new descriptor there, and nobody else knows it.
            Ok(Side::Parent { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })
        }
    }
}

/// Copies this process in the way that every engine's own filter of system calls lets through. `None` in the child.
///
/// # Errors
/// What `fork` says.
pub fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: called by the single-threaded init of a container only, so the child may go on with ordinary code.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(Pid::from_raw(pid)),
    }
}

/// Copies this process into a child of its parent's. `None` in the copy.
///
/// # Errors
/// What `clone` says.
pub fn sibling() -> io::Result<Option<Pid>> {
    let (flags, none) = ((libc::CLONE_PARENT | libc::SIGCHLD) as libc::c_ulong, 0 as libc::c_ulong);
    // SAFETY: without CLONE_VM the copy gets its own memory, like fork; the caller is a single-threaded zygote, so it may go on
    // with ordinary code.
    match unsafe { libc::syscall(libc::SYS_clone, flags, none, none, none, none) } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(Pid::from_raw(pid as i32)),
    }
}

/// Ends this process at once: no destructors, no buffers, no handlers. The only way out of a cloned child.
pub fn exit(code: i32) -> ! {
    // SAFETY: `_exit` has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Leaves the namespaces named by `flags` for new ones.
///
/// # Errors
/// What `unshare` says.
pub fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: only namespace flags are passed by callers; none of them touches memory or descriptors.
    check(unsafe { libc::unshare(flags) })
}

/// Attributes of a mount (`mount_setattr`).
#[derive(Clone, Copy, Default)]
pub struct MountAttributes {
    pub set: u64,
    pub propagation: u64,
    pub recursive: bool,
}

/// Changes the attributes of the mount at `directory` itself; `users` is the user namespace that an id-mapped one is mapped by.
///
/// # Errors
/// What `mount_setattr` says.
pub fn mount_setattr(
    directory: BorrowedFd<'_>,
    attributes: MountAttributes,
    users: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        set: u64,
        clear: u64,
        propagation: u64,
        userns: u64,
    }
    let userns = users.map_or(0, |users| users.as_raw_fd() as u64);
    let attr = Attr { set: attributes.set, clear: 0, propagation: attributes.propagation, userns };
    let mut flags = libc::AT_EMPTY_PATH;
    if attributes.recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path is a static C string, `attr` has the layout and the size told to the kernel and outlives the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            directory.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<Attr>(),
        ) as libc::c_int
    })
}

/// Installs a seccomp filter on this (single-threaded) process. `no_new_privs` must be set.
///
/// # Errors
/// What `seccomp` says.
pub fn install_filter(program: &[libc::sock_filter]) -> io::Result<()> {
    let length = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    // SAFETY: the kernel copies the program of the given length and does not write to it.
    check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) as libc::c_int
    })
}

/// Replaces this process. Returns only the reason why not.
pub fn execve(program: &CStr, arguments: &[CString], environment: &[CString]) -> io::Error {
    let list = |strings: &[CString]| {
        strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect::<Vec<_>>()
    };
    let (arguments, environment) = (list(arguments), list(environment));
    // SAFETY: both lists end with null and point at strings that outlive the call.
    unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

/// Sends `signal` to every process of this pid namespace but the caller. For the first process of one.
///
/// # Errors
/// `ESRCH` when there is no other, else what `kill` says.
pub fn kill_all(signal: libc::c_int) -> io::Result<()> {
    // SAFETY: `kill` touches no memory of ours.
    check(unsafe { libc::kill(-1, signal) })
}

/// Every signal back to its default action. What is blocked stays so.
pub fn default_actions() {
    // The kernel's own form, longer than it is anywhere: the default action, no flags, an empty mask. By the kernel, since the C library's call refuses
    // its own two signals, which its `posix_spawn` leaves ignored in whatever it starts, our spawner too.
    let default = [0_u64; 8];
    for signal in 1..=64 {
        // SAFETY: the kernel reads from `default`, and writes nothing. Refused for SIGKILL and SIGSTOP, which is fine.
        unsafe {
            let none = ptr::null_mut::<libc::c_void>();
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), none, size_of::<u64>())
        };
    }
}

/// No signal blocked.
pub fn unblock_signals() {
    // SAFETY: an all-zero set is initialised by sigemptyset before it is used.
    unsafe {
        let mut none: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
    }
}

/// Ignores `signals` in this process and in what it clones, until [`default_actions`].
pub fn ignore_signals(signals: &[libc::c_int]) {
    for &signal in signals {
        // SAFETY: SIG_IGN installs no code of ours.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Has `signals` do again what they do with a program that has just been started.
pub fn default_signals(signals: &[libc::c_int]) {
    for &signal in signals {
        // SAFETY: SIG_DFL installs no code of ours.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Blocks `signals` and returns a descriptor that becomes readable when one arrives.
///
/// # Errors
/// What `sigprocmask` and `signalfd` say.
pub fn signal_descriptor(signals: &[libc::c_int]) -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset before it is used, and outlives the calls; the new descriptor is ours.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for &signal in signals {
            libc::sigaddset(&raw mut set, signal);
        }
        check(libc::sigprocmask(libc::SIG_SETMASK, &raw const set, ptr::null_mut()))?;
        let descriptor = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        check(descriptor)?;
        Ok(OwnedFd::from_raw_fd(descriptor))
    }
}

/// The next signal of a [`signal_descriptor`], if one is pending.
pub fn next_signal(descriptor: BorrowedFd<'_>) -> Option<libc::c_int> {
    let mut record = [0_u8; size_of::<libc::signalfd_siginfo>()];
    match rustix::io::read(descriptor, &mut record[..]) {
        // The signal number is the first field, 32 bits wide.
        Ok(length) if length == record.len() => {
            Some(i32::from_ne_bytes([record[0], record[1], record[2], record[3]]))
        }
        _ => None,
    }
}

/// Sets an interface of the current network namespace up.
///
/// # Errors
/// What `ioctl(SIOCSIFFLAGS)` says.
pub fn interface_up(name: &CStr) -> io::Result<()> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: all-zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.to_bytes()).take(libc::IFNAMSIZ - 1) {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: `request` is a full `ifreq`, as this request reads, and outlives the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) })
}

/// Makes a descriptor of the tunnel device an interface of the current network namespace, which passes bare IP packets.
///
/// # Errors
/// What `ioctl(TUNSETIFF)` says.
pub fn make_tunnel(device: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    // SAFETY: all-zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.to_bytes()).take(libc::IFNAMSIZ - 1) {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: `request` is a full `ifreq`, as this request reads and writes, and outlives the call.
    check(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) })
}

/// Closes every descriptor from `first` on.
pub fn close_from(first: u32) {
    // SAFETY: callers own every descriptor at and above `first` by value nowhere else: the cloned child is about to run on
    // copies that it must not have, and never runs destructors.
    unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
}

/// Marks every descriptor from `first` on to be closed by `exec`.
pub fn close_from_on_exec(first: u32) {
    // SAFETY: setting a flag on descriptors invalidates none.
    unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
}

/// Makes `descriptor` available under the number `number`, also after an `exec`.
///
/// # Errors
/// What `dup2` says.
pub fn place(descriptor: BorrowedFd<'_>, number: i32) -> io::Result<()> {
    // SAFETY: callers name a number that no owned descriptor of the process uses, or 0, 1, 2 that nothing owns.
    check(unsafe { libc::dup2(descriptor.as_raw_fd(), number) })
}

/// Takes ownership of a descriptor that was [`place`]d.
pub fn adopt(number: i32) -> OwnedFd {
    // SAFETY: called once per placed number, by the code that placed it.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Takes ownership of a descriptor that the process's former program has left open, and has the next one not inherit it by accident.
///
/// # Errors
/// When there is none of this number.
pub fn inherit(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: only asks the kernel to change a mark on whatever has this number.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: it is open, and callers name numbers that were left to this program, once each, before it has opened any itself.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A soft and hard limit alike: `value`, or the hard limit that is there where that is lower and may not be raised. A runner that has
/// less itself gives its functions less.
///
/// # Errors
/// What `setrlimit` says.
pub fn limit(resource: Limit, value: u64) -> io::Result<()> {
    let resource = match resource {
        Limit::OpenFiles => libc::RLIMIT_NOFILE,
        Limit::Core => libc::RLIMIT_CORE,
        Limit::LockedMemory => libc::RLIMIT_MEMLOCK,
        Limit::Processes => libc::RLIMIT_NPROC,
        Limit::Data => libc::RLIMIT_DATA,
    };
    let set = |value| {
        let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
        // SAFETY: `limit` outlives the call.
        check(unsafe { libc::setrlimit(resource, &raw const limit) })
    };
    match set(value) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            let mut there = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: `there` outlives the call, which writes nothing but it.
            check(unsafe { libc::getrlimit(resource, &raw mut there) })?;
            set(there.rlim_max)
        }
        result => result,
    }
}

/// What [`limit`] limits.
#[derive(Clone, Copy)]
pub enum Limit {
    OpenFiles,
    Core,
    LockedMemory,
    Processes,
    Data,
}

/// Closes the ways by which capabilities come back: the bounding and ambient sets, and the secure bits, locked. While
/// still privileged: a change of user takes the right to do it.
pub fn close_capabilities() {
    /// NOROOT, NO_SETUID_FIXUP and NO_CAP_AMBIENT_RAISE, each with its lock, and the lock of KEEP_CAPS.
    const SECURE_BITS: libc::c_ulong = 0b1110_1111;
    // SAFETY: prctl with integers only.
    unsafe {
        let mut capability: libc::c_ulong = 0;
        // Ends at the first number that the kernel does not know.
        while libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) == 0 {
            capability += 1;
        }
        libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
        libc::prctl(libc::PR_SET_SECUREBITS, SECURE_BITS, 0, 0, 0);
    }
}

/// Gives every capability up: inheritable, permitted, effective.
///
/// # Errors
/// What `capset` says.
pub fn drop_capabilities() -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: libc::c_int,
    }
    #[repr(C)]
    #[derive(Default, Clone, Copy)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let mut header = Header { version: 0x2008_0522, pid: 0 };
    let data = [Data::default(); 2];
    // SAFETY: capset reads one header and two data records, which is what version 3 means.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) as libc::c_int })
}

/// Has the runtime watch a descriptor.
///
/// # Errors
/// What `epoll` says.
pub fn watch(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` keeps its one descriptor open until it is dropped, and nobody replaces it behind the runtime.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, interest) }?)
}

/// Whether Linux is of this version or a later one. What does not say a version is of the first.
#[must_use]
pub fn kernel_is_at_least(major: u32, minor: u32) -> bool {
    let system = rustix::system::uname();
    let mut numbers = system.release().to_str().unwrap_or_default().split(['.', '-']).map(str::parse::<u32>);
    let mut next = || numbers.next().and_then(Result::ok).unwrap_or(0);
    (next(), next()) >= (major, minor)
}

/// A System V memory segment of this process's namespace, for tests of what others see of it.
pub struct Segment(libc::c_int);

impl Segment {
    /// # Errors
    /// What `shmget` says.
    pub fn new(key: i32) -> io::Result<Self> {
        // SAFETY: makes a segment, and maps nothing.
        let id = unsafe { libc::shmget(key, 4096, libc::IPC_CREAT | libc::IPC_EXCL | 0o666) };
        check(id)?;
        Ok(Self(id))
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: removes what nobody has mapped.
        unsafe { libc::shmctl(self.0, libc::IPC_RMID, ptr::null_mut()) };
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
