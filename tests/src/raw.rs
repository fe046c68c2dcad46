//! A client that writes bytes, whatever they are: half requests, wrong ones, and none.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::within;

/// One connection.
pub struct Raw(pub TcpStream);

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Raw {
    /// Connects.
    pub async fn connect(address: SocketAddr) -> Self {
        Self(TcpStream::connect(address).await.unwrap())
    }

    /// Writes; the other end may have had enough.
    pub async fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.write_all(bytes).await
    }

    /// The next answer with a `Content-Length` or without a body; `None` once the connection is closed.
    pub async fn reply(&mut self) -> Option<Reply> {
        within("an answer or the end of the connection", self.read_reply()).await
    }

    async fn read_reply(&mut self) -> Option<Reply> {
        let mut text = Vec::new();
        while !text.ends_with(b"\r\n\r\n") {
            text.push(self.0.read_u8().await.ok()?);
        }
        let head = String::from_utf8_lossy(&text).into_owned();
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
        });
        let mut body = vec![0; length.unwrap_or(0)];
        self.0.read_exact(&mut body).await.ok()?;
        Some(Reply { status, head, body })
    }

    /// Everything until the other end closes.
    pub async fn to_the_end(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        // A reset is an end as well.
        _ = within("the end of the connection", self.0.read_to_end(&mut all)).await;
        all
    }
}
