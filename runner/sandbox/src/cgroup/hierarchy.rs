//! Where hierarchies of cgroups are mounted, and where in them we are.

use std::path::{Path, PathBuf};

use super::Controller;

/// A hierarchy as it is mounted, and the directory in it that we were started in.
#[derive(Debug, PartialEq, Eq)]
pub struct Hierarchy {
    pub mount: PathBuf,
    pub own: PathBuf,
    /// Empty for version 2.
    pub controllers: Vec<Controller>,
    pub v2: bool,
}

/// Reads where hierarchies are mounted (`/proc/self/mountinfo`) and where in them we are (`/proc/self/cgroup`).
pub fn hierarchies(mounts: &str, membership: &str) -> Vec<Hierarchy> {
    let mut found = Vec::<Hierarchy>::new();
    for line in mounts.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let before: Vec<_> = before.split(' ').collect();
        let after: Vec<_> = after.split(' ').collect();
        let (Some(root), Some(mount), Some(kind), Some(options)) =
            (before.get(3), before.get(4), after.first(), after.get(2))
        else {
            continue;
        };
        let v2 = match *kind {
            "cgroup2" => true,
            "cgroup" => false,
            _ => continue,
        };
        let controllers: Vec<_> = options.split(',').filter_map(Controller::parse).collect();
        if !v2 && controllers.is_empty() {
            continue;
        }
        let path = membership.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (_, names, path) = (fields.next()?, fields.next()?, fields.next()?);
            let ours = if v2 {
                names.is_empty()
            } else {
                names.split(',').filter_map(Controller::parse).any(|name| controllers.contains(&name))
            };
            ours.then_some(path)
        });
        // Where the mount shows only a part of the tree (a container without a cgroup namespace), paths count from there.
        let own = path
            .and_then(|path| Path::new(path).strip_prefix(root).ok())
            .filter(|path| !path.components().any(|part| part.as_os_str() == ".."))
            .unwrap_or(Path::new(""));
        let mount = PathBuf::from(mount);
        // The same hierarchy may be mounted twice; once is enough.
        let known = |seen: &Hierarchy| seen.v2 == v2 && (v2 || seen.controllers == controllers);
        if !found.iter().any(known) {
            found.push(Hierarchy { own: mount.join(own), mount, controllers, v2 });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 20 0:26 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
31 20 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
32 20 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
33 20 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
34 20 0:30 / /home rw - ext4 /dev/vda rw";

    #[test]
    fn hierarchies_are_found_with_our_place_in_them() {
        let found = hierarchies(HYBRID, "4:memory:/a/b\n3:cpu,cpuacct:/\n0::/svc\n");
        let own: Vec<_> = found.iter().map(|hierarchy| hierarchy.own.to_str().unwrap()).collect();
        assert_eq!(
            own,
            ["/sys/fs/cgroup/cpu,cpuacct/", "/sys/fs/cgroup/memory/a/b", "/sys/fs/cgroup/unified/svc"]
        );
        assert_eq!(found[0].controllers, [Controller::Cpu, Controller::CpuAccounting]);
        assert!(found[2].v2);
    }

    #[test]
    fn a_container_that_sees_a_part_of_the_tree_counts_from_there() {
        let mounts = "31 20 0:27 /docker/x /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory";
        let found = hierarchies(mounts, "4:memory:/docker/x\n");
        assert_eq!(found[0].own, Path::new("/sys/fs/cgroup/memory/"));
        let outside = hierarchies(mounts, "4:memory:/../elsewhere\n");
        assert_eq!(outside[0].own, Path::new("/sys/fs/cgroup/memory/"));
    }
}
