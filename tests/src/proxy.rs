//! A proxy between a balancer and a runner: it can hold back what goes to the runner, and tell what has come so far. So a test
//! knows that an offer was sent and that the runner has not seen it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::within;

/// Accepts until it is dropped.
pub struct Proxy {
    pub address: SocketAddr,
    hold: watch::Sender<bool>,
    /// What was held back.
    held: watch::Receiver<Vec<u8>>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// In front of a runner.
    pub async fn start(runner: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (hold, holding) = watch::channel(false);
        let (seen, held) = watch::channel(Vec::new());
        let seen = Arc::new(Mutex::new(seen));
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                // A runner that is gone accepts nothing, and its client sees the connection close.
                if let Ok(server) = TcpStream::connect(runner).await {
                    tokio::spawn(pass(client, server, holding.clone(), seen.clone()));
                }
            }
        });
        Self { address, hold, held, accepting }
    }

    /// From now on nothing reaches the runner.
    pub fn hold(&self) {
        self.hold.send_replace(true);
    }

    /// Waits until these bytes were held back.
    pub async fn held(&mut self, bytes: &[u8]) {
        let seen = self.held.wait_for(|all| all.windows(bytes.len()).any(|part| part == bytes));
        drop(within("bytes for the runner", seen).await.unwrap());
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Passes both ways until either end closes, then closes both.
async fn pass(
    client: TcpStream,
    server: TcpStream,
    hold: watch::Receiver<bool>,
    held: Arc<Mutex<watch::Sender<Vec<u8>>>>,
) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let there = async {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(n @ 1..) = from_client.read(&mut buffer).await {
            if *hold.borrow() {
                let held = held.lock().unwrap_or_else(PoisonError::into_inner);
                held.send_modify(|all| all.extend_from_slice(&buffer[..n]));
            } else if to_server.write_all(&buffer[..n]).await.is_err() {
                return;
            }
        }
    };
    let back = tokio::io::copy(&mut from_server, &mut to_client);
    tokio::select! {
        () = there => {}
        _ = back => {}
    }
}
