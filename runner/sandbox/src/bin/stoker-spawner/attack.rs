//! What a function must not be able to do, tried. Every try prints what it was and the error number, or `ok` if it succeeded.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use stoker_sandbox::conformance::calls::{DENIED, DENIED_BY_US, DENIED_HERE};

use super::{outcome, pause, say};

/// Tries all of one kind.
pub fn one(what: &str) -> io::Result<()> {
    match what {
        "mount" => mount(),
        "namespaces" => namespaces(),
        "root" => root(),
        "calls" => calls(),
        "init" => init(),
        "trace" => trace(),
        "raw-sockets" => raw_sockets(),
        "network" => network(),
        "devices" => devices(),
        "settings" => settings(),
        "secrets" => secrets(),
        "keyring" => keyring(),
        "kernel-code" => kernel_code(),
        "cgroups" => cgroups(),
        "limits" => limits(),
        "huge-pages" => huge_pages(),
        "terminal" => terminal(),
        "program" => program(),
        "personality" => call("personality no-randomize", libc::SYS_personality, [0x0004_0000, 0, 0, 0, 0]),
        "x32" => call("x32", 0x4000_0000 | libc::SYS_getppid, [0; 5]),
        "int80" => int80(),
        "neighbour" => neighbour(),
        other => Err(io::Error::other(format!("unknown attack {other:?}"))),
    }
}

/// Makes a system call and says what came of it.
fn call(name: &str, number: libc::c_long, arguments: [usize; 5]) -> io::Result<()> {
    let [a, b, c, d, e] = arguments;
    // SAFETY: every one of these is expected to be refused; were it not, its arguments are integers, null, or strings that
    // outlive the call.
    let result = unsafe { libc::syscall(number, a, b, c, d, e) };
    let error = io::Error::last_os_error();
    say(format_args!(
        "{name} {}",
        if result < 0 { error.raw_os_error().unwrap_or(0).to_string() } else { "ok".to_owned() }
    ))
}

fn tried<T>(name: &str, result: io::Result<T>) -> io::Result<()> {
    say(format_args!("{name} {}", outcome(result)))
}

fn text(text: &str) -> CString {
    CString::new(text).unwrap_or_default()
}

fn mount() -> io::Result<()> {
    let (kind, source, target) = (text("tmpfs"), text("none"), text("/tmp"));
    let [kind, source, target] = [&kind, &source, &target].map(|text| text.as_ptr() as usize);
    let remount = (libc::MS_REMOUNT | libc::MS_BIND) as usize;
    call("mount tmpfs", libc::SYS_mount, [source, target, kind, 0, 0])?;
    call(
        "mount --bind /",
        libc::SYS_mount,
        [text("/").as_ptr() as usize, target, kind, libc::MS_BIND as usize, 0],
    )?;
    let root = text("/");
    call("remount / writable", libc::SYS_mount, [source, root.as_ptr() as usize, kind, remount, 0])?;
    let sys = text("/proc/sys");
    call(
        "unmount /proc/sys",
        libc::SYS_umount2,
        [sys.as_ptr() as usize, libc::MNT_DETACH as usize, 0, 0, 0],
    )?;
    call("fsopen tmpfs", libc::SYS_fsopen, [kind, 0, 0, 0, 0])?;
    call("open_tree /", libc::SYS_open_tree, [libc::AT_FDCWD as usize, root.as_ptr() as usize, 1, 0, 0])
}

fn namespaces() -> io::Result<()> {
    for (name, flag) in [
        ("user", libc::CLONE_NEWUSER),
        ("mount", libc::CLONE_NEWNS),
        ("pid", libc::CLONE_NEWPID),
        ("network", libc::CLONE_NEWNET),
        ("ipc", libc::CLONE_NEWIPC),
        ("uts", libc::CLONE_NEWUTS),
        ("cgroup", libc::CLONE_NEWCGROUP),
    ] {
        call(&format!("unshare {name}"), libc::SYS_unshare, [flag as usize, 0, 0, 0, 0])?;
        let flags = flag as usize | libc::SIGCHLD as usize;
        // SAFETY: expected to be refused; else it is a fork, whose child ends at once.
        let result = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
        let error = io::Error::last_os_error();
        match result {
            0 => std::process::exit(0),
            -1 => tried::<()>(&format!("clone {name}"), Err(error))?,
            _ => tried(&format!("clone {name}"), Ok(()))?,
        }
    }
    for name in ["mnt", "net", "pid", "user"] {
        let opened = fs::File::open(format!("/proc/1/ns/{name}"));
        match opened {
            Ok(file) => {
                use std::os::fd::AsRawFd;
                call(&format!("setns {name}"), libc::SYS_setns, [file.as_raw_fd() as usize, 0, 0, 0, 0])?;
            }
            error => tried(&format!("open the init's {name}"), error)?,
        }
    }
    Ok(())
}

fn root() -> io::Result<()> {
    let tmp = text("/tmp");
    let at = tmp.as_ptr() as usize;
    call("chroot", libc::SYS_chroot, [at, 0, 0, 0, 0])?;
    call("pivot_root", libc::SYS_pivot_root, [at, at, 0, 0, 0])?;
    for path in ["/new", "/bin/new", "/usr/new", "/etc/new"] {
        tried(&format!("write {path}"), fs::write(path, "x"))?;
    }
    Ok(())
}

fn calls() -> io::Result<()> {
    for &(name, number) in DENIED.iter().chain(DENIED_HERE).chain(DENIED_BY_US) {
        call(name, number, [0; 5])?;
    }
    Ok(())
}

fn init() -> io::Result<()> {
    for name in ["environ", "mem", "maps", "auxv", "pagemap", "syscall"] {
        tried(&format!("read /proc/1/{name}"), fs::read(format!("/proc/1/{name}")))?;
    }
    for name in ["exe", "root", "cwd"] {
        tried(&format!("follow /proc/1/{name}"), fs::read_link(format!("/proc/1/{name}")))?;
    }
    tried("list /proc/1/fd", fs::read_dir("/proc/1/fd"))?;
    tried("write /proc/1/mem", fs::File::options().write(true).open("/proc/1/mem"))?;
    tried("write /proc/1/oom_score_adj", fs::write("/proc/1/oom_score_adj", "-1000"))
}

fn trace() -> io::Result<()> {
    for (name, request) in [("attach", libc::PTRACE_ATTACH), ("seize", libc::PTRACE_SEIZE)] {
        call(&format!("ptrace {name}"), libc::SYS_ptrace, [request as usize, 1, 0, 0, 0])?;
    }
    call("ptrace traceme", libc::SYS_ptrace, [libc::PTRACE_TRACEME as usize, 0, 0, 0, 0])?;
    call("process_vm_readv", libc::SYS_process_vm_readv, [1, 0, 0, 0, 0])?;
    call("process_vm_writev", libc::SYS_process_vm_writev, [1, 0, 0, 0, 0])?;
    call("kcmp", libc::SYS_kcmp, [1, 1, 0, 0, 0])
}

fn raw_sockets() -> io::Result<()> {
    let kinds = [
        ("packet", libc::AF_PACKET, libc::SOCK_RAW),
        ("raw icmp", libc::AF_INET, libc::SOCK_RAW),
        ("raw icmp6", libc::AF_INET6, libc::SOCK_RAW),
        ("vsock", libc::AF_VSOCK, libc::SOCK_STREAM),
        ("crypto", libc::AF_ALG, libc::SOCK_SEQPACKET),
        ("xdp", libc::AF_XDP, libc::SOCK_RAW),
        ("bluetooth", libc::AF_BLUETOOTH, libc::SOCK_RAW),
        ("can", libc::AF_CAN, libc::SOCK_RAW),
        ("sctp", libc::AF_INET, libc::SOCK_SEQPACKET),
        ("dccp", libc::AF_INET, libc::SOCK_DCCP),
    ];
    // What has a protocol of its own: events of devices and others, and tunnels.
    for (name, family, protocol) in [
        ("netlink audit", libc::AF_NETLINK, libc::NETLINK_AUDIT),
        ("netlink events", libc::AF_NETLINK, libc::NETLINK_KOBJECT_UEVENT),
        ("netlink firewall", libc::AF_NETLINK, libc::NETLINK_NETFILTER),
        ("netlink generic", libc::AF_NETLINK, libc::NETLINK_GENERIC),
        ("l2tp", libc::AF_INET, 115),
    ] {
        let arguments = [family as usize, libc::SOCK_DGRAM as usize, protocol as usize, 0, 0];
        call(&format!("socket {name}"), libc::SYS_socket, arguments)?;
    }
    // Two of them at once, of families that none is had of alone.
    for (name, family) in [("tipc", libc::AF_TIPC), ("vsock", libc::AF_VSOCK)] {
        let mut pair = [0_i32; 2];
        let place = pair.as_mut_ptr() as usize;
        let arguments = [family as usize, libc::SOCK_STREAM as usize, 0, place, 0];
        call(&format!("socket pair {name}"), libc::SYS_socketpair, arguments)?;
    }
    for (name, family, kind) in kinds {
        let protocol = if (family, kind) == (libc::AF_INET, libc::SOCK_RAW) { libc::IPPROTO_ICMP } else { 0 };
        call(
            &format!("socket {name}"),
            libc::SYS_socket,
            [family as usize, kind as usize, protocol as usize, 0, 0],
        )?;
    }
    Ok(())
}

fn network() -> io::Result<()> {
    // SAFETY: makes a descriptor that stays open; the request is a full `ifreq` that outlives the call.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        let result = libc::ioctl(socket, libc::SIOCSIFFLAGS as _, &raw const request);
        let error = io::Error::last_os_error();
        tried("take loopback down", if result < 0 { Err(error) } else { Ok(()) })?;
    }
    tried("forward packets", fs::write("/proc/sys/net/ipv4/ip_forward", "1"))?;
    tried("open /dev/net/tun", fs::File::open("/dev/net/tun"))
}

fn devices() -> io::Result<()> {
    for (name, kind, major, minor) in [
        ("disk", libc::S_IFBLK, 8, 0),
        ("memory", libc::S_IFCHR, 1, 1),
        ("kernel log", libc::S_IFCHR, 1, 11),
        ("fuse", libc::S_IFCHR, 10, 229),
        ("null", libc::S_IFCHR, 1, 3),
    ] {
        let path = text("/tmp/device");
        // SAFETY: the path outlives the call.
        let made = unsafe { libc::mknod(path.as_ptr(), kind | 0o666, libc::makedev(major, minor)) };
        let error = io::Error::last_os_error();
        if made < 0 {
            tried::<()>(&format!("make {name}"), Err(error))?;
        } else {
            tried(&format!("open {name}"), fs::File::open("/tmp/device"))?;
            fs::remove_file("/tmp/device")?;
        }
    }
    for path in [
        "/dev/mem",
        "/dev/kmem",
        "/dev/kmsg",
        "/dev/sda",
        "/dev/vda",
        "/dev/fuse",
        "/dev/kvm",
        "/dev/loop-control",
    ] {
        tried(&format!("open {path}"), fs::File::open(path))?;
    }
    Ok(())
}

fn settings() -> io::Result<()> {
    for path in [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/kernel/hostname",
        "/proc/sys/vm/panic_on_oom",
        "/proc/sys/net/ipv4/ip_unprivileged_port_start",
        "/proc/sys/fs/binfmt_misc/register",
        "/proc/sysrq-trigger",
        "/proc/irq/default_smp_affinity",
        "/sys/kernel/uevent_helper",
        "/sys/kernel/mm/transparent_hugepage/enabled",
        "/sys/power/state",
        "/sys/fs/cgroup/release_agent",
    ] {
        tried(&format!("write {path}"), fs::File::options().write(true).open(path))?;
    }
    Ok(())
}

fn secrets() -> io::Result<()> {
    let size = 16_usize;
    call("syslog", libc::SYS_syslog, [3, 0, size, 0, 0])?;
    for path in [
        "/etc/shadow",
        "/root/.ssh",
        "/proc/kcore",
        "/proc/kallsyms",
        "/proc/kpagecount",
        "/proc/vmallocinfo",
        "/proc/slabinfo",
        "/sys/kernel/debug/x",
    ] {
        let opened = fs::File::open(path);
        // What is masked opens, and is empty.
        let masked = opened.as_ref().is_ok_and(|file| {
            use std::io::Read;
            file.take(1).read(&mut [0]).is_ok_and(|length| length == 0)
        });
        tried(
            &format!("read {path}"),
            if masked { Err(io::Error::from_raw_os_error(libc::ENOENT)) } else { opened },
        )?;
    }
    Ok(())
}

fn keyring() -> io::Result<()> {
    let (kind, name) = (text("user"), text("stoker"));
    let [kind, name] = [&kind, &name].map(|text| text.as_ptr() as usize);
    let session = -3_isize as usize;
    call("add_key", libc::SYS_add_key, [kind, name, name, 6, session])?;
    call("request_key", libc::SYS_request_key, [kind, name, 0, session, 0])?;
    call("keyctl", libc::SYS_keyctl, [0, session, 0, 0, 0])?;
    tried(
        "list /proc/keys",
        match fs::read("/proc/keys") {
            Ok(text) if text.is_empty() => Err(io::Error::from_raw_os_error(libc::ENOENT)),
            other => other,
        },
    )
}

fn kernel_code() -> io::Result<()> {
    for (name, number) in [
        ("bpf", libc::SYS_bpf),
        ("perf_event_open", libc::SYS_perf_event_open),
        ("io_uring_setup", libc::SYS_io_uring_setup),
        ("userfaultfd", libc::SYS_userfaultfd),
        ("init_module", libc::SYS_init_module),
        ("finit_module", libc::SYS_finit_module),
        ("kexec_load", libc::SYS_kexec_load),
    ] {
        call(name, number, [1, 0, 0, 0, 0])?;
    }
    Ok(())
}

fn cgroups() -> io::Result<()> {
    let (kind, target) = (text("cgroup2"), text("/tmp"));
    let [kind, target] = [&kind, &target].map(|text| text.as_ptr() as usize);
    call("mount cgroup2", libc::SYS_mount, [kind, target, kind, 0, 0])?;
    for directory in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/memory"] {
        tried(&format!("make a cgroup in {directory}"), fs::create_dir(format!("{directory}/escape")))?;
        tried(&format!("leave for {directory}"), fs::write(format!("{directory}/cgroup.procs"), "0"))?;
        for file in ["notify_on_release", "memory.max", "pids.max"] {
            tried(
                &format!("write {directory}/{file}"),
                fs::File::options().write(true).open(format!("{directory}/{file}")),
            )?;
        }
    }
    Ok(())
}

fn limits() -> io::Result<()> {
    for (name, resource) in [
        ("open files", libc::RLIMIT_NOFILE),
        ("core", libc::RLIMIT_CORE),
        ("locked memory", libc::RLIMIT_MEMLOCK),
    ] {
        let all = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
        // SAFETY: the limit outlives the call.
        let result = unsafe { libc::setrlimit(resource, &raw const all) };
        let error = io::Error::last_os_error();
        let unchanged = resource == libc::RLIMIT_CORE && core_size() <= 1;
        tried(
            &format!("raise {name}"),
            match result {
                0 if unchanged => Err(io::Error::from_raw_os_error(libc::EPERM)),
                0 => Ok(()),
                _ => Err(error),
            },
        )?;
    }
    // At zero, unlike at one byte, the host's own program would be given what is left of a dead process.
    let before = core_size();
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the limits outlive the calls.
    unsafe {
        libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
        libc::syscall(libc::SYS_setrlimit, libc::RLIMIT_CORE, &raw const none);
    }
    let lowered = before > 0 && core_size() == 0;
    tried(
        "have its memory dumped to a program of the host's",
        if lowered { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EPERM)) },
    )?;
    tried("be spared when memory is short", fs::write("/proc/self/oom_score_adj", "-500"))?;
    // SAFETY: both only ask for a priority.
    unsafe {
        *libc::__errno_location() = 0;
        let result = libc::setpriority(libc::PRIO_PROCESS, 0, -10);
        let error = io::Error::last_os_error();
        tried("be nicer to oneself", if result < 0 { Err(error) } else { Ok(()) })?;
        let parameter = libc::sched_param { sched_priority: 50 };
        let result = libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameter);
        let error = io::Error::last_os_error();
        tried("sched first in first out", if result < 0 { Err(error) } else { Ok(()) })
    }
}

fn huge_pages() -> io::Result<()> {
    let size = 2 << 20;
    // What is not reserved is to be had where the host keeps none, too: so the filter is what is tried.
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | libc::MAP_NORESERVE;
    // SAFETY: a new mapping, which nobody touches.
    let mapped = unsafe { libc::mmap(std::ptr::null_mut(), size, libc::PROT_READ, flags, -1, 0) };
    let error = io::Error::last_os_error();
    tried("map huge pages", if mapped == libc::MAP_FAILED { Err(error) } else { Ok(()) })?;
    let name = text("huge");
    let file = [name.as_ptr() as usize, libc::MFD_HUGETLB as usize, 0, 0, 0];
    call("make a file of huge pages", libc::SYS_memfd_create, file)?;
    let segment = (libc::IPC_CREAT | libc::SHM_HUGETLB | 0o600) as usize;
    call("make a segment of huge pages", libc::SYS_shmget, [libc::IPC_PRIVATE as usize, size, segment, 0, 0])
}

fn core_size() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the limit outlives the call.
    unsafe { libc::getrlimit(libc::RLIMIT_CORE, &raw mut limit) };
    limit.rlim_cur
}

fn terminal() -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let (main, name) = super::files::terminal()?;
    let other = fs::File::options().read(true).write(true).custom_flags(libc::O_NOCTTY).open(name)?;
    for request in [libc::TIOCSTI, 0x541c] {
        let byte = b'x';
        // SAFETY: expected to be refused; else it reads one byte that outlives the call.
        let result = unsafe { libc::ioctl(other.as_raw_fd(), request as _, &raw const byte) };
        let error = io::Error::last_os_error();
        tried(&format!("terminal {request:x}"), if result < 0 { Err(error) } else { Ok(()) })?;
    }
    drop(main);
    Ok(())
}

fn program() -> io::Result<()> {
    let own = std::env::current_exe()?;
    for path in [own.as_path(), Path::new("/proc/self/exe"), Path::new("/proc/1/exe"), Path::new("/bin/sh")] {
        let opened = fs::File::options().write(true).open(path);
        tried(&format!("program {} opened for writing", path.display()), opened)?;
        tried(
            &format!("program {} made writable", path.display()),
            fs::set_permissions(path, fs::Permissions::from_mode(0o777)),
        )?;
    }
    Ok(())
}

#[cfg(target_arch = "x86_64")]
fn int80() -> io::Result<()> {
    let result: i64;
    // SAFETY: the 32-bit call 64 (getppid) touches no memory. The kernel may change r8 to r11.
    unsafe {
        std::arch::asm!(
            "int 0x80",
            inlateout("rax") 64_i64 => result,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    let answer = -(result as i32);
    say(format_args!("int80 {}", if answer > 0 { answer.to_string() } else { "ok".to_owned() }))
}

#[cfg(not(target_arch = "x86_64"))]
fn int80() -> io::Result<()> {
    Err(io::Error::other("this architecture has no such door"))
}

/// Searches all that it can read for a neighbour's secret.
fn neighbour() -> io::Result<()> {
    const SECRET: &[u8] = b"the-secret-of-a-neighbour";
    let holds = |path: &Path| {
        let found = fs::read(path).unwrap_or_default();
        found.windows(SECRET.len()).any(|part| part == SECRET)
    };
    for place in ["/tmp/secret", "/tmp/shared/secret", "/dev/shm/secret", "/shared/secret"] {
        if holds(Path::new(place)) {
            return say(place);
        }
    }
    for entry in fs::read_dir("/proc")?.flatten() {
        for file in ["environ", "cmdline", "root/tmp/secret", "root/dev/shm/secret", "cwd/secret"] {
            let path = entry.path().join(file);
            if path.starts_with("/proc/self") || path.starts_with("/proc/thread-self") {
                continue;
            }
            if holds(&path) {
                return say(path.display());
            }
        }
    }
    say("searched")
}

/// Kills all it can, and says that it still lives itself.
pub fn signals(runner: i32) -> io::Result<()> {
    // SAFETY: signals touch no memory. Our own is blocked for the sweep's sake: -1 leaves out the caller.
    unsafe {
        for process in [-1, 1, runner, 2, 3] {
            if process != libc::getpid() {
                libc::kill(process, libc::SIGKILL);
                libc::kill(process, libc::SIGSTOP);
            }
        }
    }
    say("still here")?;
    pause()
}

/// Asks for a memory segment of the host.
pub fn segment(key: i32) -> io::Result<()> {
    // SAFETY: asks, and maps nothing.
    let id = unsafe { libc::shmget(key, 0, 0) };
    let error = io::Error::last_os_error();
    say(outcome(if id < 0 { Err(error) } else { Ok(()) }))
}
