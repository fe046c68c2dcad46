//! Every block of commands in the pages is run, as somebody who follows the page would: one shell a page, block after block, in a directory
//! with a copy of what the repository has for its readers, the built programs under `target/release`. Where a page stands on something, comments
//! that no reader sees say so ([`Note`]).
//!
//! Each page has a machine of its own, as far as it can see: its network has nothing but loopback, so that pages use the ports that they name, and its
//! `/tmp`, `/etc`, `/usr/local` and processes are nobody else's. One that speaks of `systemctl` has a whole root of its own, and is run by a service of
//! systemd. That takes root.
//!
//! Building is left out (`cargo build`, `cargo install`): what was built is there. `pip` and `npm` find what `scripts/test` has fetched for them; without
//! it, pages that install something are left out, which is said. What cannot be run here says why, and is listed in docs/README.md.

use std::fmt::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use stoker_tests::program;
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::machine::{Machine, places, quoted};
use crate::page::{Note, Page, Step, pages, root};

/// A page that takes longer hangs.
const LONGEST: Duration = Duration::from_secs(150);

/// Programs that pages speak of: a line that begins with one is a command.
const PROGRAMS: [&str; 20] = [
    "stoker",
    "stoker-lb",
    "stoker-runner",
    "curl",
    "cargo",
    "docker",
    "helm",
    "kubectl",
    "systemctl",
    "etcd",
    "etcdctl",
    "install",
    "apt-get",
    "aws",
    "jq",
    "npm",
    "pip",
    "dpkg",
    "scripts/test",
    "benches/run",
];

/// What pages run in.
const BEGIN: &str = r#"
set -euo pipefail
cargo() {
  case "$1" in
    build | install) ;;
    run) while [ "$1" != -- ]; do shift; done; shift; stoker "$@" ;;
    *) echo "cargo $1 is not for here" >&2; return 1 ;;
  esac
}
# Starts what stays, in a group of its own, and waits until it has said something.
begin() {
  local line
  rm -f said && mkfifo said
  set -m
  eval "$2" >said 2>&1 &
  groups+=("-$!")
  set +m
  exec {from}<said
  while IFS= read -r line <&"$from"; do
    printf '%s\n' "$line"
    case "$line" in *"$1"*) cat <&"$from" >/dev/null & readers+=("$!"); return ;; esac
  done
  echo "it ended before it said: $1" >&2
  return 1
}
groups=()
readers=()
# What follows goes to a file, and then where it would have gone.
out=$PWD/.out
keep() { exec 3>&1 4>&2 >"$out" 2>&1; kept=yes; }
show() { exec >&3 2>&4 3>&- 4>&-; kept=; cat "$out"; }
kept=
# Ends all that runs, each told once, and waits for its end. What was begun is not our child, nor is what clears up behind it: it has ended
# when nobody is left who could say something. With this shell everything else is killed.
stop() {
  local job
  kill -- "${groups[@]}" 2>/dev/null || true
  for job in $(jobs -p); do
    case " ${groups[*]} ${readers[*]} " in
      *[\ -]"$job "*) ;;
      *) kill "$job" 2>/dev/null || true ;;
    esac
  done
  groups=() readers=()
  wait
}
end() {
  local status=$?
  trap - EXIT
  if [ "$kept" ]; then show; fi
  stop
  exit "$status"
}
trap end EXIT
ip link set lo up
"#;

/// The script of a page.
fn script(page: &Page) -> String {
    let mut script = BEGIN.to_owned();
    for step in &page.steps {
        let (line, text, notes) = match step {
            Step::Before { line, text } => (line, text, &[][..]),
            Step::Block { line, text, notes, language } => {
                if let Some(Note::File(name)) = notes.iter().find(|note| matches!(note, Note::File(_))) {
                    _ = writeln!(script, "cat >{} <<'THE END'\n{text}THE END", quoted(name));
                    continue;
                }
                if language != "sh" || notes.iter().any(|note| matches!(note, Note::NotRun(_))) {
                    continue;
                }
                (line, text, &notes[..])
            }
        };
        _ = writeln!(script, "echo '=== {}:{line}' >&2", page.name);
        if let Some(Note::Stays(says)) = notes.iter().find(|note| matches!(note, Note::Stays(_))) {
            _ = writeln!(script, "begin {} {}", quoted(says), quoted(text));
        } else if notes.contains(&Note::Fails) {
            _ = writeln!(
                script,
                "if (\n{text}) >\"$out\" 2>&1; then echo 'it did not fail' >&2; exit 1; fi\ncat \"$out\""
            );
        } else if notes.is_empty() {
            script.push_str(text);
        } else {
            // In this very shell: the next block may need what it has set.
            _ = writeln!(script, "keep\n{text}show");
        }
        for note in notes {
            if let Note::Says(says) = note {
                let says = quoted(says);
                _ = writeln!(
                    script,
                    "grep -qF -- {says} \"$out\" || {{ echo it does not say: {says} >&2; exit 1; }}"
                );
            }
        }
    }
    script
}

/// Puts what readers have into a directory, with the programs as they are shipped where that is asked for.
fn furnish(directory: &Path, shipped: bool) {
    for name in ["examples", "deploy", "docs", "proto", "LICENSE", "README.md", "CHANGELOG.md"] {
        let copied = std::process::Command::new("cp")
            .arg("-r")
            .arg(root().join(name))
            .arg(directory)
            .status()
            .unwrap();
        assert!(copied.success(), "{name}");
    }
    // Functions are started by users that are nobody.
    std::fs::create_dir(directory.join("target")).unwrap();
    let built = program("stoker").parent().unwrap().to_owned();
    symlink(&built, directory.join("target/release")).unwrap();
    if shipped {
        // It has no debug information, which is nine tenths of what tests are built with.
        let into = directory.join("target/dist");
        std::fs::create_dir(&into).unwrap();
        for name in ["stoker", "stoker-lb", "stoker-runner"] {
            let mut strip = std::process::Command::new("strip");
            let stripped = strip.arg("-o").arg(into.join(name)).arg(built.join(name)).status();
            assert!(stripped.unwrap().success(), "strip {name}");
        }
    }
}

/// What `scripts/test` has fetched for one of the two that install.
fn packages(of: &str) -> PathBuf {
    let kits = match std::env::var_os("STOKER_TEST_KITS") {
        Some(directory) => directory.into(),
        None => program("probe").parent().unwrap().parent().unwrap().join("test-kits"),
    };
    kits.join(of)
}

async fn follow(name: &str) {
    if !rustix::process::geteuid().is_root() {
        println!("left out: a network and mounts of its own take root");
        return;
    }
    let page = pages().into_iter().find(|page| page.name == name).unwrap();
    let script = script(&page);
    let (python, node) = (packages("pages-python"), packages("pages-node"));
    for (installs, from) in [("pip install", &python), ("npm install", &node)] {
        if script.contains(installs) && !from.join("version").exists() {
            println!("left out: what `{installs}` needs is not in {}: run scripts/test", from.display());
            return;
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let work = directory.path().join("work");
    std::fs::create_dir(&work).unwrap();
    furnish(&work, script.contains("target/dist"));
    let text = |path: PathBuf| path.to_string_lossy().into_owned();
    let variables = [
        ("PIP_NO_INDEX", "1".to_owned()),
        ("PIP_DISABLE_PIP_VERSION_CHECK", "1".to_owned()),
        ("PIP_FIND_LINKS", text(python.join("wheels"))),
        ("npm_config_offline", "true".to_owned()),
        ("npm_config_audit", "false".to_owned()),
        ("npm_config_logs_max", "0".to_owned()),
        ("npm_config_cache", text(node.join("npm"))),
    ];
    let Some(machine) = Machine::new(&work, &script, &variables) else { return };
    let [repository, programs] = places();
    let mut child = machine
        .command(&[repository, programs, python, node])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (mut out, mut err) = (
        BufReader::new(child.stdout.take().unwrap()).lines(),
        BufReader::new(child.stderr.take().unwrap()).lines(),
    );
    let mut said = Vec::new();
    let ended = tokio::time::timeout(LONGEST, async {
        let (mut out_ended, mut err_ended) = (false, false);
        while !(out_ended && err_ended) {
            let line = tokio::select! {
                line = out.next_line(), if !out_ended => { let line = line.unwrap(); out_ended = line.is_none(); line }
                line = err.next_line(), if !err_ended => { let line = line.unwrap(); err_ended = line.is_none(); line }
            };
            said.extend(line);
        }
        child.wait().await.unwrap()
    })
    .await;
    said.extend(machine.said().lines().map(str::to_owned));
    // From the block on that it ended in; what follows is the end of what it left running.
    let last = said.iter().rposition(|line: &String| line.starts_with("=== ")).unwrap_or(0);
    let last = said[last..].iter().take(80).map(String::as_str).collect::<Vec<_>>().join("\n");
    match ended {
        Ok(status) => assert!(status.success(), "{name}: {status}\n{last}"),
        Err(_) => panic!("{name} takes longer than {LONGEST:?}\n{last}"),
    }
}

/// One test a page, so that each has its name and they run side by side.
macro_rules! followed {
    ($($test:ident => $page:literal,)*) => {
        const FOLLOWED: &[&str] = &[$($page),*];
        $(
            #[tokio::test]
            async fn $test() {
                follow($page).await;
            }
        )*
    };
}

followed! {
    readme => "README.md",
    quick_start => "docs/quick-start.md",
    deploying => "deploy/README.md",
    functions => "docs/functions.md",
    access => "docs/access.md",
    later => "docs/async.md",
    lambda => "docs/lambda.md",
    grpc => "docs/grpc.md",
    autoscaling => "docs/autoscaling.md",
    fdk_python => "examples/fdk-python/README.md",
    fdk_node => "examples/fdk-node/README.md",
    migrating_from_fn => "docs/migrating-from-fn.md",
    migrating_from_lambda => "docs/migrating-from-lambda.md",
    simulator => "docs/simulator.md",
    upgrading => "docs/upgrading.md",
}

fn blocks(page: &Page) -> impl Iterator<Item = (usize, &str, &str, &[Note])> {
    page.steps.iter().filter_map(|step| match step {
        Step::Block { line, language, text, notes } => {
            Some((*line, language.as_str(), text.as_str(), &notes[..]))
        }
        Step::Before { .. } => None,
    })
}

#[test]
fn no_command_goes_without_being_run() {
    let mut mistakes = Vec::new();
    for page in pages() {
        let mut runs = false;
        for (line, language, text, notes) in blocks(&page) {
            let place = format!("{}:{line}", page.name);
            let command =
                |line: &str| PROGRAMS.iter().any(|program| line.split(' ').next() == Some(*program));
            match language {
                "sh" => runs |= !notes.iter().any(|note| matches!(note, Note::NotRun(_) | Note::File(_))),
                "" | "console" | "bash"
                    if text.lines().any(|line| command(line.trim_start_matches("$ "))) =>
                {
                    mistakes.push(format!("{place}: commands stand in a block of `sh`"));
                }
                _ => {}
            }
            for note in notes {
                match note {
                    Note::NotRun(why) if why.len() < 10 => {
                        mistakes.push(format!("{place}: why is it not run?"))
                    }
                    Note::Says(_) | Note::Stays(_) | Note::Fails if language != "sh" => {
                        mistakes.push(format!("{place}: {note:?} is of a block of `sh`"));
                    }
                    _ => {}
                }
            }
        }
        if runs && !FOLLOWED.contains(&page.name.as_str()) {
            mistakes.push(format!("{} has commands and no test that follows it", page.name));
        }
        if !runs && FOLLOWED.contains(&page.name.as_str()) {
            mistakes.push(format!("{} has no commands to follow", page.name));
        }
    }
    assert!(mistakes.is_empty(), "{}", mistakes.join("\n"));
}

#[test]
fn what_is_not_run_is_told() {
    let all = pages();
    let (mut run, mut list, mut count) = (0, String::new(), 0);
    for page in &all {
        for (_, _, text, notes) in blocks(page).filter(|(_, language, ..)| *language == "sh") {
            let why = notes.iter().find_map(|note| match note {
                Note::NotRun(why) => Some(why),
                _ => None,
            });
            match why {
                None => run += usize::from(!notes.iter().any(|note| matches!(note, Note::File(_)))),
                Some(why) => {
                    count += 1;
                    let first = text.lines().find(|line| !line.starts_with('#')).unwrap_or_default();
                    let first: String = first.trim_end_matches('\\').trim().chars().take(80).collect();
                    _ = writeln!(list, "| {} | `{}` | {why} |", page.name, first.replace('|', "\\|"));
                }
            }
        }
    }
    let should = format!(
        "{run} blocks of commands are run, {count} are not:\n\n| page | commands | why not |\n|---|---|---|\n{list}"
    );
    let path = root().join("docs/README.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once("<!-- not followed -->\n").unwrap();
    let (is, after) = rest.split_once("<!-- /not followed -->\n").unwrap();
    if std::env::var_os("STOKER_TEST_WRITE").is_some() {
        let text = format!("{before}<!-- not followed -->\n{should}<!-- /not followed -->\n{after}");
        std::fs::write(&path, text).unwrap();
    } else {
        assert_eq!(is, should, "docs/README.md: run this test with STOKER_TEST_WRITE=1");
    }
}

#[test]
fn a_page_that_is_wrong_is_noticed() {
    let note = |text: &str| vec![Note::Says(text.to_owned())];
    let block =
        |text: &str, notes| Step::Block { line: 1, language: "sh".to_owned(), text: text.to_owned(), notes };
    let runs = |steps| {
        let page = Page { name: "p.md".to_owned(), steps, ..Page::default() };
        // Without a network of its own, for anybody.
        let script = script(&page).replace("ip link set lo up", "");
        let directory = tempfile::tempdir().unwrap();
        std::process::Command::new("bash")
            .args(["-c", &script])
            .current_dir(directory.path())
            .output()
            .unwrap()
            .status
            .success()
    };
    assert!(runs(vec![block("a=1; echo 2\n", note("2")), block("echo $a\n", note("1"))]));
    assert!(runs(vec![block("echo up; cat\n", vec![Note::Stays("up".to_owned())]), block("true\n", vec![])]));
    assert!(runs(vec![block("false\n", vec![Note::Fails])]));
    for wrong in [
        block("false\n", vec![]),
        block("echo 1; false; true\n", note("1")),
        block("echo 2\n", note("1")),
        block("true\n", vec![Note::Fails]),
        block("echo down\n", vec![Note::Stays("up".to_owned())]),
        block("cargo test\n", vec![]),
    ] {
        assert!(!runs(vec![wrong.clone()]), "{wrong:?}");
    }
}
