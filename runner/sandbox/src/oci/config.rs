//! The bundle of a container: its `config.json`, with the same hardening as a native sandbox has.
//!
//! One thing is not in it: the filter of system calls. Our init installs the one of native sandboxes before the function runs, which
//! needs no help of a runtime, and is installed in a fraction of a millisecond where runtimes take several to compile theirs.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::gvisor;
use crate::cgroup::PERIOD_MICROS;
use crate::contained::view::{Mount, View};
use crate::contained::{DOOR, OOM_SCORE, PROGRAM, Program};
use crate::init::mounts::{MASKED, MASKED_SYSTEM, PROTECTED, SHARED_SIZE, SHM_SIZE, inodes};
use crate::init::{LOCKED_MEMORY, core_size};
use crate::{Network, Spec, User};

/// What a bundle is made from, besides the [`Spec`].
pub struct Parts<'a> {
    pub spec: &'a Spec,
    pub view: &'a View,
    pub user: User,
    /// Further groups of it.
    pub groups: &'a [u32],
    pub bundle: &'a Path,
    /// What the runtime takes for the root.
    pub root: &'a Path,
    /// The root can be written to.
    pub writable: bool,
    /// The root has a place for `/sys`.
    pub system: bool,
    /// Where directories with a private layer are mounted, as the view names them.
    pub layers: &'a [(PathBuf, PathBuf)],
    pub program: &'a Program,
    pub door: &'a Path,
    pub cgroup: &'a Path,
    /// Swap is accounted for, and can be refused.
    pub swap: bool,
    /// The container has a kernel of its own.
    pub own_kernel: bool,
}

/// The file of the bundle that has the content of the view's mount of this number.
pub fn text(bundle: &Path, number: usize) -> PathBuf {
    bundle.join(format!("text-{number}"))
}

/// The directory of the bundle that is the shared one of a container with a kernel of its own.
pub fn shared(bundle: &Path) -> PathBuf {
    bundle.join("shared")
}

/// The `config.json`.
pub fn config(parts: &Parts<'_>) -> Value {
    let spec = parts.spec;
    let user = json!({"uid": parts.user.uid, "gid": parts.user.gid, "additionalGids": parts.groups});
    let limit = |name: &str, value: u64| json!({"type": name, "hard": value, "soft": value});
    let none: [&str; 0] = [];
    let mut namespaces = vec!["pid", "mount", "ipc", "uts", "cgroup"];
    if spec.network != Network::Host {
        namespaces.push("network");
    }
    let namespaces: Vec<_> = namespaces.into_iter().map(|kind| json!({"type": kind})).collect();
    let below =
        |top: &str, names: &[&str]| names.iter().map(|name| format!("/{top}/{name}")).collect::<Vec<_>>();
    let hidden = [below("proc", MASKED), below("sys", MASKED_SYSTEM)].concat();
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": user,
            "args": parts.program.arguments,
            // The init's, without which youki starts nothing; the function has its own.
            "env": [format!("PATH={}", super::PATH)],
            "cwd": "/",
            "capabilities": {"bounding": none, "effective": none, "inheritable": none, "permitted": none, "ambient": none},
            "rlimits": [
                limit("RLIMIT_NOFILE", spec.open_files.into()),
                limit("RLIMIT_CORE", core_size()),
                limit("RLIMIT_MEMLOCK", LOCKED_MEMORY),
            ],
            "noNewPrivileges": true,
            "oomScoreAdj": OOM_SCORE,
        },
        "root": {"path": parts.root, "readonly": !parts.writable},
        "hostname": spec.id,
        "mounts": mounts(parts),
        "linux": {
            "namespaces": namespaces,
            "cgroupsPath": parts.cgroup,
            "resources": resources(spec, parts.swap, parts.own_kernel),
            "maskedPaths": hidden,
            "readonlyPaths": below("proc", PROTECTED),
        },
    })
}

fn resources(spec: &Spec, swap: bool, own_kernel: bool) -> Value {
    let mut memory = json!({"limit": spec.memory});
    if swap {
        // Both together: none of it is swap.
        memory["swap"] = json!(spec.memory);
    }
    let mut resources = json!({
        // Those that every container has are allowed by the runtime.
        "devices": [{"allow": false, "access": "rwm"}],
        "memory": memory,
        "pids": {"limit": if own_kernel { gvisor::threads(spec.pids) } else { spec.pids.into() }},
    });
    if spec.cpu_millis > 0 {
        // The kernel refuses a quota under one millisecond.
        let quota = (u64::from(spec.cpu_millis) * PERIOD_MICROS / 1000).max(1000);
        resources["cpu"] = json!({"quota": quota, "period": PERIOD_MICROS});
    }
    resources
}

fn mounts(parts: &Parts<'_>) -> Vec<Value> {
    let spec = parts.spec;
    let special = |at: &str, kind: &str, options: &[&str]| json!({"destination": at, "type": kind, "source": kind, "options": options});
    let bind = |host: &Path, at: &Path, options: &[&str]| json!({"destination": at, "type": "bind", "source": host, "options": options});
    const SHOWN: &[&str] = &["rbind", "rprivate", "ro", "nosuid", "nodev"];
    let mut mounts = vec![
        special("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        special("/dev", "tmpfs", &["nosuid", "noexec", "mode=0755", "size=64k", "nr_inodes=64"]),
    ];
    mounts.push(special(
        "/dev/pts",
        "devpts",
        &["nosuid", "noexec", "newinstance", "mode=0620", "ptmxmode=0666"],
    ));
    let files = format!("nr_inodes={}", inodes(spec.tmp_size));
    let size = format!("size={}", SHM_SIZE.min(spec.tmp_size).max(1));
    mounts.push(special("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", &size, &files]));
    mounts.push(bind(&parts.program.directory, Path::new(PROGRAM), SHOWN));
    mounts.push(bind(parts.door, Path::new(DOOR), SHOWN));
    if parts.system {
        mounts.push(special("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]));
    }
    let size = format!("size={}", spec.tmp_size.max(1));
    // runc gives it the mode of the image's directory: its owner can use it, whatever that is.
    let owner = [format!("uid={}", parts.user.uid), format!("gid={}", parts.user.gid)];
    let options = ["nosuid", "nodev", "mode=1777", &size, &files, &owner[0], &owner[1]];
    mounts.push(special("/tmp", "tmpfs", &options));
    for (number, mount) in parts.view.mounts.iter().enumerate() {
        mounts.push(match mount {
            Mount::Show { host, at } => bind(host, at, SHOWN),
            Mount::Text { at, .. } => bind(&text(parts.bundle, number), at, SHOWN),
            Mount::Cover { at } => {
                json!({"destination": at, "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=0755", "size=64k", "nr_inodes=64"]})
            }
            Mount::Layer { at, .. } => {
                let layered = parts.layers.iter().find(|(named, _)| named == at);
                let host = layered.map_or(at.as_path(), |(_, host)| host.as_path());
                bind(host, at, &["bind", "rprivate", "nosuid", "nodev"])
            }
        });
    }
    if parts.own_kernel {
        let own = shared(parts.bundle);
        mounts.extend(
            spec.shared.as_deref().map(|at| bind(&own, at, &["bind", "rprivate", "nosuid", "nodev"])),
        );
    } else if let Some(shared) = spec.shared.as_deref().filter(|shared| !shared.starts_with("/tmp")) {
        let (size, files) = (format!("size={SHARED_SIZE}"), format!("nr_inodes={}", inodes(SHARED_SIZE)));
        let options = ["nosuid", "nodev", "mode=0700", &size, &files, &owner[0], &owner[1]];
        mounts.push(json!({"destination": shared, "type": "tmpfs", "source": "tmpfs", "options": options}));
    }
    mounts
}
