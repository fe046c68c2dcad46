//! What connects the hosts: it reads every packet that one of them sends, decides what becomes of it, and writes it to whom it is for.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

/// Larger than any packet of the interfaces, which are as large as Ethernet's.
const PACKET: usize = 2048;

/// Packets that are on the way between two hosts at once; more are lost, as on a real line.
const ON_THE_WAY: usize = 4096;

/// A queue before a narrow line holds as much as passes in this time.
const QUEUE: Duration = Duration::from_millis(200);

/// What becomes of packets from one host to another.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Way {
    /// None arrives, and nobody is told.
    silent: bool,
    /// Which part of them is lost.
    loss: f64,
    /// How long they take, and by how much that varies. None overtakes another.
    delay: Duration,
    jitter: Duration,
    /// How many bytes pass in a second.
    rate: Option<u32>,
}

impl Way {
    /// Everything arrives at once.
    pub const CLEAR: Self =
        Self { silent: false, loss: 0.0, delay: Duration::ZERO, jitter: Duration::ZERO, rate: None };
    /// Nothing arrives.
    pub const SILENT: Self = Self { silent: true, ..Self::CLEAR };

    #[must_use]
    pub fn lossy(self, loss: f64) -> Self {
        Self { loss, ..self }
    }

    #[must_use]
    pub fn slow(self, delay: Duration, jitter: Duration) -> Self {
        Self { delay, jitter, ..self }
    }

    #[must_use]
    pub fn narrow(self, bytes_a_second: u32) -> Self {
        Self { rate: Some(bytes_a_second), ..self }
    }
}

/// Runs on a thread of its own until it is dropped.
pub struct Switch {
    state: Arc<Mutex<State>>,
    handle: Handle,
    _stop: oneshot::Sender<()>,
}

#[derive(Default)]
struct State {
    hosts: HashMap<Ipv4Addr, Arc<OwnedFd>>,
    ways: HashMap<Pair, Way>,
    lines: HashMap<Pair, Line>,
    random: u64,
    lost: u64,
}

type Pair = (Ipv4Addr, Ipv4Addr);

/// Packets that are on the way.
struct Line {
    packets: mpsc::Sender<(Instant, Vec<u8>)>,
    /// When the last of them has left the narrow part, and when it arrives.
    free: Instant,
    last: Instant,
}

impl Switch {
    /// Starts it, with nobody connected. What is lost is the same in every run that sends the same.
    #[must_use]
    pub fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        // Ends with `stop`, and every task of it then.
        std::thread::spawn(move || {
            _ = runtime.block_on(stopped);
        });
        Self { state: Arc::default(), handle, _stop: stop }
    }

    /// Connects an interface with these addresses.
    pub fn connect(&self, addresses: &[Ipv4Addr], device: OwnedFd) {
        let device = Arc::new(device);
        lock(&self.state).hosts.extend(addresses.iter().map(|address| (*address, device.clone())));
        self.handle.spawn(read(device, self.state.clone()));
    }

    pub fn set(&self, from: Ipv4Addr, to: Ipv4Addr, way: Way) {
        lock(&self.state).ways.insert((from, to), way);
    }

    #[must_use]
    pub fn lost(&self) -> u64 {
        lock(&self.state).lost
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes what a host sends until the switch ends.
async fn read(device: Arc<OwnedFd>, state: Arc<Mutex<State>>) {
    #[expect(deprecated, reason = "its replacement is unsafe; an `OwnedFd` keeps what that asks for")]
    let readable = AsyncFd::with_interest(device.clone(), Interest::READABLE).unwrap();
    let mut packet = vec![0; PACKET];
    loop {
        let mut ready = readable.readable().await.unwrap();
        match rustix::io::read(&device, &mut packet) {
            Ok(length) => lock(&state).pass(&packet[..length]),
            Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
            Err(rustix::io::Errno::INTR) => {}
            // The host is gone.
            Err(_) => return,
        }
    }
}

impl State {
    fn pass(&mut self, packet: &[u8]) {
        let Some(pair) = addresses(packet) else { return };
        let Some(to) = self.hosts.get(&pair.1).cloned() else { return };
        let way = self.ways.get(&pair).copied().unwrap_or(Way::CLEAR);
        if way.silent || (way.loss > 0.0 && self.chance() < way.loss) {
            self.lost += 1;
            return;
        }
        if way == Way::CLEAR && !self.lines.contains_key(&pair) {
            write(&to, packet);
            return;
        }
        let now = Instant::now();
        let jitter = way.jitter.mul_f64(self.chance());
        let line = self.lines.entry(pair).or_insert_with(|| {
            let (packets, arriving) = mpsc::channel(ON_THE_WAY);
            tokio::spawn(carry(arriving, to));
            Line { packets, free: now, last: now }
        });
        let free = line.free.max(now);
        let through = way.rate.map_or(Duration::ZERO, |rate| {
            Duration::from_secs_f64(packet.len() as f64 / f64::from(rate.max(1)))
        });
        let arrives = (free + through + way.delay + jitter).max(line.last);
        if free - now > QUEUE || line.packets.try_send((arrives, packet.to_vec())).is_err() {
            self.lost += 1;
            return;
        }
        (line.free, line.last) = (free + through, arrives);
    }

    /// From 0 to 1, the same sequence in every run.
    fn chance(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Delivers what is on the way between two hosts, each packet at its time, until the switch ends.
async fn carry(mut arriving: mpsc::Receiver<(Instant, Vec<u8>)>, to: Arc<OwnedFd>) {
    while let Some((at, packet)) = arriving.recv().await {
        tokio::time::sleep_until(at.into()).await;
        write(&to, &packet);
    }
}

/// A host that takes no more loses what is for it, as any other does.
fn write(to: &OwnedFd, packet: &[u8]) {
    _ = rustix::io::write(to, packet);
}

/// From whom and to whom. Nothing but IPv4 goes from host to host.
fn addresses(packet: &[u8]) -> Option<Pair> {
    let at = |start: usize| -> Option<Ipv4Addr> {
        let bytes: [u8; 4] = packet.get(start..start + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(bytes))
    };
    (packet.first()? >> 4 == 4).then_some((at(12)?, at(16)?))
}
