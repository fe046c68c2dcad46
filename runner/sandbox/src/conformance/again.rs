//! Sandboxes that stay when their command ends: started again, with everything kept but the processes, and with companions.

use std::path::PathBuf;
use std::time::Duration;

use super::{Guest, LIMIT, MIB, Outcome, Pipe, Spec, Stop, Subject, expect, fail, start};
use crate::{Companion, Error, ExitCause, Network, Signal};

impl Subject<'_> {
    fn staying(&self, id: &str, words: &[&str]) -> Spec {
        Spec { stays: true, ..self.spec(id, words) }
    }

    fn companion(&self, words: &[&str]) -> Companion {
        let command = self.spec("companion", words).command;
        Companion { command, env: vec![("OWN".to_owned(), "its".to_owned())] }
    }
}

impl Guest {
    async fn again(&mut self, env: Vec<(String, String)>) -> Outcome {
        self.sandbox.clear().await?;
        let stdio = self.sandbox.start(env).await?;
        self.stdin = Some(stdio.stdin);
        (self.stdout, self.stderr) = (Pipe::new(stdio.stdout)?, Pipe::new(stdio.stderr)?);
        Ok(())
    }
}

pub async fn one_that_ends_with_its_command_is_not_started_again(subject: Subject<'_>) -> Outcome {
    let mut guest = subject.launch(subject.spec("once", &["wait"])).await?;
    guest.ready().await?;
    let again = guest.sandbox.clear().await;
    expect(matches!(again, Err(Error::Unsupported(_))), || "it was started again".to_owned())?;
    let beside = guest.sandbox.spawn(subject.companion(&["exit", "0"])).await;
    expect(matches!(beside, Err(Error::Unsupported(_))), || "it has a companion".to_owned())
}

/// What was written stays, and nobody of the first start does.
pub async fn started_again_it_keeps_all_but_its_processes(subject: Subject<'_>) -> Outcome {
    let spec = Spec {
        shared: Some(PathBuf::from("/tmp/shared")),
        ..subject.staying("again", &["left-behind", "$AT/kept"])
    };
    let sandbox = subject.driver.create(spec).await?;
    let inside = sandbox.shared().ok_or(Stop::Failed("no shared directory".to_owned()))?.inside.clone();
    let late = |which: &str| {
        let at = inside.to_string_lossy().into_owned();
        vec![("AT".to_owned(), at), ("WHICH".to_owned(), which.to_owned())]
    };
    let mut guest = start(sandbox, late("first")).await?;
    let out = guest.stdout.line().await?;
    expect(out == "nothing yet", || out)?;
    guest.ready().await?;
    for which in ["second", "third"] {
        // Its daemon holds the pipe: its end is the daemon's, too.
        let (mut stdout, before) = (guest.stdout, which);
        guest.sandbox.clear().await?;
        stdout.rest().await?;
        let stdio = guest.sandbox.start(late(which)).await?;
        guest.stdin = Some(stdio.stdin);
        (guest.stdout, guest.stderr) = (Pipe::new(stdio.stdout)?, Pipe::new(stdio.stderr)?);
        let out = guest.stdout.line().await?;
        let kept = if before == "second" { "first" } else { "second" };
        expect(out == format!("found {kept}"), || format!("started {before}, it says {out:?}"))?;
        guest.ready().await?;
    }
    let exit = guest.sandbox.stop(Duration::ZERO).await;
    expect(exit.cause == ExitCause::Signal(9), || format!("{exit:?}"))?;
    let again = guest.sandbox.clear().await;
    expect(again.is_err(), || "it was started after its end".to_owned())
}

pub async fn it_stays_when_its_command_ends(subject: Subject<'_>) -> Outcome {
    let mut guest = subject.launch(subject.staying("stays", &["exit", "3"])).await?;
    for _ in 0..3 {
        let exit = guest.sandbox.ended().await;
        expect(exit.cause == ExitCause::Code(3) && !exit.out_of_memory, || format!("{exit:?}"))?;
        let gone = tokio::time::timeout(Duration::ZERO, guest.sandbox.wait()).await;
        expect(gone.is_err(), || "it went with its command".to_owned())?;
        guest.again(Vec::new()).await?;
    }
    // How it ended is how its command did.
    guest.sandbox.ended().await;
    let exit = guest.sandbox.stop(LIMIT).await;
    expect(exit.cause == ExitCause::Code(3), || format!("{exit:?}"))
}

pub async fn a_frozen_one_is_started_again(subject: Subject<'_>) -> Outcome {
    if !subject.claims().freezes {
        return super::left_out("the driver does not claim to freeze");
    }
    let mut guest = subject.launch(subject.staying("thaws", &["wait"])).await?;
    guest.ready().await?;
    guest.sandbox.freeze().await?;
    guest.again(Vec::new()).await?;
    guest.ready().await?;
    guest.sandbox.freeze().await?;
    let exit = guest.sandbox.stop(Duration::ZERO).await;
    expect(exit.cause == ExitCause::Signal(9), || format!("{exit:?}"))
}

pub async fn a_listener_outlives_a_start(subject: Subject<'_>) -> Outcome {
    let port = if subject.claims().isolates_network { 9001 } else { 0 };
    let spec = Spec { network: Network::None, ..subject.staying("listens", &["connect", "$ADDRESS"]) };
    let sandbox = subject.driver.create(spec).await?;
    let listener = sandbox.listen(std::net::SocketAddr::from(([127, 0, 0, 1], port))).await?;
    let late = vec![("ADDRESS".to_owned(), listener.local_addr()?.to_string())];
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let mut guest = start(sandbox, late.clone()).await?;
    for number in 0..2 {
        let (stream, _) = listener.accept().await?;
        std::io::Write::write_all(&mut stream.into_std()?, format!("number {number}").as_bytes())?;
        let out = guest.stdout.rest().await?;
        expect(out == format!("ok number {number}"), || out)?;
        guest.again(late.clone()).await?;
    }
    Ok(())
}

pub async fn killed_for_memory_it_is_started_again(subject: Subject<'_>) -> Outcome {
    if !subject.claims().limits_memory {
        return super::left_out("the driver claims no memory limit");
    }
    if subject.claims().own_kernel {
        return super::left_out(
            "the sandbox goes with its own kernel, which is killed for its function's memory",
        );
    }
    let spec = Spec { memory: 32 * MIB, ..subject.staying("memory-again", &["hold", "$MIB"]) };
    let sandbox = subject.driver.create(spec).await?;
    let late = |mib: &str| vec![("MIB".to_owned(), mib.to_owned())];
    let mut guest = start(sandbox, late("400")).await?;
    let exit = guest.sandbox.ended().await;
    expect(exit.out_of_memory && exit.cause == ExitCause::Signal(9), || format!("{exit:?}"))?;
    guest.again(late("4")).await?;
    let out = guest.stdout.rest().await?;
    let exit = guest.sandbox.ended().await;
    // What happened before is not told again.
    expect(!exit.out_of_memory && out == "held", || format!("{exit:?}, it said {out:?}"))
}

pub async fn companions_run_beside_the_command(subject: Subject<'_>) -> Outcome {
    let sandbox = subject.driver.create(subject.staying("beside", &["wait"])).await?;
    // One before the command, one after.
    let process = sandbox.spawn(subject.companion(&["env"])).await?;
    let out = Pipe::new(process.stdio.stdout)?.rest().await?;
    expect(out == "OWN=its", || format!("its environment is {out:?}"))?;
    let ended = process.ended.await;
    expect(ended == Ok(ExitCause::Code(0)), || format!("{ended:?}"))?;
    let mut guest = start(sandbox, Vec::new()).await?;
    guest.ready().await?;
    let process = guest.sandbox.spawn(subject.companion(&["exit", "5"])).await?;
    let ended = process.ended.await;
    expect(ended == Ok(ExitCause::Code(5)), || format!("{ended:?}"))?;
    let missing = Companion { command: vec!["/no/such/program".to_owned()], env: Vec::new() };
    match guest.sandbox.spawn(missing).await {
        Err(Error::Function(text)) => expect(text.contains("/no/such/program"), || text)?,
        other => return fail(format!("{other:?}")),
    }
    // A signal to the command is not theirs; a start is the end of them, and of the command.
    let process = guest.sandbox.spawn(subject.companion(&["wait"])).await?;
    let mut out = Pipe::new(process.stdio.stdout)?;
    let line = out.line().await?;
    expect(line == "ready", || line)?;
    guest.sandbox.signal(Signal::Kill).await?;
    let exit = guest.sandbox.ended().await;
    expect(exit.cause == ExitCause::Signal(9), || format!("{exit:?}"))?;
    guest.again(Vec::new()).await?;
    guest.ready().await?;
    out.rest().await?;
    let ended = process.ended.await;
    expect(ended.is_err(), || format!("{ended:?}"))?;
    guest.sandbox.signal(Signal::Stop).await?;
    let exit = guest.sandbox.ended().await;
    expect(exit.cause == ExitCause::Signal(15), || format!("{exit:?}"))
}

pub async fn the_stop_signal_is_the_one_asked_for(subject: Subject<'_>) -> Outcome {
    let spec = Spec { stop_signal: libc::SIGUSR1, ..subject.spec("stop-signal", &["wait"]) };
    let mut guest = subject.launch(spec).await?;
    guest.ready().await?;
    let exit = guest.sandbox.stop(LIMIT).await;
    expect(exit.cause == ExitCause::Signal(libc::SIGUSR1), || format!("{exit:?}"))
}

/// It can only harm itself: without what it would be started by, it is not started again, and that is said.
pub async fn who_ends_the_stem_is_told(subject: Subject<'_>) -> Outcome {
    subject.isolated()?;
    let mut guest = subject.launch(subject.staying("zygote", &["kill-others"])).await?;
    guest.ready().await?;
    match guest.sandbox.clear().await {
        Err(Error::Function(_)) => Ok(()),
        other => fail(format!("{other:?}")),
    }
}

/// It was there, and was killed before it was told to start: that is how it ended, and nobody failed to start it.
pub async fn one_killed_while_it_is_parked_has_ended(subject: Subject<'_>) -> Outcome {
    subject.isolated()?;
    let sandbox = subject.driver.create(subject.staying("parked", &["wait"])).await?;
    let process = sandbox.spawn(subject.companion(&["kill-others"])).await?;
    let line = Pipe::new(process.stdio.stdout)?.line().await?;
    expect(line == "ready", || line)?;
    let mut guest = start(sandbox, Vec::new()).await?;
    let out = guest.stdout.rest().await?;
    let exit = guest.sandbox.ended().await;
    expect(exit.cause == ExitCause::Signal(9) && out.is_empty(), || format!("{exit:?}, it said {out:?}"))
}

pub async fn more_processes_than_the_limit_are_the_functions_fault(subject: Subject<'_>) -> Outcome {
    if !subject.claims().limits_pids {
        return super::left_out("the driver claims no limit of processes");
    }
    let spec = Spec { pids: 20, ..subject.staying("crowd", &["fork", "1000"]) };
    let mut guest = subject.launch(spec).await?;
    guest.stdout.line().await?;
    match guest.sandbox.spawn(subject.companion(&["wait"])).await {
        Err(Error::Function(text)) => expect(text.contains("processes"), || text)?,
        other => return fail(format!("{other:?}")),
    }
    // They go with the start that they belong to.
    guest.again(Vec::new()).await?;
    guest.stdout.line().await?;
    Ok(())
}
