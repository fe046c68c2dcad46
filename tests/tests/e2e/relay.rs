//! A way to a balancer that can be cut and led elsewhere: what clients see when theirs goes away and another takes its place.

use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Accepts until it is dropped.
pub struct Relay {
    pub url: String,
    target: watch::Sender<Option<SocketAddr>>,
    accepting: JoinHandle<()>,
}

impl Relay {
    /// To the balancer at this URL.
    pub async fn to(url: &str) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (target, now) = watch::channel(Some(parsed(url)));
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, now.clone()));
            }
        });
        Self { url: format!("http://{address}"), target, accepting }
    }

    /// Closes every connection, and each that comes.
    pub fn cut(&self) {
        self.target.send_replace(None);
    }

    /// From now on to this one.
    pub fn lead(&self, url: &str) {
        self.target.send_replace(Some(parsed(url)));
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn parsed(url: &str) -> SocketAddr {
    url.trim_start_matches("http://").trim_end_matches('/').parse().unwrap()
}

async fn pass(mut client: TcpStream, mut target: watch::Receiver<Option<SocketAddr>>) {
    let Some(address) = *target.borrow_and_update() else { return };
    let Ok(mut server) = TcpStream::connect(address).await else { return };
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
        _ = target.changed() => {}
    }
}
