//! How much a function gets, that it stands still when it shall, and that what it used is told.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use super::{LIMIT, MIB, Outcome, Pipe, Scratch, Spec, Stop, Subject, expect, fail, left_out, start, until};
use crate::{Error, ExitCause};

pub async fn memory_beyond_the_limit_ends_the_function(subject: Subject<'_>) -> Outcome {
    if !subject.claims().limits_memory {
        return left_out("the driver claims no memory limit");
    }
    let spec = Spec { memory: 32 * MIB, ..subject.spec("memory", &["hold", "400"]) };
    let mut guest = subject.launch(spec).await?;
    let out = guest.stdout.rest().await?;
    let exit = guest.sandbox.wait().await;
    expect(exit.out_of_memory && exit.cause == ExitCause::Signal(9), || {
        format!("{exit:?}, it said {out:?}")
    })?;
    // What it had at most tells how far over it was.
    let peak = guest.sandbox.usage().await.memory_peak;
    expect(peak >= 24 * MIB, || format!("a peak of {peak} bytes with a limit of 32 MiB"))?;
    let spec = Spec { memory: 64 * MIB, ..subject.spec("memory-fits", &["hold", "16"]) };
    let (exit, out, _) = subject.complete(spec).await?;
    expect(!exit.out_of_memory && out == "held", || format!("{exit:?}, it said {out:?}"))
}

pub async fn a_child_killed_for_memory_is_told(subject: Subject<'_>) -> Outcome {
    if !subject.claims().limits_memory {
        return left_out("the driver claims no memory limit");
    }
    let spec = Spec { memory: 32 * MIB, ..subject.spec("memory-child", &["hold-in-child", "400"]) };
    let (exit, ..) = subject.complete(spec).await?;
    expect(exit.out_of_memory, || format!("{exit:?}"))
}

/// Its limit is its own, wherever on the way it shows that nothing fits into it.
pub async fn too_little_memory_to_begin_with_is_the_functions_fault(subject: Subject<'_>) -> Outcome {
    if !subject.claims().limits_memory {
        return left_out("the driver claims no memory limit");
    }
    for memory in [64 << 10, 512 << 10, MIB, 4 * MIB] {
        let spec = Spec { memory, ..subject.spec("memory-tiny", &["say", "it fits"]) };
        let fits = async {
            let sandbox = subject.driver.create(spec).await?;
            let stdio = sandbox.start(Vec::new()).await?;
            Ok::<_, Error>((sandbox, stdio))
        };
        match fits.await {
            Ok((sandbox, stdio)) => {
                let out = Pipe::new(stdio.stdout)?.rest().await?;
                let exit = sandbox.wait().await;
                let told = exit.out_of_memory || (exit.cause == ExitCause::Code(0) && out == "it fits");
                expect(told, || format!("with {memory} bytes: {exit:?}, it said {out:?}"))?;
            }
            Err(Error::Function(text)) => expect(text.contains("memory"), || text)?,
            Err(error) => return fail(format!("with {memory} bytes: {error}")),
        }
    }
    Ok(())
}

pub async fn a_fork_bomb_is_contained(subject: Subject<'_>) -> Outcome {
    if !subject.claims().limits_pids {
        return left_out("the driver claims no limit of processes");
    }
    let spec = Spec { pids: 20, ..subject.spec("bomb", &["fork", "1000"]) };
    let mut guest = subject.launch(spec).await?;
    let made: u32 = guest.stdout.line().await?.parse().unwrap_or(u32::MAX);
    expect((10..=20).contains(&made), || format!("{made} children with a limit of 20"))?;
    // Another sandbox is not touched by it.
    subject.output("bystander", &["say", "fine"]).await.map(drop)
}

pub async fn cpu_is_limited(subject: Subject<'_>) -> Outcome {
    if !subject.claims().limits_cpu {
        return left_out("the driver claims no CPU limit");
    }
    let spec = Spec { cpu_millis: 100, ..subject.spec("cpu", &["spin"]) };
    let mut guest = subject.launch(spec).await?;
    guest.ready().await?;
    // In a second of wall time it may have a tenth of CPU time; two periods of slack.
    let (begun, before) = (std::time::Instant::now(), guest.sandbox.usage().await.cpu);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (took, used) = (begun.elapsed(), guest.sandbox.usage().await.cpu - before);
    expect(used.as_secs_f64() < took.as_secs_f64() * 0.1 + 0.05, || format!("{used:?} of CPU in {took:?}"))?;
    expect(used > Duration::from_millis(20), || format!("only {used:?} of CPU in {took:?}"))
}

pub async fn usage_grows(subject: Subject<'_>) -> Outcome {
    let mut guest = subject.launch(subject.spec("usage", &["spin"])).await?;
    guest.ready().await?;
    let first = guest.sandbox.usage().await;
    if first.memory == 0 {
        return left_out("the driver cannot tell");
    }
    until("CPU time grows", async || guest.sandbox.usage().await.cpu > first.cpu).await?;
    expect(first.memory_peak >= first.memory / 2, || format!("{first:?}"))?;
    guest.sandbox.stop(Duration::ZERO).await;
    let last = guest.sandbox.usage().await;
    expect(last.cpu >= first.cpu, || format!("{last:?} after the end"))
}

pub async fn frozen_stands_still_and_thaws(subject: Subject<'_>) -> Outcome {
    if !subject.claims().freezes {
        return left_out("the driver does not claim to freeze");
    }
    let words = ["count", "$AT/count"];
    let spec = Spec { shared: Some(PathBuf::from("/tmp/shared")), ..subject.spec("freeze", &words) };
    let sandbox = subject.driver.create(spec).await?;
    let inside =
        sandbox.shared().map(|shared| shared.inside.to_string_lossy().into_owned()).unwrap_or_default();
    let mut guest = start(sandbox, vec![("AT".to_owned(), inside)]).await?;
    guest.ready().await?;
    let shared = guest.sandbox.shared().ok_or(Stop::Failed("no shared directory".to_owned()))?;
    let file = std::fs::File::open(format!("/proc/self/fd/{}/count", shared.directory.as_raw_fd()))?;
    let count = || {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, 0).map(|()| u64::from_le_bytes(bytes))
    };
    for _ in 0..5 {
        guest.sandbox.freeze().await?;
        let first = count()?;
        // Long enough for a running one to count thousands; on a busy machine each is a turn of everybody's.
        for _ in 0..50 {
            tokio::task::yield_now().await;
            std::thread::yield_now();
        }
        let second = count()?;
        expect(first == second, || format!("it counted from {first} to {second} while frozen"))?;
        guest.sandbox.thaw().await?;
        until("it counts again", async || count().is_ok_and(|now| now > second)).await?;
    }
    Ok(())
}

pub async fn a_frozen_one_gives_memory_back(subject: Subject<'_>) -> Outcome {
    let scratch = Scratch::new("reclaim")?;
    let big = scratch.0.join("big");
    std::fs::write(&big, vec![7; 32 << 20])?;
    let file = std::fs::File::open(&big)?;
    file.sync_all()?;
    // Out of the cache, where it counts as ours: whoever reads it next pays for it.
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).map_err(io::Error::from)?;
    let spec = Spec { workdir: scratch.0.clone(), ..subject.spec("reclaim", &["read-and-wait", "big"]) };
    let mut guest = subject.launch(spec).await?;
    guest.ready().await?;
    let before = guest.sandbox.usage().await.memory;
    if before < 24 * MIB {
        return left_out(format!("its cache of a file of 32 MiB does not count: {before} bytes"));
    }
    if subject.claims().freezes {
        guest.sandbox.freeze().await?;
    }
    let taken = match guest.sandbox.reclaim().await {
        Err(Error::Unsupported(why)) => return left_out(why),
        taken => taken?,
    };
    let after = guest.sandbox.usage().await.memory;
    expect(taken > 16 * MIB && after < before - 16 * MIB, || {
        format!("{taken} bytes taken: {before} before, {after} after")
    })?;
    if subject.claims().freezes {
        guest.sandbox.thaw().await?;
    }
    let exit = guest.sandbox.stop(LIMIT).await;
    expect(exit.cause == ExitCause::Signal(15), || format!("{exit:?}"))
}

pub async fn a_frozen_one_can_be_killed(subject: Subject<'_>) -> Outcome {
    if !subject.claims().freezes {
        return left_out("the driver does not claim to freeze");
    }
    for grace in [Duration::ZERO, Duration::from_secs(30)] {
        let mut guest = subject.launch(subject.spec("frozen", &["wait"])).await?;
        guest.ready().await?;
        guest.sandbox.freeze().await?;
        let exit = guest.sandbox.stop(grace).await;
        let signal = if grace.is_zero() { 9 } else { 15 };
        expect(exit.cause == ExitCause::Signal(signal), || format!("{exit:?} with a grace of {grace:?}"))?;
    }
    Ok(())
}
