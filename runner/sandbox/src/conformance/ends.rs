//! How sandboxes end.

use std::io::ErrorKind;
use std::time::Duration;

use super::{LIMIT, Outcome, Subject, expect, fail, left_out};
use crate::{Error, ExitCause};

pub async fn sigterm_is_honoured(subject: Subject<'_>) -> Outcome {
    let mut guest = subject.launch(subject.spec("term", &["on-term", "42"])).await?;
    guest.ready().await?;
    let exit = guest.sandbox.stop(LIMIT).await;
    expect(exit.cause == ExitCause::Code(42), || format!("{exit:?}"))?;
    let out = guest.stdout.rest().await?;
    expect(out == "terminated", || out)?;
    // A second stop and any wait say the same.
    let again = guest.sandbox.stop(Duration::ZERO).await;
    expect(again == exit && guest.sandbox.wait().await == exit, || format!("{again:?} then"))
}

pub async fn sigterm_ignored_is_killed(subject: Subject<'_>) -> Outcome {
    let mut guest = subject.launch(subject.spec("no-term", &["ignore-term"])).await?;
    guest.ready().await?;
    let exit = guest.sandbox.stop(Duration::from_millis(50)).await;
    expect(exit.cause == ExitCause::Signal(9), || format!("{exit:?}"))
}

pub async fn a_daemon_dies_with_its_function(subject: Subject<'_>) -> Outcome {
    for then in ["exit", "wait"] {
        let mut guest = subject.launch(subject.spec("daemon", &["daemon", then])).await?;
        let line = guest.stdout.line().await?;
        // Where the function has ended already, the daemon may not even have come to speak.
        expect(line == "daemon" || (line.is_empty() && then == "exit"), || line)?;
        if then == "wait" {
            guest.sandbox.stop(Duration::ZERO).await;
        } else {
            guest.sandbox.wait().await;
        }
        // The daemon holds the pipe: its end is the daemon's.
        guest.stdout.rest().await?;
    }
    Ok(())
}

pub async fn dropping_kills(subject: Subject<'_>) -> Outcome {
    let mut guest = subject.launch(subject.spec("drop", &["daemon", "wait"])).await?;
    guest.stdout.line().await?;
    drop(guest.sandbox);
    guest.stdout.rest().await?;
    // One that was never started goes as well, and its id is free again.
    drop(subject.driver.create(subject.spec("drop", &["wait"])).await?);
    subject.output("drop", &["say", "again"]).await.map(drop)
}

/// One that ends while it is frozen or thawed: whatever of it is gone first, the error says that it ended, not what was missing.
pub async fn an_order_that_meets_the_end_is_told_so(subject: Subject<'_>) -> Outcome {
    if !subject.claims().freezes {
        return left_out("the driver does not claim to freeze");
    }
    for _ in 0..5 {
        let guest = subject.launch(subject.spec("meets-end", &["exit", "0"])).await?;
        let mut frozen = false;
        loop {
            frozen = !frozen;
            let done = match frozen {
                true => guest.sandbox.freeze().await,
                false => guest.sandbox.thaw().await,
            };
            match done {
                Ok(()) => {}
                Err(Error::Platform { source, .. }) if source.kind() == ErrorKind::NotFound => break,
                Err(error) => return fail(format!("while it ended: {error}")),
            }
        }
        let exit = guest.sandbox.wait().await;
        expect(exit.cause == ExitCause::Code(0), || format!("{exit:?}"))?;
        let after = guest.sandbox.thaw().await;
        let told =
            matches!(&after, Err(Error::Platform { source, .. }) if source.kind() == ErrorKind::NotFound);
        expect(told, || format!("after its end: {after:?}"))?;
    }
    Ok(())
}
