//! A registry of images: the one that others run, on a port of its own.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};

use serde_json::json;

/// `docker-registry`, with what it keeps in a directory of its own.
pub struct Registry {
    process: Child,
    pub address: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Registry {
    /// `None`, said on STDOUT, where the program is missing.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let config = json!({
            "version": 0.1, "log": {"formatter": "json"}, "http": {"addr": "127.0.0.1:0"},
            "storage": {"filesystem": {"rootdirectory": directory.path().join("data")}},
        });
        let path = directory.path().join("config.yml");
        std::fs::write(&path, config.to_string()).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(path).stderr(Stdio::piped()).stdout(Stdio::null());
        let Ok(mut process) = command.spawn() else {
            println!("left out: docker-registry is missing");
            return None;
        };
        let mut log = BufReader::new(process.stderr.take().unwrap());
        let mut line = String::new();
        let address = loop {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "the registry ended before it listened");
            if let Some((_, rest)) = line.split_once("listening on ") {
                break rest.split(['"', ',', '\n']).next().unwrap().parse().unwrap();
            }
        };
        // It would stop when the pipe is full. Ends with the process.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Some(Self { process, address, _directory: directory })
    }

    /// One request; its answer.
    ///
    /// # Panics
    /// When it is refused.
    pub fn send(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 20"), "{method} {path}: {answer}");
        answer
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}
