//! How a sandbox starts its command, what that finds, and what is said when it cannot.

use std::future::Future;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::{Outcome, Scratch, Spec, Stop, Subject, expect, refused, start};
use crate::{Exit, ExitCause};

pub async fn exit_code_arrives(subject: Subject<'_>) -> Outcome {
    let (exit, ..) = subject.complete(subject.spec("exit", &["exit", "7"])).await?;
    expect(exit == Exit { cause: ExitCause::Code(7), out_of_memory: false }, || format!("{exit:?}"))
}

pub async fn a_signal_arrives(subject: Subject<'_>) -> Outcome {
    let (exit, ..) = subject.complete(subject.spec("signal", &["signal", "10"])).await?;
    expect(exit.cause == ExitCause::Signal(10), || format!("{exit:?}"))
}

pub async fn the_three_pipes_are_connected(subject: Subject<'_>) -> Outcome {
    let mut guest = subject.launch(subject.spec("pipes", &["echo"])).await?;
    let stdin = guest.stdin.take().ok_or(Stop::Failed("no stdin".to_owned()))?;
    let mut stdin = std::fs::File::from(stdin);
    stdin.write_all(b"one\ntwo\n")?;
    let (first, second) = (guest.stdout.line().await?, guest.stdout.line().await?);
    drop(stdin);
    let (out, err) = (guest.stdout.rest().await?, guest.stderr.rest().await?);
    expect((first.as_str(), second.as_str(), out.as_str()) == ("one", "two", ""), || {
        format!("stdout {first:?} {second:?} {out:?}")
    })?;
    expect(err == "said to stderr", || format!("stderr {err:?}"))
}

pub async fn stdout_can_be_opened_by_its_path(subject: Subject<'_>) -> Outcome {
    let out = subject.output("reopen", &["append-stdout"]).await?;
    expect(out == "ok", || format!("errno {out}"))
}

pub async fn late_environment_is_added_and_wins(subject: Subject<'_>) -> Outcome {
    let mut spec = subject.spec("late", &["env"]);
    spec.env.push(("OVER".to_owned(), "spec".to_owned()));
    let sandbox = subject.driver.create(spec).await?;
    let long = "x".repeat(100_000);
    let late = vec![("OVER".to_owned(), "late".to_owned()), ("LONG".to_owned(), long.clone())];
    let mut guest = start(sandbox, late).await?;
    let out = guest.stdout.rest().await?;
    let lines: Vec<_> = out.lines().collect();
    expect(lines == ["GIVEN=early", &format!("LONG={long}"), "OVER=late"], || {
        format!(
            "{:?}",
            lines.iter().map(|line| line.chars().take(40).collect::<String>()).collect::<Vec<_>>()
        )
    })
}

pub async fn the_environment_is_only_what_was_given(subject: Subject<'_>) -> Outcome {
    let out = subject.output("env", &["env"]).await?;
    expect(out == "GIVEN=early", || format!("{out:?}"))
}

pub async fn the_work_directory_is_current_and_readable(subject: Subject<'_>) -> Outcome {
    let scratch = Scratch::new("workdir")?;
    scratch.file("data", "content", 0o644)?;
    for words in [["read", "data"], ["read", "./data"]] {
        let spec = Spec { workdir: scratch.0.clone(), ..subject.spec("workdir", &words) };
        let out = subject.output_of(spec).await?;
        expect(out == "content", || format!("{out:?}"))?;
    }
    let spec = Spec { workdir: scratch.0.clone(), ..subject.spec("workdir", &["cwd"]) };
    let out = subject.output_of(spec).await?;
    expect(Path::new(&out) == scratch.0, || out)?;
    if subject.claims().isolates {
        let spec = Spec { workdir: scratch.0.clone(), ..subject.spec("workdir", &["write", "new"]) };
        let out = subject.output_of(spec).await?;
        subject.read_only(&out)?;
    }
    Ok(())
}

pub async fn a_work_directory_behind_a_closed_one_is_shown(subject: Subject<'_>) -> Outcome {
    use std::os::unix::fs::PermissionsExt;
    subject.isolated()?;
    let scratch = Scratch::new("closed")?;
    let workdir = scratch.0.join("closed/fn");
    std::fs::create_dir_all(&workdir)?;
    std::fs::write(workdir.join("data"), "content")?;
    std::fs::set_permissions(scratch.0.join("closed"), std::fs::Permissions::from_mode(0o700))?;
    let out = subject.output_of(Spec { workdir, ..subject.spec("closed", &["read", "data"]) }).await?;
    expect(out == "content", || format!("{out:?}"))
}

pub async fn a_missing_work_directory_is_the_functions_fault(subject: Subject<'_>) -> Outcome {
    let workdir = PathBuf::from("/nowhere/at/all");
    let spec = Spec { workdir, ..subject.spec("no-workdir", &["exit", "0"]) };
    refused(subject, spec, &["/nowhere/at/all", "does not exist"]).await
}

pub async fn a_missing_command_is_the_functions_fault(subject: Subject<'_>) -> Outcome {
    let mut spec = subject.spec("no-command", &[]);
    spec.command = vec!["no-such-command".to_owned()];
    spec.env.push(("PATH".to_owned(), "/usr/bin:/bin".to_owned()));
    refused(subject, spec.clone(), &["no-such-command", "not found", "/usr/bin:/bin"]).await?;
    spec.command = vec!["/usr/bin/no-such-command".to_owned()];
    refused(subject, spec, &["/usr/bin/no-such-command", "does not exist"]).await
}

pub async fn a_command_without_permission_is_the_functions_fault(subject: Subject<'_>) -> Outcome {
    let scratch = Scratch::new("permission")?;
    let program = scratch.file("program", "#!/bin/sh\n", 0o644)?;
    let mut spec = Spec { workdir: scratch.0.clone(), ..subject.spec("permission", &[]) };
    spec.command = vec![program.to_string_lossy().into_owned()];
    refused(subject, spec, &["program", "permission denied"]).await
}

pub async fn a_missing_interpreter_is_named(subject: Subject<'_>) -> Outcome {
    let scratch = Scratch::new("interpreter")?;
    let program = scratch.file("script", "#!/no/such/interpreter -x\n", 0o755)?;
    let mut spec = Spec { workdir: scratch.0.clone(), ..subject.spec("interpreter", &[]) };
    spec.command = vec![program.to_string_lossy().into_owned()];
    refused(subject, spec.clone(), &["script", "/no/such/interpreter"]).await?;
    // It is there, but for what ends its line.
    scratch.file("script", "#!/bin/sh\r\nexit 0\r\n", 0o755)?;
    refused(subject, spec.clone(), &[r#"a script for "/bin/sh\r""#, "write it with LF"]).await?;
    scratch.file("script", &format!("#!/{}\n", "long/".repeat(100)), 0o755)?;
    // How much of it is read is the kernel's own business.
    let words: &[_] =
        if subject.claims().own_kernel { &["script"] } else { &["script", "#! line is longer"] };
    refused(subject, spec.clone(), words).await?;
    // One that nobody writes to has whoever reads it wait.
    std::fs::remove_file(&program)?;
    let mode = rustix::fs::Mode::from_raw_mode(0o777);
    let made = rustix::fs::mknodat(rustix::fs::CWD, &program, rustix::fs::FileType::Fifo, mode, 0);
    made.map_err(std::io::Error::from)?;
    refused(subject, spec, &["script is not a plain file"]).await
}

pub async fn a_command_beside_the_work_directory_is_found(subject: Subject<'_>) -> Outcome {
    let scratch = Scratch::new("beside")?;
    let workdir = scratch.0.join("fn");
    for directory in ["fn/programs", "beside"] {
        std::fs::create_dir_all(scratch.0.join(directory))?;
    }
    std::os::unix::fs::symlink(subject.guest, scratch.0.join("beside/link"))?;
    std::os::unix::fs::symlink("../../beside/link", workdir.join("programs/link"))?;
    for program in ["../beside/link", "programs/link", "./programs/../../beside/link"] {
        let mut spec = Spec { workdir: workdir.clone(), ..subject.spec("beside", &["say", "found"]) };
        spec.command[0] = program.to_owned();
        let out = subject.output_of(spec).await?;
        expect(out == "found", || format!("{program}: {out:?}"))?;
    }
    Ok(())
}

pub async fn starting_twice_is_refused(subject: Subject<'_>) -> Outcome {
    let sandbox = subject.driver.create(subject.spec("twice", &["wait"])).await?;
    let _stdio = sandbox.start(Vec::new()).await?;
    expect(sandbox.start(Vec::new()).await.is_err(), || "it started twice".to_owned())
}

pub async fn no_descriptor_leaks(subject: Subject<'_>) -> Outcome {
    let spec =
        Spec { shared: Some(PathBuf::from("/tmp/shared")), ..subject.spec("descriptors", &["descriptors"]) };
    let out = subject.output_of(spec).await?;
    expect(out == "0 1 2", || format!("open: {out}"))
}

pub async fn limits_of_the_process_are_set(subject: Subject<'_>) -> Outcome {
    let out = subject.output("limits", &["limits"]).await?;
    let limit = |name: &str| {
        let line = out.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line[name.len().min(line.len())..].split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    expect(limit("Max open files") == ["256", "256"], || out.clone())?;
    // One byte: then no program of the host's is handed the dump, either. Less where we may not have even that.
    let core = crate::init::core_size().to_string();
    expect(limit("Max core file size") == [core.as_str(), core.as_str()], || out.clone())
}

pub async fn many_at_once(subject: Subject<'_>) -> Outcome {
    let specs = (0..100).map(|number| subject.spec(&format!("many-{number}"), &["say", &number.to_string()]));
    let runs: Vec<_> = specs.map(|spec| subject.output_of(spec)).collect();
    let results = join(runs).await;
    for (number, result) in results.into_iter().enumerate() {
        let out = result?;
        expect(out == number.to_string(), || format!("number {number} says {out:?}"))?;
    }
    Ok(())
}

/// Runs all of them at once, on this task.
async fn join<T>(futures: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut waiting: Vec<_> = futures.into_iter().map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        let mut pending = false;
        for (future, result) in &mut waiting {
            if result.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(value) => *result = Some(value),
                    std::task::Poll::Pending => pending = true,
                }
            }
        }
        if pending { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    waiting.into_iter().filter_map(|(_, result)| result).collect()
}
