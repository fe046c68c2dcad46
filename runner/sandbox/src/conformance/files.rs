//! What a function sees: its root, its user, the kernel's interfaces, and what it may write to.

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::{MIB, Outcome, Scratch, Spec, Stop, Subject, expect, fail, left_out, refused, small_root, start};
use crate::{Root, User, sys};

pub async fn the_host_is_read_only_and_homes_are_hidden(subject: Subject<'_>) -> Outcome {
    subject.isolated()?;
    for path in ["/usr/x", "/etc/x", "/x", "/proc/sys/kernel/domainname", "/dev/x", "/usr/bin/env", "/run/x"]
    {
        let out = subject.output("read-only", &["write", path]).await?;
        let refused = [libc::EROFS, libc::EACCES].map(|errno| errno.to_string()).contains(&out);
        expect(refused, || format!("writing {path} answers {out}"))?;
    }
    for path in ["/root", "/home", "/run", "/mnt", "/boot", "/var/lib", "/srv"] {
        let out = subject.output("hidden", &["list", path]).await?;
        expect(out.is_empty() || out == libc::ENOENT.to_string(), || format!("{path} shows {out}"))?;
    }
    let out = subject.output("kcore", &["read", "/proc/kcore"]).await?;
    expect(out.is_empty() || out.parse::<i32>().is_ok(), || "/proc/kcore can be read".to_owned())?;
    let out = subject.output("shadow", &["read", "/etc/shadow"]).await?;
    expect(out.parse::<i32>().is_ok(), || "/etc/shadow can be read".to_owned())?;
    let out = subject.output("null", &["write", "/dev/null"]).await?;
    expect(out == "ok", || format!("/dev/null: {out}"))
}

pub async fn a_directory_is_the_root(subject: Subject<'_>) -> Outcome {
    subject.isolated()?;
    for mount_points in [true, false] {
        let scratch = Scratch::new(&format!("root-{mount_points}"))?;
        let root = small_root(&scratch, subject, mount_points)?;
        let spec = |words: &[&str]| {
            let mut spec = Spec { root: root.clone(), ..subject.spec("root", words) };
            spec.command[0] = "/bin/guest".to_owned();
            spec
        };
        let out = subject.output_of(spec(&["read", "/marker"])).await?;
        expect(out == "of the image", || out)?;
        let out = subject.output_of(spec(&["write", "/new"])).await?;
        subject.read_only(&out)?;
        let out = subject.output_of(spec(&["write", "/tmp/new"])).await?;
        expect(out == "ok", || format!("writing to /tmp answers {out}"))?;
        let out = subject.output_of(spec(&["list", "/usr/bin"])).await?;
        expect(out == libc::ENOENT.to_string(), || format!("the host's /usr/bin is there: {out}"))?;
        let workdir = PathBuf::from("/not/in/the/image");
        refused(subject, Spec { workdir, ..spec(&["exit", "0"]) }, &["/not/in/the/image", "image"]).await?;
    }
    Ok(())
}

pub async fn a_root_that_has_no_place_for_what_is_mounted_is_the_functions_fault(
    subject: Subject<'_>,
) -> Outcome {
    subject.isolated()?;
    for name in ["dev", "proc", "tmp"] {
        for link in [false, true] {
            let scratch = Scratch::new(&format!("place-{name}-{link}"))?;
            let root = small_root(&scratch, subject, false)?;
            let Root::Directory(directory) = &root else { return fail("the root is no directory") };
            match link {
                true => std::os::unix::fs::symlink("bin", directory.join(name))?,
                false => std::fs::write(directory.join(name), "")?,
            }
            let mut spec = Spec { root, ..subject.spec("place", &["exit", "0"]) };
            spec.command[0] = "/bin/guest".to_owned();
            refused(subject, spec, &[&format!("/{name} is a"), "must be a directory"]).await?;
        }
    }
    let scratch = Scratch::new("place-hosts")?;
    let root = small_root(&scratch, subject, true)?;
    std::fs::create_dir_all(scratch.0.join("root/etc/hosts"))?;
    let mut spec = Spec { root, ..subject.spec("place", &["exit", "0"]) };
    spec.command[0] = "/bin/guest".to_owned();
    refused(subject, spec, &["/etc/hosts is a directory", "must be a file"]).await
}

pub async fn a_directory_stands_in_the_place_of_opt(subject: Subject<'_>) -> Outcome {
    let scratch = Scratch::new("opt")?;
    std::fs::write(scratch.0.join("marker"), "of a layer")?;
    let spec = |words: &[&str]| Spec { opt: Some(scratch.0.clone()), ..subject.spec("opt", words) };
    if !subject.claims().isolates {
        // It sees the host's, and nothing else can be had.
        return match subject.driver.create(spec(&["read", "/opt/marker"])).await {
            Err(crate::Error::Unsupported(_)) => Ok(()),
            other => expect(false, || format!("{:?}", other.map(drop))),
        };
    }
    for writable_root in [false, true] {
        let spec = |words: &[&str]| Spec { writable_root, ..spec(words) };
        let out = subject.output_of(spec(&["list", "/opt"])).await?;
        expect(out == "marker", || format!("/opt shows {out}"))?;
        let out = subject.output_of(spec(&["read", "/opt/marker"])).await?;
        expect(out == "of a layer", || out)?;
        let out = subject.output_of(spec(&["write", "/opt/marker"])).await?;
        subject.read_only(&out)?;
    }
    let root = small_root(&scratch, subject, true)?;
    refused(subject, Spec { root, ..spec(&["exit", "0"]) }, &["/opt"]).await?;
    let absent = scratch.0.join("absent");
    refused(subject, Spec { opt: Some(absent), ..spec(&["exit", "0"]) }, &["absent"]).await
}

pub async fn a_writable_root_keeps_writes_private(subject: Subject<'_>) -> Outcome {
    subject.isolated()?;
    let scratch = Scratch::new("writable")?;
    let root = small_root(&scratch, subject, true)?;
    let mut spec = Spec { root, writable_root: true, ..subject.spec("writable", &["write", "/new"]) };
    spec.command[0] = "/bin/guest".to_owned();
    let out = subject.output_of(spec.clone()).await?;
    expect(out == "ok", || format!("writing answers {out}"))?;
    expect(!scratch.0.join("root/new").exists(), || "the image was written to".to_owned())?;
    spec.command[2..].clone_from_slice(&["read".to_owned(), "/new".to_owned()]);
    let out = subject.output_of(spec).await?;
    expect(out == libc::ENOENT.to_string(), || format!("the next one sees it: {out}"))?;
    // The host's directories as well. The guest is not among them, and the programs of the host are.
    let mut spec = Spec { writable_root: true, ..subject.spec("writable-host", &[]) };
    spec.command =
        ["/bin/sh", "-c", "echo mine >/opt/stoker-new && cat /opt/stoker-new"].map(str::to_owned).to_vec();
    if Path::new("/opt").is_dir() {
        let out = subject.output_of(spec).await?;
        expect(out == "mine", || format!("writing to /opt says {out}"))?;
        expect(!Path::new("/opt/stoker-new").exists(), || "the host was written to".to_owned())?;
    }
    Ok(())
}

pub async fn a_writable_root_is_sized(subject: Subject<'_>) -> Outcome {
    subject.isolated()?;
    if !subject.claims().sizes_roots {
        return left_out("the driver claims no bound for what is written to a root");
    }
    let scratch = Scratch::new("writable-sized")?;
    let root = small_root(&scratch, subject, true)?;
    let mut spec = Spec {
        root,
        writable_root: true,
        tmp_size: 4 * MIB,
        user: Some(User { uid: 0, gid: 0 }).filter(|_| subject.claims().hides_root),
        ..subject.spec("writable-fill", &["fill", "/full"])
    };
    spec.command[0] = "/bin/guest".to_owned();
    let out = subject.output_of(spec).await?;
    let (written, errno) = out.split_once(' ').unwrap_or_default();
    expect(errno == libc::ENOSPC.to_string(), || out.clone())?;
    let written: u64 = written.parse().unwrap_or(u64::MAX);
    expect(written <= 4 * MIB, || format!("{written} bytes of {}", 4 * MIB))?;
    expect(!scratch.0.join("root/full").exists(), || "the image was written to".to_owned())
}

pub async fn a_writable_image_gets_its_work_directory(subject: Subject<'_>) -> Outcome {
    subject.isolated()?;
    let scratch = Scratch::new("writable-workdir")?;
    let root = small_root(&scratch, subject, true)?;
    let workdir = PathBuf::from("/not/in/the/image");
    let mut spec = Spec { root, writable_root: true, workdir, ..subject.spec("workdir", &["cwd"]) };
    spec.command[0] = "/bin/guest".to_owned();
    let out = subject.output_of(spec).await?;
    expect(out == "/not/in/the/image", || out)
}

pub async fn a_directory_of_a_writable_image_is_made_anew(subject: Subject<'_>) -> Outcome {
    subject.isolated()?;
    let scratch = Scratch::new("writable-anew")?;
    let root = small_root(&scratch, subject, true)?;
    let old = scratch.0.join("root/around/old");
    std::fs::create_dir_all(&old)?;
    std::fs::write(old.join("was"), "there")?;
    for directory in [&scratch.0.join("root/around"), &old] {
        std::fs::set_permissions(directory, std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
    }
    let mut spec = Spec { root, writable_root: true, ..subject.spec("anew", &["empty-anew", "/around/old"]) };
    spec.command[0] = "/bin/guest".to_owned();
    let out = subject.output_of(spec).await?;
    // What hides the old one is an attribute that a user may set; before 6.6 the memory that layers are made of knew none.
    let root = rustix::process::geteuid().is_root();
    if out == libc::EIO.to_string() && !root && !sys::kernel_is_at_least(6, 6) {
        return left_out("without root this takes Linux 6.6");
    }
    expect(out == "0 left", || out)?;
    expect(old.join("was").exists(), || "the image was written to".to_owned())
}

/// In a file system whose owners this kernel cannot show otherwise: there every file is nobody's.
fn cannot_be_mapped(directory: &Path) -> io::Result<bool> {
    let memory = rustix::fs::statfs(directory)?.f_type == libc::TMPFS_MAGIC;
    Ok(memory && !sys::kernel_is_at_least(6, 3))
}

/// Files of an image belong to several users, and the function is the one that the image names.
pub async fn the_user_of_an_image_is_honoured(subject: Subject<'_>) -> Outcome {
    subject.isolated()?;
    if !subject.claims().chooses_user {
        return left_out("the driver does not claim to choose a user");
    }
    let scratch = Scratch::new("owners")?;
    let root = small_root(&scratch, subject, true)?;
    let own = |name: &str, owner: u32| {
        let path = scratch.0.join("root").join(name);
        std::fs::write(&path, name)?;
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        match std::os::unix::fs::chown(&path, Some(owner), Some(owner)) {
            // Who is not root has only files of his own, and root of a user namespace only those of users that it knows.
            Err(error)
                if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput) =>
            {
                Ok(false)
            }
            done => done.map(|()| true),
        }
    };
    let owned = own("mine", 33)? && own("theirs", 34)? && own("roots", 0)?;
    let run = async |words: &[&str]| {
        let (user, groups) = (Some(User { uid: 33, gid: 44 }), vec![55, 66]);
        let mut spec = Spec { root: root.clone(), user, groups, ..subject.spec("user", words) };
        spec.command[0] = "/bin/guest".to_owned();
        subject.output_of(spec).await
    };
    let out = run(&["ids"]).await?;
    expect(out.starts_with("33 44 "), || format!("user and group {out}"))?;
    let out = run(&["read", "/mine"]).await?;
    if out == libc::EACCES.to_string() && cannot_be_mapped(&scratch.0)? {
        return left_out("files in a tmpfs keep their owners from Linux 6.3 on");
    }
    expect(out == "mine", || format!("its own file reads {out}"))?;
    if !owned {
        return Ok(());
    }
    let out = run(&["status"]).await?;
    let groups = out.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
    // Its first may be among them.
    expect(groups.split_whitespace().filter(|group| *group != "44").eq(["55", "66"]), || {
        format!("its further groups are {groups:?}")
    })?;
    for name in ["/theirs", "/roots"] {
        let out = run(&["read", name]).await?;
        expect(out == libc::EACCES.to_string(), || format!("{name} reads {out}"))?;
    }
    for (name, owner) in [("/mine", "33 33"), ("/theirs", "34 34"), ("/roots", "0 0")] {
        let out = run(&["owner", name]).await?;
        expect(out == owner, || format!("{name} belongs to {out}"))?;
    }
    Ok(())
}

pub async fn root_inside_has_no_power(subject: Subject<'_>) -> Outcome {
    subject.isolated()?;
    if !subject.claims().hides_root {
        return left_out("the driver does not claim to make root inside somebody else");
    }
    let spec = |words: &[&str]| Spec { user: Some(User { uid: 0, gid: 0 }), ..subject.spec("root", words) };
    let out = subject.output_of(spec(&["ids"])).await?;
    expect(out.starts_with("0 0 "), || format!("user and group {out}"))?;
    let out = subject.output_of(spec(&["status"])).await?;
    expect(out.contains("CapEff:\t0000000000000000"), || out)?;
    for path in ["/etc/new", "/proc/sys/kernel/hostname", "/sys/kernel/new"] {
        let out = subject.output_of(spec(&["write", path])).await?;
        expect(out.parse::<i32>().is_ok(), || format!("writing {path} answers {out}"))?;
    }
    let out = subject.output_of(spec(&["read", "/etc/shadow"])).await?;
    expect(out.parse::<i32>().is_ok(), || "/etc/shadow can be read".to_owned())
}

pub async fn names_are_those_of_the_sandbox(subject: Subject<'_>) -> Outcome {
    subject.isolated()?;
    let scratch = Scratch::new("names")?;
    let root = small_root(&scratch, subject, true)?;
    std::fs::create_dir_all(scratch.0.join("root/etc"))?;
    for name in ["hosts", "hostname", "resolv.conf"] {
        std::fs::write(scratch.0.join("root/etc").join(name), "of the image")?;
    }
    for root in [root, Root::Host] {
        let read = async |path: &str| {
            let mut spec = Spec { root: root.clone(), ..subject.spec("names-of-it", &["read", path]) };
            if let Root::Directory(_) = root {
                spec.command[0] = "/bin/guest".to_owned();
            }
            subject.output_of(spec).await
        };
        let out = read("/proc/sys/kernel/hostname").await?;
        expect(out.trim() == "names-of-it", || format!("the host's name is {out:?}"))?;
        let out = read("/etc/hostname").await?;
        expect(out.trim() == "names-of-it", || format!("/etc/hostname says {out:?}"))?;
        let out = read("/etc/hosts").await?;
        let local = |line: &str| line.starts_with("127.0.0.1") && line.contains("localhost");
        expect(out.lines().any(local) && out.contains("names-of-it"), || format!("/etc/hosts says {out:?}"))?;
        let out = read("/etc/resolv.conf").await?;
        expect(!out.contains("of the image") && !out.contains("nameserver"), || {
            format!("/etc/resolv.conf says {out:?}")
        })?;
    }
    Ok(())
}

pub async fn devices_are_the_few_that_programs_expect(subject: Subject<'_>) -> Outcome {
    subject.isolated()?;
    let out = subject.output("dev", &["list", "/dev"]).await?;
    let known = [
        "console", "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin",
        "stdout", "tty", "urandom", "zero",
    ];
    // gVisor's has that of file systems in user space; they are served inside.
    let more = if subject.claims().own_kernel { &["fuse"][..] } else { &[] };
    let strange: Vec<_> = out.lines().filter(|name| !known.contains(name) && !more.contains(name)).collect();
    expect(strange.is_empty(), || format!("/dev has {strange:?}"))?;
    for name in ["fd", "full", "null", "ptmx", "pts", "random", "shm", "urandom", "zero"] {
        expect(out.lines().any(|line| line == name), || format!("/dev has no {name}: {out}"))?;
    }
    let out = subject.output("zero", &["write", "/dev/full"]).await?;
    expect(out == libc::ENOSPC.to_string(), || format!("/dev/full answers {out}"))?;
    let out = subject.output("shm", &["write", "/dev/shm/x"]).await?;
    expect(out == "ok", || format!("/dev/shm answers {out}"))
}

pub async fn terminals_can_be_opened(subject: Subject<'_>) -> Outcome {
    subject.isolated()?;
    let out = subject.output("terminal", &["terminal"]).await?;
    expect(out == "ok /dev/pts/0", || out)
}

/// What the OCI's default hides or protects of `/proc` and `/sys`.
pub async fn kernel_interfaces_are_closed(subject: Subject<'_>) -> Outcome {
    subject.isolated()?;
    for path in ["/proc/acpi", "/proc/asound", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"]
    {
        let out = subject.output("masked", &["list", path]).await?;
        expect(out.is_empty() || out == libc::ENOENT.to_string(), || format!("{path} shows {out}"))?;
    }
    for path in [
        "/proc/interrupts",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/sched_debug",
        "/proc/timer_list",
    ] {
        let out = subject.output("masked", &["read-some", path]).await?;
        expect(out.is_empty() || out.parse::<i32>().is_ok(), || format!("{path} can be read"))?;
    }
    for path in [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/vm/overcommit_memory",
        "/proc/sysrq-trigger",
        "/proc/irq/default_smp_affinity",
        "/sys/kernel/mm/transparent_hugepage/enabled",
        "/sys/power/state",
    ] {
        let out = subject.output("protected", &["write", path]).await?;
        expect(out.parse::<i32>().is_ok(), || format!("writing {path} answers {out}"))?;
    }
    Ok(())
}

pub async fn tmp_is_private_and_sized(subject: Subject<'_>) -> Outcome {
    subject.isolated()?;
    let scratch = Scratch::new("tmp")?;
    let out = subject.output("tmp-list", &["list", "/tmp"]).await?;
    let name = scratch.0.file_name().unwrap_or_default().to_string_lossy();
    expect(!out.contains(&*name), || format!("the host's /tmp is there: {out}"))?;
    let spec = Spec { tmp_size: 4 * MIB, ..subject.spec("tmp-fill", &["fill", "/tmp/full"]) };
    let out = subject.output_of(spec).await?;
    let (written, errno) = out.split_once(' ').unwrap_or_default();
    expect(errno == libc::ENOSPC.to_string(), || out.clone())?;
    let written: u64 = written.parse().unwrap_or(0);
    expect((3 * MIB..=4 * MIB).contains(&written), || format!("{written} bytes of {}", 4 * MIB))?;
    expect(!scratch.0.with_file_name("full").exists(), || "it was written to the host".to_owned())
}

async fn ask(directory: &OwnedFd, name: &str) -> Result<String, Stop> {
    let path = format!("/proc/self/fd/{}/{name}", directory.as_raw_fd());
    let talk = tokio::task::spawn_blocking(move || {
        let mut stream = std::os::unix::net::UnixStream::connect(path)?;
        stream.write_all(b"hello\n")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok::<_, io::Error>(line.trim().to_owned())
    });
    Ok(talk.await.map_err(io::Error::other)??)
}

pub async fn the_shared_directory_connects_both_ways(subject: Subject<'_>) -> Outcome {
    shared_at(subject, "/tmp/iofs").await
}

pub async fn a_shared_directory_outside_tmp_works(subject: Subject<'_>) -> Outcome {
    subject.isolated()?;
    shared_at(subject, "/iofs").await
}

async fn shared_at(subject: Subject<'_>, at: &str) -> Outcome {
    // Where it lies is known only after the creation: the late environment tells, and the guest looks there.
    let spec = Spec { shared: Some(PathBuf::from(at)), ..subject.spec("shared", &["serve", "$AT/socket"]) };
    let sandbox = subject.driver.create(spec.clone()).await?;
    let inside = sandbox.shared().ok_or(Stop::Failed("no shared directory".to_owned()))?.inside.clone();
    let late = vec![("AT".to_owned(), inside.to_string_lossy().into_owned())];
    let mut guest = start(sandbox, late).await?;
    guest.ready().await?;
    let shared = guest.sandbox.shared().ok_or(Stop::Failed("no shared directory".to_owned()))?;
    let answer = ask(&shared.directory, "socket").await?;
    expect(answer == "guest heard hello", || answer)?;
    drop(guest);

    // The other way: the runner listens, the function connects.
    let spec = Spec { shared: Some(PathBuf::from(at)), ..subject.spec("call", &["call", "$AT/socket"]) };
    let sandbox = subject.driver.create(spec).await?;
    let shared = sandbox.shared().ok_or(Stop::Failed("no shared directory".to_owned()))?;
    let path = format!("/proc/self/fd/{}/socket", shared.directory.as_raw_fd());
    let listener = std::os::unix::net::UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
    let answering = tokio::task::spawn_blocking(move || {
        let (mut stream, _) = listener.accept()?;
        stream.write_all(b"from the runner\n")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok::<_, io::Error>(line)
    });
    let inside = shared.inside.to_string_lossy().into_owned();
    let mut guest = start(sandbox, vec![("AT".to_owned(), inside)]).await?;
    let (out, err) = (guest.stdout.rest().await?, guest.stderr.rest().await?);
    expect(out == "from the runner", || format!("{out:?} {err:?}"))?;
    let heard = answering.await.map_err(io::Error::other)??;
    expect(heard == "hello\n", || heard)
}
