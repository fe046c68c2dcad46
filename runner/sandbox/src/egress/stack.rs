//! One sandbox's stack: connections of the function end here, and go on as the runner's own.
//!
//! A future without tasks or locks below it: everything that may make progress wakes it, and it goes over all it has. What it has
//! is bounded: connections and datagram flows by number, their bytes by the buffers of a connection, which are the windows that both sides
//! see. A function that does not read holds up its own connections and nobody else's.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{self, State};
use smoltcp::wire::{HardwareAddress, IpCidr, IpEndpoint};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;

use super::packet::{self, Packet};
use super::{MTU, Policy};

/// Connections at once of one sandbox, and flows of datagrams at once.
const MOST: usize = 256;
/// Bytes of a connection on their way, in each direction.
const WINDOW: usize = 64 << 10;
/// Packets for the function that wait to be written, before the stack makes no more.
const QUEUE: usize = 64;
/// Packets taken from the function, and rounds made, before others on the runtime have their turn.
const BURST: usize = 64;
const ROUNDS: usize = 16;
/// The stack is not asked again by the clock before this.
const SHORTEST: Duration = Duration::from_millis(1);
/// A flow of datagrams without any ends.
const IDLE: Duration = Duration::from_secs(60);

/// The two ends of a connection or flow, as the function sees them: its own, then the other.
type Ends = (SocketAddr, SocketAddr);

pub struct Stack {
    tunnel: Arc<AsyncFd<OwnedFd>>,
    /// How many connections there are, for others to see.
    open: Arc<AtomicUsize>,
    policy: Arc<Policy>,
    wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
    streams: HashMap<Ends, Stream>,
    flows: HashMap<Ends, Flow>,
    timer: Pin<Box<Sleep>>,
    begun: Instant,
    buffer: Box<[u8]>,
}

/// A connection of the function's.
enum Stream {
    /// The other side is asked. What the function began with waits for the answer; it repeats it if that takes long.
    Connecting { connecting: Connecting, packet: Vec<u8>, _room: OwnedSemaphorePermit },
    Connected {
        handle: SocketHandle,
        /// The runner's half of it.
        stream: TcpStream,
        /// The function said that it sends no more, and the other knows.
        told: bool,
        /// It failed; the function is yet to know.
        broken: bool,
        _room: OwnedSemaphorePermit,
    },
}

type Connecting = Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>;

/// Datagrams between the same two ends.
struct Flow {
    socket: UdpSocket,
    last: Instant,
}

/// Packets between the tunnel and the stack.
#[derive(Default)]
struct Wire {
    received: VecDeque<Vec<u8>>,
    to_send: VecDeque<Vec<u8>>,
}

impl Stack {
    pub fn new(
        tunnel: Arc<AsyncFd<OwnedFd>>,
        policy: Arc<Policy>,
        open: Arc<AtomicUsize>,
    ) -> io::Result<Self> {
        let mut wire = Wire::default();
        let zero = smoltcp::time::Instant::ZERO;
        let mut interface = Interface::new(Config::new(HardwareAddress::Ip), &mut wire, zero);
        // Whoever the function asks for, we answer.
        interface.set_any_ip(true);
        interface.update_ip_addrs(|addresses| {
            for gateway in [IpAddr::from(GATEWAY), IpAddr::from(GATEWAY_6)] {
                let bits = if gateway.is_ipv4() { 32 } else { 128 };
                // There is room for two.
                addresses.push(IpCidr::new(gateway.into(), bits)).ok();
            }
        });
        let routes = interface.routes_mut();
        let full = |_| io::Error::other("no room for the routes of a tunnel");
        routes.add_default_ipv4_route(GATEWAY).map_err(full)?;
        routes.add_default_ipv6_route(GATEWAY_6).map_err(full)?;
        Ok(Self {
            tunnel,
            open,
            policy,
            wire,
            interface,
            sockets: SocketSet::new(Vec::new()),
            streams: HashMap::new(),
            flows: HashMap::new(),
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
            begun: Instant::now(),
            buffer: vec![0; MTU + 1].into_boxed_slice(),
        })
    }

    fn now(&self) -> smoltcp::time::Instant {
        smoltcp::time::Instant::from_micros(self.begun.elapsed().as_micros() as i64)
    }

    fn turn(&mut self) {
        let now = self.now();
        self.interface.poll(now, &mut self.wire, &mut self.sockets);
    }

    /// Takes packets from the function. `Ready(true)` if there may be more, `Ready(false)` when the tunnel is gone.
    fn take(&mut self, context: &mut Context<'_>) -> Poll<bool> {
        for _ in 0..BURST {
            let Ok(mut guard) = ready!(self.tunnel.poll_read_ready(context)) else {
                return Poll::Ready(false);
            };
            let read = guard.try_io(|tunnel| Ok(rustix::io::read(tunnel, &mut self.buffer[..])?));
            let length = match read {
                Ok(Ok(length)) if length > 0 => length,
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(_) => return Poll::Ready(false),
                // Nothing after all: ask again, to be woken.
                Err(_) => continue,
            };
            let packet = self.buffer.get(..length).unwrap_or_default().to_vec();
            self.hear(packet);
        }
        Poll::Ready(true)
    }

    fn hear(&mut self, packet: Vec<u8>) {
        match packet::read(&packet) {
            Packet::Stream { from, to, opens } => match self.streams.get(&(from, to)) {
                None if opens => self.open((from, to), packet),
                // It asks again, and will be answered.
                Some(Stream::Connecting { .. }) if opens => {}
                // It does not want any more.
                Some(Stream::Connecting { .. }) => _ = self.streams.remove(&(from, to)),
                _ => self.wire.received.push_back(packet),
            },
            Packet::Datagram { from, to, payload } => self.pass(from, to, payload),
            Packet::Other => {}
        }
    }

    /// A connection is wanted. What may not be reached has nobody who listens, and the stack says so.
    fn open(&mut self, ends: Ends, packet: Vec<u8>) {
        let (_, to) = ends;
        let room = Arc::clone(&self.policy.connections).try_acquire_owned();
        let target = self.policy.target(to).filter(|_| self.streams.len() < MOST);
        let (Some(target), Ok(room)) = (target, room) else {
            self.wire.received.push_back(packet);
            return;
        };
        let connecting = Box::pin(async move {
            let stream = TcpStream::connect(target).await?;
            stream.set_nodelay(true)?;
            // Not this host itself, whatever its routes said a moment ago. Name servers may be.
            if target == to && stream.local_addr()?.ip() == target.ip() {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            Ok(stream)
        });
        self.streams.insert(ends, Stream::Connecting { connecting, packet, _room: room });
    }

    /// The other side has answered, or has not: now the function is.
    fn answer(&mut self, ends: Ends, connected: io::Result<TcpStream>) {
        let Some(Stream::Connecting { packet, _room, .. }) = self.streams.remove(&ends) else { return };
        // What came before belongs to others: the next to listen must be the one for this packet.
        self.turn();
        self.flush();
        let listening = connected.ok().and_then(|stream| {
            let buffer = || tcp::SocketBuffer::new(vec![0; WINDOW]);
            let mut socket = tcp::Socket::new(buffer(), buffer());
            socket.set_nagle_enabled(false);
            let (_, to) = ends;
            socket.listen(IpEndpoint::new(to.ip().into(), to.port())).ok()?;
            Some((self.sockets.add(socket), stream))
        });
        self.wire.received.push_back(packet);
        self.turn();
        let Some((handle, stream)) = listening else { return };
        if self.sockets.get::<tcp::Socket<'_>>(handle).state() == State::SynReceived {
            let connected = Stream::Connected { handle, stream, told: false, broken: false, _room };
            self.streams.insert(ends, connected);
        } else {
            // It was no proper beginning.
            self.sockets.remove(handle);
        }
    }

    /// A datagram of the function's goes on, if it may. That it is lost else is in the nature of datagrams.
    fn pass(&mut self, from: SocketAddr, to: SocketAddr, payload: &[u8]) {
        let now = Instant::now();
        if !self.flows.contains_key(&(from, to)) {
            let Some(target) = self.policy.target(to) else { return };
            if self.flows.len() >= MOST {
                let oldest = self.flows.iter().min_by_key(|(_, flow)| flow.last).map(|(ends, _)| *ends);
                oldest.and_then(|ends| self.flows.remove(&ends));
            }
            let Ok(socket) = socket_to(target) else { return };
            self.flows.insert((from, to), Flow { socket, last: now });
        }
        let Some(flow) = self.flows.get_mut(&(from, to)) else { return };
        flow.last = now;
        // A socket is writable from its beginning, though the runtime may not have noticed yet.
        rustix::net::send(&flow.socket, payload, rustix::net::SendFlags::DONTWAIT).ok();
    }

    /// Moves what can be moved between the function's and our halves of all connections. Whether anything was.
    fn move_streams(&mut self, context: &mut Context<'_>) -> bool {
        let mut answers = Vec::new();
        for (ends, stream) in &mut self.streams {
            if let Stream::Connecting { connecting, .. } = stream
                && let Poll::Ready(connected) = connecting.as_mut().poll(context)
            {
                answers.push((*ends, connected));
            }
        }
        let mut moved = !answers.is_empty();
        for (ends, connected) in answers {
            self.answer(ends, connected);
        }
        for stream in self.streams.values_mut() {
            let Stream::Connected { handle, stream, told, broken: broken @ false, .. } = stream else {
                continue;
            };
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(*handle);
            match exchange(socket, stream, told, context) {
                Ok(some) => moved |= some,
                Err(_) => {
                    socket.abort();
                    *broken = true;
                    moved = true;
                }
            }
        }
        moved
    }

    /// Answers to datagrams go back; flows that nobody uses end.
    fn move_flows(&mut self, context: &mut Context<'_>) -> bool {
        let (mut moved, now) = (false, Instant::now());
        let (wire, space) = (&mut self.wire, &mut self.buffer);
        self.flows.retain(|(inner, outer), flow| {
            while wire.to_send.len() < QUEUE {
                let mut buffer = ReadBuf::new(space);
                match flow.socket.poll_recv(context, &mut buffer) {
                    Poll::Ready(Ok(())) => {
                        wire.to_send.extend(packet::datagram(*outer, *inner, buffer.filled()));
                        flow.last = now;
                        moved = true;
                    }
                    // Refused at the other end.
                    Poll::Ready(Err(_)) => return false,
                    Poll::Pending => break,
                }
            }
            now.duration_since(flow.last) < IDLE
        });
        moved
    }

    /// Lets go of connections whose end both sides know.
    fn bury(&mut self) {
        let sockets = &mut self.sockets;
        self.streams.retain(|_, stream| {
            let Stream::Connected { handle, .. } = stream else { return true };
            let socket = sockets.get::<tcp::Socket<'_>>(*handle);
            let over = match socket.state() {
                // Until its last word is on the wire.
                State::Closed => socket.remote_endpoint().is_none(),
                // The function gave up before it was answered; or nothing is left to say.
                State::Listen | State::TimeWait => true,
                _ => false,
            };
            if over {
                sockets.remove(*handle);
            }
            !over
        });
        self.open.store(self.streams.len(), Ordering::Relaxed);
    }

    /// Writes packets to the tunnel. Whether there were any.
    fn flush(&mut self) -> bool {
        let any = !self.wire.to_send.is_empty();
        for packet in self.wire.to_send.drain(..) {
            // A full tunnel loses packets, as any wire does.
            rustix::io::write(self.tunnel.get_ref(), &packet).ok();
        }
        any
    }

    /// When to look again though nothing happens.
    fn next(&mut self) -> Option<Duration> {
        let now = self.now();
        // "At once" after a round in which nothing moved means that it waits for something else.
        let stack =
            self.interface.poll_delay(now, &self.sockets).map(|delay| Duration::from(delay).max(SHORTEST));
        let flows = self.flows.values().map(|flow| IDLE.saturating_sub(flow.last.elapsed())).min();
        stack.into_iter().chain(flows).min()
    }
}

fn socket_to(target: SocketAddr) -> io::Result<UdpSocket> {
    let any = if target.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    let socket = std::net::UdpSocket::bind((any, 0))?;
    socket.connect(target)?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

/// Moves bytes both ways as long as either side gives and the other takes. An error is the end of both.
fn exchange(
    socket: &mut tcp::Socket<'_>,
    stream: &mut TcpStream,
    told: &mut bool,
    context: &mut Context<'_>,
) -> io::Result<bool> {
    let mut moved = false;
    while socket.can_recv() {
        let mut written = Poll::Pending;
        let taken = socket.recv(|bytes| {
            written = Pin::new(&mut *stream).poll_write(context, bytes);
            let length = if let Poll::Ready(Ok(length)) = &written { *length } else { 0 };
            (length, ())
        });
        match written {
            Poll::Ready(Ok(_)) if taken.is_ok() => moved = true,
            Poll::Ready(Err(error)) => return Err(error),
            _ => break,
        }
    }
    let finished =
        matches!(socket.state(), State::CloseWait | State::LastAck | State::Closing | State::TimeWait);
    if finished && !socket.can_recv() && !*told {
        *told = true;
        rustix::net::shutdown(&*stream, rustix::net::Shutdown::Write)?;
    }
    if socket.state() == State::Closed {
        // The function broke it off: so do we.
        return Err(io::ErrorKind::ConnectionReset.into());
    }
    while socket.can_send() {
        let mut read = Poll::Pending;
        let given = socket.send(|space| {
            let mut buffer = ReadBuf::new(space);
            read = Pin::new(&mut *stream).poll_read(context, &mut buffer);
            let length = buffer.filled().len();
            (length, length)
        });
        match (read, given) {
            (Poll::Ready(Ok(())), Ok(0)) => {
                socket.close();
                moved = true;
                break;
            }
            (Poll::Ready(Ok(())), Ok(_)) => moved = true,
            (Poll::Ready(Err(error)), _) => return Err(error),
            _ => break,
        }
    }
    Ok(moved)
}

impl Future for Stack {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let stack = &mut *self;
        for _ in 0..ROUNDS {
            let mut busy = match stack.take(context) {
                Poll::Ready(true) => true,
                Poll::Ready(false) => return Poll::Ready(()),
                Poll::Pending => false,
            };
            stack.turn();
            busy |= stack.move_streams(context);
            busy |= stack.move_flows(context);
            stack.turn();
            stack.bury();
            busy |= stack.flush();
            if busy {
                continue;
            }
            let Some(delay) = stack.next() else { return Poll::Pending };
            stack.timer.as_mut().reset(tokio::time::Instant::now() + delay);
            if stack.timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
        }
        // There is more, but others want their turn.
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Our own addresses on the tunnel, which only routes mention.
const GATEWAY: std::net::Ipv4Addr = std::net::Ipv4Addr::new(192, 0, 0, 1);
const GATEWAY_6: std::net::Ipv6Addr = std::net::Ipv6Addr::new(0xfd53, 0x746f, 0x6b65, 0, 0, 0, 0, 1);

impl Device for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sender<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Received, Sender<'_>)> {
        if self.to_send.len() >= QUEUE {
            return None;
        }
        let packet = self.received.pop_front()?;
        Some((Received(packet), Sender(&mut self.to_send)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Sender<'_>> {
        (self.to_send.len() < QUEUE).then_some(Sender(&mut self.to_send))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        // What comes over a tunnel was in memory all the time.
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities
    }
}

struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

struct Sender<'a>(&'a mut VecDeque<Vec<u8>>);

impl TxToken for Sender<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let mut packet = vec![0; length];
        let result = write(&mut packet);
        self.0.push_back(packet);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::egress::{self, INSIDE, Way};
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::{
        IpAddress, IpProtocol, IpRepr, Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
    };

    /// The beginning of a connection.
    fn syn(port: u16, to: SocketAddr) -> Vec<u8> {
        let SocketAddr::V4(to) = to else { unreachable!() };
        let tcp = TcpRepr {
            src_port: port,
            dst_port: to.port(),
            control: TcpControl::Syn,
            seq_number: TcpSeqNumber(i32::from(port)),
            ack_number: None,
            window_len: 65535,
            window_scale: None,
            max_seg_size: Some(1460),
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: &[],
        };
        let ip = IpRepr::Ipv4(Ipv4Repr {
            src_addr: INSIDE,
            dst_addr: *to.ip(),
            next_header: IpProtocol::Tcp,
            payload_len: tcp.buffer_len(),
            hop_limit: 64,
        });
        let mut packet = vec![0; ip.buffer_len()];
        let checksums = ChecksumCapabilities::default();
        ip.emit(&mut packet, &checksums);
        tcp.emit(
            &mut TcpPacket::new_unchecked(&mut packet[20..]),
            &IpAddress::from(INSIDE),
            &IpAddress::from(*to.ip()),
            &checksums,
        );
        packet
    }

    /// A socket stands in for the tunnel: it keeps packets apart, too.
    fn tunnel() -> (Way, std::os::unix::net::UnixDatagram) {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let config = egress::Config { deny: vec!["0.0.0.0/0".parse().unwrap()], ..Default::default() };
        let policy = Arc::new(Policy::new(&config).unwrap());
        (Way::serve(ours, policy).unwrap(), theirs.into())
    }

    /// The port that a refusal is for.
    fn refused(packet: &[u8]) -> u16 {
        let ip = Ipv4Packet::new_checked(packet).unwrap();
        let tcp = TcpPacket::new_checked(ip.payload()).unwrap();
        assert!(tcp.rst());
        tcp.dst_port()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_may_not_be_reached_is_refused_at_once() {
        let (_way, function) = tunnel();
        let talk = tokio::task::spawn_blocking(move || {
            let mut buffer = [0; MTU];
            for port in 1000..3000 {
                function.send(&syn(port, "203.0.113.1:80".parse().unwrap())).unwrap();
                let length = function.recv(&mut buffer).unwrap();
                assert_eq!(refused(&buffer[..length]), port);
            }
        });
        talk.await.unwrap();
    }

    /// Whatever a function writes, its way out goes on to work.
    #[tokio::test(flavor = "multi_thread")]
    async fn nonsense_does_no_harm() {
        let (_way, function) = tunnel();
        let talk = tokio::task::spawn_blocking(move || {
            let to = "203.0.113.1:80".parse().unwrap();
            let mut seed = 1_u64;
            let mut random = || {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (seed >> 33) as usize
            };
            function.set_nonblocking(true).unwrap();
            let mut buffer = [0; MTU];
            for _ in 0..20_000 {
                let mut packet = syn(random() as u16, to);
                for _ in 0..random() % 4 {
                    let at = random() % packet.len();
                    packet[at] = random() as u8;
                }
                packet.truncate(1 + random() % packet.len());
                // Full, or answered: both in the nature of a wire.
                function.send(&packet).ok();
                function.recv(&mut buffer).ok();
            }
            function.set_nonblocking(false).unwrap();
            function.send(&syn(7, to)).unwrap();
            while {
                let length = function.recv(&mut buffer).unwrap();
                !(buffer[..length][0] >> 4 == 4 && length == 40 && refused(&buffer[..length]) == 7)
            } {}
        });
        talk.await.unwrap();
    }
}
