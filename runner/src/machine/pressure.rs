//! Hearing from the kernel that memory is short, on the machine or in a cgroup around us, and seeing how short.
//!
//! The kernel tells by itself: on new kernels by pressure stall information, of the machine and of every cgroup of version 2; of a
//! cgroup of version 1 by an event of its memory controller. Only places that limit us are listened to. Nothing is polled: where none
//! of it works, nobody is told, and memory is looked at only when something else is a reason to.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{Group, Version, groups, number_in, total_memory};

/// So much of two seconds must somebody have waited for memory, in microseconds. A window of two seconds is what the kernel lets
/// everybody ask for.
const STALL: &str = "some 200000 2000000";
/// Of a cgroup of version 1: the kernel finds less and less that is not needed.
const LEVEL: &str = "medium";

/// How much memory there is in the tightest place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    pub total: u64,
    /// Free, or free as soon as it is asked for.
    pub available: u64,
}

impl Memory {
    /// Which part of it is available, of a thousand.
    fn thousandths(self) -> u64 {
        self.available.saturating_mul(1000) / self.total.max(1)
    }
}

/// The places whose memory we need, and those of them that tell when they are short.
pub struct Pressure {
    limited: Vec<Group>,
    told: Vec<Source>,
}

/// What becomes readable when memory is short.
struct Source {
    descriptor: AsyncFd<OwnedFd>,
    /// A counter, which has to be emptied; else it is readable with priority once for each news.
    counter: bool,
    /// Held: closed, it tells nothing any more.
    _level: Option<File>,
}

impl Source {
    fn new(descriptor: OwnedFd, counter: bool, level: Option<File>) -> io::Result<Self> {
        let interest = if counter { Interest::READABLE } else { Interest::PRIORITY };
        #[expect(deprecated, reason = "its replacement is unsafe; an `OwnedFd` keeps what that asks for")]
        let descriptor = AsyncFd::with_interest(descriptor, interest)?;
        Ok(Self { descriptor, counter, _level: level })
    }

    /// Waits until it tells something; for ever if it breaks.
    async fn news(&self) {
        let interest = if self.counter { Interest::READABLE } else { Interest::PRIORITY };
        loop {
            let Ok(mut ready) = self.descriptor.ready(interest).await else {
                return std::future::pending().await;
            };
            if !self.counter {
                ready.clear_ready();
                return;
            }
            match rustix::io::read(self.descriptor.get_ref(), &mut [0_u8; 8][..]) {
                Ok(_) => return,
                Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return std::future::pending().await,
            }
        }
    }
}

impl Pressure {
    /// Listens to whatever tells, and to `more`, an eventfd. In a tokio runtime.
    #[must_use]
    pub fn listen(more: Option<Arc<OwnedFd>>) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let machine = total_memory(&read("/proc/meminfo")).unwrap_or(u64::MAX);
        let mut limited = groups(&read("/proc/self/cgroup"));
        limited.retain(|group| group.limit().is_some_and(|limit| limit < machine));
        let stalls = Some(("/proc/pressure/memory".into(), stall(Path::new("/proc/pressure/memory"))));
        let levels = limited.iter().map(|group| match group.version {
            Version::One => (group.directory.clone(), level(&group.directory)),
            Version::Two => (group.directory.clone(), stall(&group.directory.join("memory.pressure"))),
        });
        let mut told = Vec::new();
        let more = more.map(|news| (PathBuf::new(), counter(&news)));
        for (place, source) in stalls.into_iter().chain(levels).chain(more) {
            match source {
                Ok(source) => told.push(source),
                Err(error) => {
                    let place: PathBuf = place;
                    tracing::debug!(place = %place.display(), %error, "does not tell when memory is short");
                }
            }
        }
        Self { limited, told }
    }

    /// Returns when somebody had to wait for memory, or the kernel had trouble to find some.
    pub async fn rises(&self) {
        let mut waits: Vec<_> = self.told.iter().map(|source| Box::pin(source.news())).collect();
        std::future::poll_fn(|context| {
            let mut ready = waits.iter_mut().map(|wait| wait.as_mut().poll(context).is_ready());
            match ready.any(|ready| ready) {
                true => std::task::Poll::Ready(()),
                false => std::task::Poll::Pending,
            }
        })
        .await;
    }

    /// The tightest place as it is now.
    #[must_use]
    pub fn look(&self) -> Option<Memory> {
        let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| memory_of(&text));
        let groups = self.limited.iter().filter_map(Group::memory);
        groups.chain(machine).min_by_key(|memory| memory.thousandths())
    }
}

/// Pressure stall information tells when it was told how much of it matters.
fn stall(file: &Path) -> io::Result<Source> {
    let mut file = File::options().read(true).write(true).open(file)?;
    // With the zero byte: what is written is a C string.
    file.write_all(format!("{STALL}\0").as_bytes())?;
    Source::new(file.into(), false, None)
}

fn level(group: &Path) -> io::Result<Source> {
    let counter = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let level = File::open(group.join("memory.pressure_level"))?;
    let wish = format!("{} {} {LEVEL}", counter.as_raw_fd(), level.as_raw_fd());
    fs::write(group.join("cgroup.event_control"), wish)?;
    Source::new(counter, true, Some(level))
}

fn counter(news: &OwnedFd) -> io::Result<Source> {
    rustix::io::ioctl_fionbio(news, true)?;
    Source::new(news.try_clone()?, true, None)
}

fn memory_of(meminfo: &str) -> Option<Memory> {
    Some(Memory { total: total_memory(meminfo)?, available: number_in(meminfo, "MemAvailable:")? * 1024 })
}

impl Group {
    fn read(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.directory.join(file)).ok()
    }

    fn memory(&self) -> Option<Memory> {
        let (usage, cache) = match self.version {
            Version::One => ("memory.usage_in_bytes", "total_inactive_file "),
            Version::Two => ("memory.current", "inactive_file "),
        };
        let total = self.limit()?;
        let used: u64 = self.read(usage)?.trim().parse().ok()?;
        // What was read from files and not used for a while is free for the asking.
        let cache = number_in(&self.read("memory.stat")?, cache).unwrap_or(0);
        Some(Memory { total, available: total.saturating_sub(used).saturating_add(cache).min(total) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_available_is_read() {
        let memory = memory_of("MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:    250 kB\n");
        assert_eq!(memory, Some(Memory { total: 1_024_000, available: 256_000 }));
        assert_eq!(memory.map(Memory::thousandths), Some(250));
        assert_eq!(memory_of("MemTotal: 1000 kB\n"), None);
    }

    #[tokio::test]
    async fn this_machine_has_memory() {
        let memory = Pressure::listen(None).look().unwrap();
        assert!(memory.total > 0 && memory.available <= memory.total, "{memory:?}");
    }

    /// A cgroup that has to give up what it read from a file, to read on, says so.
    #[tokio::test]
    async fn a_cgroup_that_is_short_of_memory_tells() {
        let text = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = groups(&text);
        // Of version 2 at the top: below our own, none may be made that has controllers.
        let first = own.iter().find(|group| group.version == Version::One);
        let Some(Group { directory, version }) = first.or(own.last()) else {
            println!("left out: no memory controller");
            return;
        };
        if *version == Version::Two {
            fs::write(directory.join("cgroup.subtree_control"), "+memory").ok();
        }
        let directory = directory.join(format!("stoker-test-pressure-{}", std::process::id()));
        let group = Group { directory: directory.clone(), version: *version };
        if fs::create_dir(&directory).is_err() || !directory.join(group.limit_file()).exists() {
            fs::remove_dir(&directory).ok();
            println!("left out: no cgroup can be made here that limits memory");
            return;
        }
        fs::write(directory.join(group.limit_file()), (16_u64 << 20).to_string()).unwrap();
        let source = match version {
            Version::One => level(&directory),
            Version::Two => stall(&directory.join("memory.pressure")),
        };
        let source = source.unwrap();
        // Anonymous memory between two lots of a file's: there is less and less that can go.
        let work = format!(
            "echo $$ >{}/cgroup.procs; hold=$(head -c 6000000 /dev/zero | tr '\\0' x); \
             while :; do cat /usr/bin/* /usr/lib/*/*.so* >/dev/null 2>&1; done",
            directory.display()
        );
        let mut child = std::process::Command::new("/bin/sh").args(["-c", &work]).spawn().unwrap();
        let heard = tokio::time::timeout(std::time::Duration::from_secs(60), source.news()).await;
        child.kill().unwrap();
        child.wait().unwrap();
        drop(source);
        // Its last child may still be on its way out.
        let gone = tokio::time::timeout(std::time::Duration::from_secs(60), async {
            while fs::remove_dir(&directory).is_err() {
                tokio::task::yield_now().await;
            }
        });
        gone.await.unwrap();
        heard.unwrap();
    }
}
