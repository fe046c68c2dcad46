//! What keeps a function from the host and from its neighbours. Attempts to get around it are in [`escapes`](super::escapes).

use super::{Outcome, Subject, expect};

pub async fn no_capabilities_and_no_new_privileges(subject: Subject<'_>) -> Outcome {
    subject.isolated()?;
    let out = subject.output("status", &["status"]).await?;
    let field = |name: &str| {
        out.lines()
            .find_map(|line| line.strip_prefix(name))
            .map(|value| value.trim_start_matches(':').trim().to_owned())
    };
    for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        expect(field(name).as_deref() == Some("0000000000000000"), || {
            format!("{name} is {:?}", field(name))
        })?;
    }
    expect(field("NoNewPrivs").as_deref() == Some("1"), || "no_new_privs is not set".to_owned())?;
    expect(field("Seccomp").as_deref() == Some("2"), || "there is no seccomp filter".to_owned())
}

pub async fn others_are_not_seen(subject: Subject<'_>) -> Outcome {
    subject.isolated()?;
    let mut other = subject.launch(subject.spec("other", &["wait"])).await?;
    other.ready().await?;
    let out = subject.output("processes", &["processes"]).await?;
    // Its init may have a helper that has not ended yet, or just now, and has no command then.
    let (init, seen): (Vec<_>, Vec<_>) = out.lines().partition(|line| !line.contains("processes"));
    let command = |line: &str| line.split_once(' ').map_or("", |(_, command)| command.trim()).to_owned();
    let whose: std::collections::HashSet<_> =
        init.iter().map(|line| command(line)).filter(|command| !command.is_empty()).collect();
    expect(seen.len() == 1 && init.len() <= 2 && whose.len() == 1, || format!("it sees {out:?}"))?;
    // Nor can it read what these have in memory.
    for pid in [1, 3] {
        let out = subject.output("init-memory", &["read", &format!("/proc/{pid}/environ")]).await?;
        expect(out.parse::<i32>().is_ok(), || format!("/proc/{pid}/environ shows {out:?}"))?;
    }
    Ok(())
}

pub async fn the_function_is_not_root(subject: Subject<'_>) -> Outcome {
    subject.isolated()?;
    let out = subject.output("ids", &["ids"]).await?;
    expect(!out.starts_with("0 ") && !out.contains(" 0 "), || format!("user and group {out}"))?;
    let mut guest = subject.launch(subject.spec("owner", &["wait"])).await?;
    guest.ready().await?;
    Ok(())
}
