//! What the daemon is told of a container: the same hardening as a native sandbox has, in the words of its API.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rustix::process::Resource;
use serde_json::{Value, json};

use super::skeleton::Layer;
use crate::cgroup::PERIOD_MICROS;
use crate::contained::view::{Mount, View};
use crate::contained::{DOOR, OOM_SCORE, PROGRAM, Program};
use crate::init::mounts::{MASKED, MASKED_SYSTEM, PROTECTED, SHARED_SIZE, SHM_SIZE, inodes};
use crate::init::{LOCKED_MEMORY, core_size};
use crate::{Network, Spec, User};

/// Processes of one user of the host, for whom Podman has a limit: what it has itself where the kernel counts to no more.
const PODMAN_PROCESSES: u64 = 32_768;

/// What a container is made from, besides the [`Spec`].
pub struct Parts<'a> {
    pub spec: &'a Spec,
    pub view: &'a View,
    pub user: User,
    /// Further groups of it.
    pub groups: Vec<u32>,
    pub image: &'a str,
    pub labels: BTreeMap<String, String>,
    /// Where the container's own files are.
    pub directory: &'a Path,
    pub program: &'a Program,
    pub door: &'a Path,
    /// The daemon is Podman.
    pub podman: bool,
}

/// The file that has the content of the view's mount of this number.
pub fn text(directory: &Path, number: usize) -> PathBuf {
    directory.join(format!("text-{number}"))
}

/// The body of the call that creates it.
pub fn config(parts: &Parts<'_>) -> Value {
    let spec = parts.spec;
    let none: [&str; 0] = [];
    let limit = |name: &str, value: u64| json!({"Name": name, "Soft": value, "Hard": value});
    let below =
        |top: &str, names: &[&str]| names.iter().map(|name| format!("/{top}/{name}")).collect::<Vec<_>>();
    let hidden = [below("proc", MASKED), below("sys", MASKED_SYSTEM)].concat();
    let mut security = vec!["no-new-privileges".to_owned()];
    let mut limits = vec![
        limit("nofile", spec.open_files.into()),
        limit("core", core_size()),
        limit("memlock", LOCKED_MEMORY),
    ];
    if parts.podman {
        // Of what is not said it takes more than it has itself, which it may not everywhere. How many there may be is the cgroup's.
        let own = rustix::process::getrlimit(Resource::Nproc).maximum.unwrap_or(u64::MAX);
        limits.push(limit("nproc", PODMAN_PROCESSES.min(own)));
        // It does not hear of hidden paths where Docker does.
        security.push(format!("mask={}", hidden.join(":")));
    }
    let mut host = json!({
        "NetworkMode": if spec.network == Network::Host { "host" } else { "none" },
        "ReadonlyRootfs": !spec.writable_root,
        "CapDrop": ["ALL"],
        "GroupAdd": parts.groups.iter().map(u32::to_string).collect::<Vec<_>>(),
        "SecurityOpt": security,
        "Memory": spec.memory,
        // Both together: none of it is swap.
        "MemorySwap": spec.memory,
        "PidsLimit": spec.pids,
        "Ulimits": limits,
        "OomScoreAdj": OOM_SCORE,
        // The daemon's own /dev/shm has room for any number of files: ours is among the temporary ones.
        "IpcMode": "none",
        "CgroupnsMode": "private",
        "Tmpfs": temporary(parts),
        "Mounts": mounts(parts),
        "MaskedPaths": hidden,
        "ReadonlyPaths": below("proc", PROTECTED),
        // Pipes are ours: what the daemon keeps are words of an init that never came to us.
        "LogConfig": {"Type": "json-file", "Config": {"max-size": "64k"}},
    });
    if spec.cpu_millis > 0 {
        // The kernel refuses a quota under one millisecond.
        host["CpuPeriod"] = json!(PERIOD_MICROS);
        host["CpuQuota"] = json!((u64::from(spec.cpu_millis) * PERIOD_MICROS / 1000).max(1000));
    }
    json!({
        "Image": parts.image,
        "Entrypoint": parts.program.arguments,
        "Cmd": none,
        "Env": none,
        "User": format!("{}:{}", parts.user.uid, parts.user.gid),
        "WorkingDir": "/",
        "Hostname": spec.id,
        "Labels": parts.labels,
        "HostConfig": host,
    })
}

fn temporary(parts: &Parts<'_>) -> BTreeMap<String, String> {
    let spec = parts.spec;
    // Podman knows neither how many files there may be nor whose they are: any user of the container may write, and there is one.
    let of = |mode: &str, size: u64, user: User| match parts.podman {
        true => format!("rw,nosuid,nodev,mode=1777,size={size}"),
        false => format!(
            "rw,nosuid,nodev,mode={mode},size={size},nr_inodes={},uid={},gid={}",
            inodes(size),
            user.uid,
            user.gid
        ),
    };
    let root = User { uid: 0, gid: 0 };
    let shm = of("1777", SHM_SIZE.min(spec.tmp_size).max(1), root);
    let mut temporary = BTreeMap::from([
        ("/tmp".to_owned(), format!("exec,{}", of("1777", spec.tmp_size.max(1), parts.user))),
        ("/dev/shm".to_owned(), format!("noexec,{shm}")),
    ]);
    if let Some(shared) = spec.shared.as_deref().filter(|shared| !shared.starts_with("/tmp")) {
        let options = format!("exec,{}", of("0700", SHARED_SIZE, parts.user));
        temporary.insert(shared.to_string_lossy().into_owned(), options);
    }
    for mount in &parts.view.mounts {
        if let Mount::Cover { at } = mount {
            let files = if parts.podman { "" } else { ",nr_inodes=64" };
            let options = format!("rw,exec,nosuid,nodev,mode=0755,size=64k{files}");
            temporary.insert(at.to_string_lossy().into_owned(), options);
        }
    }
    temporary
}

fn mounts(parts: &Parts<'_>) -> Vec<Value> {
    let bind = |host: &Path, at: &Path| {
        json!({
            "Type": "bind", "Source": host, "Target": at, "ReadOnly": true,
            "BindOptions": {"Propagation": "rprivate"},
        })
    };
    let own = [bind(&parts.program.directory, Path::new(PROGRAM)), bind(parts.door, Path::new(DOOR))];
    let shown = parts.view.mounts.iter().enumerate().filter_map(|(number, mount)| match mount {
        Mount::Show { host, at } => Some(bind(host, at)),
        Mount::Text { at, .. } => Some(bind(&text(parts.directory, number), at)),
        Mount::Layer { host, at } => Some(layer(host, at, &Layer::new(parts.directory, number))),
        Mount::Cover { .. } => None,
    });
    own.into_iter().chain(shown).collect()
}

/// A directory with a private layer, as a volume that goes with the container.
fn layer(host: &Path, at: &Path, layer: &Layer) -> Value {
    // The separator of lower directories is a colon, and the escape a backslash.
    let lower = host.to_string_lossy().replace('\\', "\\\\").replace(':', "\\:");
    let options =
        format!("lowerdir={lower},upperdir={},workdir={}", layer.upper.display(), layer.work.display());
    json!({
        "Type": "volume", "Target": at,
        "VolumeOptions": {
            "NoCopy": true,
            "DriverConfig": {
                "Name": "local",
                "Options": {"type": "overlay", "device": "overlay", "o": options},
            },
        },
    })
}
