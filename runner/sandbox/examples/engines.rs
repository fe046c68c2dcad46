//! What a start costs with other engines, beside the native sandbox, in one run: `cargo run --release -p stoker-sandbox --example engines [ROUNDS]`.
//!
//! As root. Rows are interleaved, so that a busy moment of the machine hits all of them, and what is not installed is left out. The
//! daemon is the one of `STOKER_DOCKER_SOCKET`, or the usual one. The function is this program again, which says one byte and ends with
//! its input. It is alone in a root of its own, as the layers of an image are: build it with `-C target-feature=+crt-static` and
//! `--target`. Ratios are over the native sandbox as a runner has it, with sandboxes prepared ahead.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use stoker_sandbox::docker::{self, Docker};
use stoker_sandbox::native::{self, Native};
use stoker_sandbox::oci::{self, Oci};
use stoker_sandbox::{Driver, Error, Network, Root, Spec, spawner};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    spawner::run_if_asked();
    if std::env::args().nth(1).as_deref() == Some("say") {
        return say();
    }
    let rounds = std::env::args().nth(1).map_or(Ok(20), |rounds| rounds.parse())?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(measure(rounds))
}

/// The function.
fn say() -> Result<(), Failure> {
    std::io::stdout().write_all(b"!")?;
    std::io::stdout().flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// The times of one driver.
struct Row {
    name: &'static str,
    driver: Box<dyn Driver>,
    cold: Vec<Duration>,
    /// Of the cold start, from parked to the first byte.
    start: Vec<Duration>,
    stop: Vec<Duration>,
}

/// The least and the median, in milliseconds.
fn least_and_median(times: &mut [Duration]) -> (f64, f64) {
    times.sort();
    let at = |index: usize| times.get(index).map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0);
    (at(0), at(times.len() / 2))
}

async fn drivers(state: &Path) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    let mut add = |name, driver: Result<Box<dyn Driver>, Error>| match driver {
        Ok(driver) => {
            println!("{name}: {}", driver.describe().why);
            let (cold, start, stop) = (Vec::new(), Vec::new(), Vec::new());
            rows.push(Row { name, driver, cold, start, stop });
        }
        Err(error) => println!("{name} left out: {error}"),
    };
    let ahead = native::Config::new("engines", state);
    add("native", Native::new(ahead).await.map(|driver| Box::new(driver) as _));
    let bare = native::Config { spares: 0, ..native::Config::new("engines-bare", state) };
    add("native, no spares", Native::new(bare).await.map(|driver| Box::new(driver) as _));
    for name in ["crun", "runc"] {
        let config = oci::Config { runtime: Some(name.into()), ..oci::Config::new(name, state) };
        add(name, Oci::new(config).await.map(|driver| Box::new(driver) as _));
    }
    let mut config = docker::Config::new("engines", state);
    if let Some(socket) = std::env::var_os("STOKER_DOCKER_SOCKET") {
        config.socket = socket.into();
    }
    add("docker", Docker::new(config).await.map(|driver| Box::new(driver) as _));
    Ok(rows)
}

fn spec(id: String, image: &Path) -> Spec {
    Spec {
        id,
        root: Root::Directory(image.to_owned()),
        writable_root: false,
        command: vec!["/function".to_owned(), "say".to_owned()],
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
    }
}

impl Row {
    async fn round(&mut self, number: usize, image: &Path) -> Result<(), Failure> {
        let begun = Instant::now();
        let sandbox = self.driver.create(spec(format!("e{number}"), image)).await?;
        let parked = begun.elapsed();
        let stdio = sandbox.start(Vec::new()).await?;
        rustix::io::ioctl_fionbio(&stdio.stdout, false)?;
        std::fs::File::from(stdio.stdout).read_exact(&mut [0])?;
        let cold = begun.elapsed();
        let begun = Instant::now();
        sandbox.stop(Duration::ZERO).await;
        // The first round warms caches.
        if number > 0 {
            self.cold.push(cold);
            self.start.push(cold - parked);
            self.stop.push(begun.elapsed());
        }
        Ok(())
    }
}

async fn measure(rounds: usize) -> Result<(), Failure> {
    let state = std::env::temp_dir().join(format!("stoker-engines-{}", std::process::id()));
    let mut rows = drivers(&state).await?;
    let image = state.join("image");
    std::fs::create_dir_all(&image)?;
    std::fs::copy(std::env::current_exe()?, image.join("function"))?;
    for number in 0..=rounds {
        for row in &mut rows {
            row.round(number, &image).await?;
            // What an engine does behind its answers, and the making of spares, are nobody else's time.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    println!("{rounds} rounds, milliseconds; the least, the median, and both over those of the first row");
    println!("{:<24} {:>26} {:>16} {:>16} {:>14}", "", "cold", "from parked", "stop", "ratios");
    let first = rows.first_mut().map_or((f64::NAN, f64::NAN), |row| least_and_median(&mut row.cold));
    for row in &mut rows {
        let (cold, start, stop) = (
            least_and_median(&mut row.cold),
            least_and_median(&mut row.start),
            least_and_median(&mut row.stop),
        );
        let pair = |(least, median): (f64, f64)| format!("{least:.2} {median:>8.2}");
        let ratios = format!("{:.1} {:>6.1}", cold.0 / first.0, cold.1 / first.1);
        println!("{:<24} {:>26} {:>16} {:>16} {ratios:>14}", row.name, pair(cold), pair(start), pair(stop));
    }
    for row in rows {
        row.driver.close().await;
    }
    std::fs::remove_dir_all(&state).ok();
    Ok(())
}
