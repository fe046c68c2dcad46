//! A machine that is short of memory: what stands still gives some back, and works on.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use stoker_runner::Config;
use stoker_sandbox::select::Choice;

use crate::kit::{self, LIMIT, python};

const MIB: u64 = 1 << 20;

/// Memory of the largest sandbox of a runner, by the kernel's count.
fn largest(name: &str) -> u64 {
    fn walk(directory: &Path, name: &str, most: &mut u64) {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if !path.is_dir() {
                continue;
            }
            if path
                .parent()
                .and_then(Path::file_name)
                .is_some_and(|own| own.to_string_lossy().starts_with(name))
            {
                let read = |file| std::fs::read_to_string(path.join(file)).ok()?.trim().parse().ok();
                let memory = read("memory.current").or_else(|| read("memory.usage_in_bytes"));
                *most = (*most).max(memory.unwrap_or(0));
            }
            walk(&path, name, most);
        }
    }
    let mut most = 0;
    walk(Path::new("/sys/fs/cgroup"), &format!("stoker.{name}."), &mut most);
    most
}

/// A file that nobody has read yet: who does pays for it.
fn big(directory: &Path) -> PathBuf {
    let path = directory.join("big");
    std::fs::write(&path, vec![7; 32 << 20]).unwrap();
    let file = std::fs::File::open(&path).unwrap();
    file.sync_all().unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn frozen_containers_give_memory_back_and_answer() {
    let (state, files) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::set_permissions(files.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let news = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
    let config = Config {
        freeze_after: Duration::ZERO,
        memory_news: Some(news.clone()),
        ..kit::config(Choice::Auto, 512, 8, state.path())
    };
    let name = config.name.to_string();
    let fleet = kit::start(config).await;
    let mut session = fleet.session().await;
    let mut spec = python("");
    spec.memory = 256 * MIB;
    spec.workdir = files.path().to_owned();
    let path = big(files.path());
    let first = session.call(&spec, "load", path.to_str().unwrap().as_bytes()).await;
    assert_eq!((first.code(), &first.body[..]), ("OK", &b"33554432"[..]), "{first:?}");
    let before = largest(&name);
    if before < 24 * MIB {
        println!("left out: what a function reads does not count as its own here: {before} bytes");
        return fleet.end().await;
    }
    let begun = Instant::now();
    // The news may come before it stands still.
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    while largest(&name) > before - 16 * MIB {
        assert!(begun.elapsed() < LIMIT, "{} of {before} bytes are left", largest(&name));
        rustix::io::write(&*news, &1_u64.to_ne_bytes()).unwrap();
        tick.tick().await;
    }
    let after = session.call(&spec, "echo", b"still here").await;
    assert_eq!(
        (after.code(), &after.body[..], after.container()),
        ("OK", &b"still here"[..], first.container())
    );
    fleet.end().await;
}
