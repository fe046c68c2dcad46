//! What a page is followed on: a machine that has everything that this one has, and whose network, processes and changes are its own.

use std::path::{Path, PathBuf};

use stoker_tests::program;

use crate::page::root;

/// Pages find what a machine has, not what this shell has besides.
const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Names that pages have for it.
const HOSTS: &str = "127.0.0.1 localhost lb.example runner-1 runner.example fleet.example prometheus";

/// The init that pages with `systemctl` take.
const SYSTEMD: &str = "/lib/systemd/systemd";

/// Keeps the `/etc`, `/usr/local`, `/tmp` and processes of others as they are.
const PLAIN: &str = r#"
mount -t tmpfs -o size=64m,mode=755 page /mnt
for part in etc usr/local; do
  mkdir -p "/mnt/$part/new" "/mnt/$part/work"
  mount -t overlay -o "lowerdir=/$part,upperdir=/mnt/$part/new,workdir=/mnt/$part/work" page "/$part"
done
echo "$HOSTS" >/etc/hosts
mkdir -p /srv/stoker && mount --bind "$WORK" /srv/stoker
for at in "${!SEEN[@]}"; do mkdir "/mnt/seen-$at" && mount --bind "${SEEN[$at]}" "/mnt/seen-$at"; done
mount -t tmpfs -o size=512m,mode=1777 page /tmp
for at in "${!SEEN[@]}"; do mkdir -p "${SEEN[$at]}" && mount --bind "/mnt/seen-$at" "${SEEN[$at]}"; done
cd /srv/stoker
exec env -i bash -c '. ./.environment; exec bash .page'
"#;

/// All of the root is its own, packages and users included, and its first process is systemd. What of the kernel would be everybody's cannot be changed.
const BOOTED: &str = r#"
mount -t tmpfs -o size=2g,mode=755 page /mnt
mkdir /mnt/new /mnt/work /mnt/root
mount -t overlay -o lowerdir=/,upperdir=/mnt/new,workdir=/mnt/work page /mnt/root
cd /mnt/root
mount -t proc proc proc
mount --bind proc/sys proc/sys && mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
  mount -t cgroup2 cgroup sys/fs/cgroup
else
  mount -t tmpfs -o mode=755 cgroup sys/fs/cgroup
  cut -d: -f2 /proc/self/cgroup | while read -r controllers; do
    case "$controllers" in "") continue ;; name=*) named=none, ;; *) named= ;; esac
    mkdir "sys/fs/cgroup/${controllers#name=}"
    mount -t cgroup -o "$named$controllers" cgroup "sys/fs/cgroup/${controllers#name=}"
  done
fi
mount -t tmpfs -o mode=755 dev dev
while read -r name major minor; do mknod -m 666 "dev/$name" c "$major" "$minor"; done <<'END'
null 1 3
zero 1 5
full 1 7
random 1 8
urandom 1 9
tty 5 0
END
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=755 run run
mount -t tmpfs -o mode=1777 tmp tmp
mkdir -p srv/stoker && mount --bind "$WORK" srv/stoker
for seen in "${SEEN[@]}"; do mkdir -p ".$seen" && mount --bind "$seen" ".$seen"; done
echo "$HOSTS" >etc/hosts
echo 6d616368696e65206f66206120706167 >etc/machine-id
: >etc/fstab
# What this machine starts is not started there.
rm -f etc/systemd/system/*.wants/*
cat >etc/systemd/system/page.service <<'END'
[Unit]
Requires=basic.target
After=basic.target
DefaultDependencies=no
SuccessAction=exit
FailureAction=exit
[Service]
Type=oneshot
WorkingDirectory=/srv/stoker
ExecStart=/bin/bash -c '. ./.environment; exec bash .page'
StandardOutput=file:/srv/stoker/.said
TimeoutStopSec=10
END
exec env -i container=page PATH="$PATH" setpriv --bounding-set -sys_module,-sys_time,-sys_boot chroot /mnt/root /lib/systemd/systemd --unit=page.service
"#;

/// A machine for one page, with its files in a directory that becomes `/srv/stoker`.
pub struct Machine {
    work: PathBuf,
    boots: bool,
    /// What cgroups of it are called.
    name: String,
}

impl Machine {
    /// One that `script` can run on; `None`, said on STDOUT, where this machine has not what it takes. `variables` are the page's.
    pub fn new(work: &Path, script: &str, variables: &[(&str, String)]) -> Option<Self> {
        let boots = script.lines().any(|line| line.starts_with("systemctl "));
        if boots && !Path::new(SYSTEMD).exists() {
            println!("left out: there is no {SYSTEMD} (package systemd)");
            return None;
        }
        let path = format!("{}:{SYSTEM_PATH}", program("stoker").parent().unwrap().display());
        let mut environment = format!("export HOME=/tmp NO_COLOR=1 PATH={}\n", quoted(&path));
        for (name, value) in variables {
            environment.push_str(&format!("export {name}={}\n", quoted(value)));
        }
        std::fs::write(work.join(".environment"), environment).unwrap();
        std::fs::write(work.join(".page"), script).unwrap();
        Some(Self { work: work.to_owned(), boots, name: format!("stoker-page-{}", std::process::id()) })
    }

    /// What makes it, becomes it, and ends with it. `seen` is what there must be at the same place, wherever that is.
    pub fn command(&self, seen: &[PathBuf]) -> tokio::process::Command {
        // What lies below a directory that it has of its own.
        let seen = seen.iter().filter(|path| path.exists() && (self.boots || path.starts_with("/tmp")));
        let seen: String = seen.map(|path| quoted(&path.to_string_lossy()) + " ").collect();
        let inner = format!(
            "set -e\nmount --make-rprivate /\nHOSTS={} WORK={} SEEN=({seen})\n{}",
            quoted(HOSTS),
            quoted(&self.work.to_string_lossy()),
            if self.boots { BOOTED } else { PLAIN },
        );
        let apart = "--net --mount --pid --fork --kill-child";
        let outer = if self.boots {
            // systemd's services have cgroups below those that it is started in.
            format!(
                r#"
tops=(/sys/fs/cgroup/*/)
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then tops=(/sys/fs/cgroup); fi
for top in "${{tops[@]}}"; do
  mkdir -p "$top/{name}"
  for file in cpuset.cpus cpuset.mems; do
    if [ -e "$top/{name}/$file" ]; then cat "$top/$file" >"$top/{name}/$file"; fi
  done
  echo $$ >"$top/{name}/cgroup.procs"
done
exec unshare {apart} --uts --ipc --cgroup bash -c "$INNER"
"#,
                name = self.name
            )
        } else {
            format!("exec unshare {apart} --mount-proc bash -c \"$INNER\"")
        };
        let mut command = tokio::process::Command::new("bash");
        command.args(["-c", &outer]).env("INNER", inner);
        command
    }

    /// What was said where nobody could hear it.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.work.join(".said")).unwrap_or_default()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.boots {
            let (top, below) = (format!("*/{}", self.name), format!("*/{}/*", self.name));
            let mut find = std::process::Command::new("find");
            find.args(["/sys/fs/cgroup", "-depth", "-type", "d"]);
            find.args(["(", "-path", &top, "-o", "-path", &below, ")"]);
            find.args(["-exec", "rmdir", "{}", "+"]).status().unwrap();
        }
    }
}

/// The directories that a page's commands come from, and the repository.
pub fn places() -> [PathBuf; 2] {
    [root(), program("stoker").parent().unwrap().to_owned()]
}

/// For a shell.
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
