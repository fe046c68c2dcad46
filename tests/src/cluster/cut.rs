//! The wire between balancers and one runner, which can be cut or fall silent for a single balancer.
//!
//! A runner advertises one address, so every balancer comes through here; which one a connection belongs to is read from its first
//! bytes, in which a balancer names itself.

use std::collections::HashMap;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What the wire does to a balancer's connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Fault {
    #[default]
    None,
    /// They end, and so do new ones.
    Cut,
    /// They stay, and nothing passes.
    Silence,
}

type Faults = HashMap<String, Fault>;

/// Accepts until it is dropped.
pub struct Wire {
    pub address: SocketAddr,
    faults: watch::Sender<Faults>,
    accepting: JoinHandle<()>,
}

impl Wire {
    /// To a server at this address, which need not be there yet.
    pub async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (faults, seen) = watch::channel(Faults::new());
        let accepting = tokio::spawn(async move {
            // Each connection ends with either of its ends, or when the wire is dropped and `seen` with it.
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, server, seen.clone()));
            }
        });
        Self { address, faults, accepting }
    }

    /// From now on for this balancer.
    pub fn fault(&self, balancer: &str, fault: Fault) {
        self.faults.send_modify(|faults| _ = faults.insert(balancer.to_owned(), fault));
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Passes both ways until either end closes, the wire is cut for this balancer, or the wire is gone.
async fn pass(client: TcpStream, server: SocketAddr, mut faults: watch::Receiver<Faults>) {
    // A server that is gone accepts nothing, and its client sees the connection close.
    let Ok(server) = TcpStream::connect(server).await else { return };
    for stream in [&client, &server] {
        _ = stream.set_nodelay(true);
    }
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let (mut up, mut down) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let mut first = Vec::new();
    let mut balancer: Option<String> = None;
    loop {
        let fault = {
            let faults = faults.borrow_and_update();
            if balancer.is_none() {
                balancer = faults.keys().find(|name| contains(&first, name.as_bytes())).cloned();
            }
            balancer.as_ref().and_then(|name| faults.get(name).copied()).unwrap_or_default()
        };
        let sent = tokio::select! {
            changed = faults.changed() => if changed.is_ok() { continue } else { return },
            read = from_client.read(&mut up), if fault == Fault::None => match read {
                Ok(n @ 1..) => {
                    if first.len() < 16 << 10 {
                        first.extend_from_slice(&up[..n]);
                    }
                    // The fault may be meant for what is now known by its name.
                    if held(&faults, &first) { Ok(()) } else { to_server.write_all(&up[..n]).await }
                }
                _ => return,
            },
            read = from_server.read(&mut down), if fault == Fault::None => match read {
                Ok(n @ 1..) => to_client.write_all(&down[..n]).await,
                _ => return,
            },
            () = std::future::ready(()), if fault == Fault::Cut => return,
        };
        if sent.is_err() {
            return;
        }
    }
}

/// Whether these first bytes are of a balancer that has a fault.
fn held(faults: &watch::Receiver<Faults>, first: &[u8]) -> bool {
    faults.borrow().iter().any(|(name, fault)| *fault != Fault::None && contains(first, name.as_bytes()))
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
