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
    for name in ["CapInh", "CapPrm", "CapEff", "CapBnd"] {
        expect(field(name).as_deref() == Some("0000000000000000"), || {
            format!("{name} is {:?}", field(name))
        })?;
    }
    for (name, value) in [("CapAmb", "0000000000000000"), ("NoNewPrivs", "1")] {
        // gVisor's kernel does not say.
        let unsaid = subject.claims().own_kernel && field(name).is_none();
        expect(unsaid || field(name).as_deref() == Some(value), || format!("{name} is {:?}", field(name)))?;
    }
    expect(field("Seccomp").as_deref() == Some("2"), || "there is no seccomp filter".to_owned())
}

pub async fn others_are_not_seen(subject: Subject<'_>) -> Outcome {
    subject.isolated()?;
    let mut other = subject.launch(subject.spec("other", &["wait"])).await?;
    other.ready().await?;
    let out = subject.output("processes", &["processes"]).await?;
    let seen: Vec<_> = out.lines().filter(|line| !line.starts_with("1 ")).collect();
    expect(seen.len() == 1 && seen[0].contains("processes"), || format!("it sees {out:?}"))?;
    // Nor can it read what its init has in memory.
    let out = subject.output("init-memory", &["read", "/proc/1/mem"]).await?;
    expect(out == libc::EACCES.to_string(), || format!("/proc/1/mem answers {out:?}"))?;
    let out = subject.output("init-environment", &["read", "/proc/1/environ"]).await?;
    // gVisor's kernel shows what a process was started with to its own user: of the init, two variables that every container has.
    let shown = out
        .split('\0')
        .all(|one| one.is_empty() || ["PATH=", "HOME="].iter().any(|name| one.starts_with(name)));
    let own = subject.claims().own_kernel && shown;
    expect(own || out.parse::<i32>().is_ok(), || format!("/proc/1/environ shows {out:?}"))
}

pub async fn the_function_is_not_root(subject: Subject<'_>) -> Outcome {
    subject.isolated()?;
    let out = subject.output("ids", &["ids"]).await?;
    expect(!out.starts_with("0 ") && !out.contains(" 0 "), || format!("user and group {out}"))?;
    let mut guest = subject.launch(subject.spec("owner", &["wait"])).await?;
    guest.ready().await?;
    Ok(())
}
