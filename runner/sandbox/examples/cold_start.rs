//! What a start costs, side by side in one run: `cargo run --release -p stoker-sandbox --example cold_start [ROUNDS]`.
//!
//! The function is this program again, which says one byte and then answers every byte it reads. Rows are interleaved, so
//! that a busy moment of the machine hits all of them. Build it with `-C target-feature=+crt-static` for the figures of
//! a static binary.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio as ProcessStdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use stoker_sandbox::native::{self, Native};
use stoker_sandbox::process::{self, Process};
use stoker_sandbox::{Driver, Error, Network, Root, Sandbox, Spec, Stdio, spawner};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    spawner::run_if_asked();
    if std::env::args().nth(1).as_deref() == Some("echo") {
        return echo();
    }
    let rounds = std::env::args().nth(1).map_or(Ok(50), |rounds| rounds.parse())?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(measure(rounds))
}

/// The function.
fn echo() -> Result<(), Failure> {
    let (mut stdin, mut stdout) = (std::io::stdin(), std::io::stdout());
    let mut byte = [b'!'];
    loop {
        stdout.write_all(&byte)?;
        stdout.flush()?;
        if stdin.read(&mut byte)? == 0 {
            return Ok(());
        }
    }
}

struct Row {
    name: &'static str,
    times: Vec<Duration>,
}

impl Row {
    fn new(name: &'static str) -> Self {
        Self { name, times: Vec::new() }
    }

    fn print(&mut self) {
        self.times.sort();
        let at = |index: usize| self.times[index].as_secs_f64() * 1000.0;
        let last = self.times.len() - 1;
        println!("{:<44} {:>8.3} {:>8.3} {:>8.3}", self.name, at(0), at(last / 2), at(last));
    }
}

fn spec(id: String, root: Root) -> Result<Spec, Failure> {
    let program = match root {
        Root::Host => std::env::current_exe()?.to_string_lossy().into_owned(),
        Root::Directory(_) => "/function".to_owned(),
    };
    Ok(Spec {
        id,
        root,
        writable_root: false,
        command: vec![program, "echo".to_owned()],
        env: Vec::new(),
        user: None,
        groups: Vec::new(),
        workdir: PathBuf::from("/"),
        memory: 128 << 20,
        cpu_millis: 0,
        pids: 64,
        tmp_size: 16 << 20,
        open_files: 1024,
        network: Network::None,
        shared: Some(PathBuf::from("/tmp/shared")),
        opt: None,
        stop_signal: stoker_sandbox::SIGTERM,
        stays: false,
    })
}

/// The pipes as blocking files: what is measured is the function, not a reactor.
struct Talk {
    stdin: std::fs::File,
    stdout: std::fs::File,
    _stderr: OwnedFd,
}

impl Talk {
    fn new(stdio: Stdio) -> Result<Self, Failure> {
        rustix::io::ioctl_fionbio(&stdio.stdout, false)?;
        rustix::io::ioctl_fionbio(&stdio.stdin, false)?;
        Ok(Self { stdin: stdio.stdin.into(), stdout: stdio.stdout.into(), _stderr: stdio.stderr })
    }

    fn first(&mut self) -> Result<(), Failure> {
        Ok(self.stdout.read_exact(&mut [0])?)
    }

    fn echo(&mut self) -> Result<(), Failure> {
        self.stdin.write_all(b"x")?;
        self.first()
    }
}

async fn cold(
    driver: &dyn Driver,
    spec: Spec,
) -> Result<(Box<dyn Sandbox>, Talk, Duration, Duration), Failure> {
    let begun = Instant::now();
    let sandbox = driver.create(spec).await?;
    let created = begun.elapsed();
    let mut talk = Talk::new(sandbox.start(Vec::new()).await?)?;
    talk.first()?;
    Ok((sandbox, talk, created, begun.elapsed()))
}

/// Cold starts a second, by so many at once, each stopped before the next.
async fn sustained(native: &Arc<Native>, at_once: usize) -> Result<f64, Failure> {
    let (begun, length) = (Instant::now(), Duration::from_secs(5));
    let workers: Vec<_> = (0..at_once)
        .map(|worker| {
            let (native, runtime) = (Arc::clone(native), tokio::runtime::Handle::current());
            // The pipes are read by waiting: not on the threads that serve the driver.
            tokio::task::spawn_blocking(move || {
                let mut starts = 0_usize;
                while begun.elapsed() < length {
                    let spec = spec(format!("s{worker}-{starts}"), Root::Host).map_err(|e| e.to_string())?;
                    let cold = runtime.block_on(cold(&*native, spec)).map_err(|e| e.to_string())?;
                    runtime.block_on(cold.0.stop(Duration::ZERO));
                    starts += 1;
                }
                Ok::<_, String>(starts)
            })
        })
        .collect();
    let mut starts = 0;
    for worker in workers {
        starts += worker.await??;
    }
    Ok(starts as f64 / begun.elapsed().as_secs_f64())
}

/// Resident memory of this process, and what the inits and functions have for themselves, in KiB.
fn resident() -> Result<(u64, u64), Failure> {
    let field = |path: String, name: &str| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
        line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok()).unwrap_or(0)
    };
    let mut inits = 0;
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let path = entry.path();
        let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
        if name.starts_with("stoker-init") {
            inits += field(path.join("smaps_rollup").to_string_lossy().into_owned(), "Pss:");
        }
    }
    Ok((field("/proc/self/status".to_owned(), "VmRSS:"), inits))
}

/// What so many idle sandboxes cost, each, in KiB: here, and in their inits.
async fn idle(native: &Native, count: usize) -> Result<(f64, f64), Failure> {
    let (before, inits_before) = resident()?;
    let mut kept = Vec::new();
    for number in 0..count {
        kept.push(cold(native, spec(format!("i{number}"), Root::Host)?).await?);
    }
    let (after, inits) = resident()?;
    let each = |before: u64, after: u64| after.saturating_sub(before) as f64 / count as f64;
    Ok((each(before, after), each(inits_before, inits)))
}

async fn measure(rounds: usize) -> Result<(), Failure> {
    let state = std::env::temp_dir().join(format!("stoker-cold-start-{}", std::process::id()));
    let native = Native::new(native::Config::new("cold-start", &state)).await?;
    let bare =
        Native::new(native::Config { spares: 0, ..native::Config::new("cold-start-bare", &state) }).await?;
    let process = Process::new(process::Config::new("cold-start", &state)).await?;
    println!("native:  {}\nprocess: {}", native.describe().why, process.describe().why);

    // A root of a static binary only, if this is one.
    let image = state.join("image");
    for name in ["proc", "dev", "tmp"] {
        std::fs::create_dir_all(image.join(name))?;
    }
    std::fs::copy(std::env::current_exe()?, image.join("function"))?;

    let mut rows = [
        Row::new("fork+exec to first byte (floor)"),
        Row::new("process driver: create, start, first byte"),
        Row::new("native, host root: create, start, first byte"),
        Row::new("native, host root: create"),
        Row::new("native, host root: start from parked"),
        Row::new("native, no spares: create, start, first byte"),
        Row::new("native, own root: create, start, first byte"),
        Row::new("native, own root: start from parked"),
        Row::new("warm: echo"),
        Row::new("freeze"),
        Row::new("thaw and echo"),
        Row::new("stop and gone"),
    ];
    let mut own_root = true;
    for round in 0..=rounds {
        let mut times = [Duration::ZERO; 12];
        // Creations use up the spares; in life there is time between them to make new ones.
        let pause = || tokio::time::sleep(Duration::from_millis(30));

        let begun = Instant::now();
        let mut child = Command::new(std::env::current_exe()?)
            .arg("echo")
            .stdin(ProcessStdio::piped())
            .stdout(ProcessStdio::piped())
            .stderr(ProcessStdio::piped())
            .spawn()?;
        child.stdout.as_mut().ok_or("no stdout")?.read_exact(&mut [0])?;
        times[0] = begun.elapsed();
        drop(child.stdin.take());
        child.wait()?;

        let (sandbox, talk, _, all) = cold(&process, spec(format!("p{round}"), Root::Host)?).await?;
        times[1] = all;
        drop(talk);
        sandbox.wait().await;

        pause().await;
        let (sandbox, mut talk, created, all) = cold(&native, spec(format!("n{round}"), Root::Host)?).await?;
        (times[2], times[3], times[4]) = (all, created, all - created);
        let begun = Instant::now();
        talk.echo()?;
        times[8] = begun.elapsed();
        // The making of a spare takes its share of the machine.
        pause().await;
        let begun = Instant::now();
        sandbox.freeze().await?;
        times[9] = begun.elapsed();
        let begun = Instant::now();
        sandbox.thaw().await?;
        talk.echo()?;
        times[10] = begun.elapsed();
        let begun = Instant::now();
        sandbox.stop(Duration::ZERO).await;
        times[11] = begun.elapsed();

        pause().await;
        let (sandbox, talk, _, all) = cold(&bare, spec(format!("b{round}"), Root::Host)?).await?;
        times[5] = all;
        drop(talk);
        sandbox.wait().await;

        if own_root {
            pause().await;
            match cold(&native, spec(format!("r{round}"), Root::Directory(image.clone()))?).await {
                Ok((sandbox, talk, created, all)) => {
                    (times[6], times[7]) = (all, all - created);
                    drop(talk);
                    sandbox.wait().await;
                }
                Err(error) if matches!(error.downcast_ref(), Some(Error::Function(_))) => {
                    println!("own root left out, as this is no static binary: {error}");
                    own_root = false;
                }
                Err(error) => return Err(error),
            }
        }
        // The first round warms caches.
        if round > 0 {
            for (row, time) in rows.iter_mut().zip(times) {
                row.times.push(time);
            }
        }
    }
    println!("{rounds} rounds, milliseconds {:>28} {:>8} {:>8}", "min", "median", "max");
    for row in rows.iter_mut().filter(|row| row.times.iter().any(|time| !time.is_zero())) {
        row.print();
    }
    let native = Arc::new(native);
    for at_once in [1, 4, 16] {
        println!("{:>8.0} cold starts a second, {at_once} at once", sustained(&native, at_once).await?);
    }
    let (here, inits) = idle(&native, 100).await?;
    println!("{here:>8.0} KiB of the runner, {inits:.0} KiB of the init for every idle sandbox");
    drop((native, bare, process));
    std::fs::remove_dir_all(state)?;
    Ok(())
}
