//! What lies beyond a sandbox's way out, for tests, and what a function does with it.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};

use super::{outcome, pause, say};

/// Waits for a line, then answers on all addresses: bytes with the same bytes, datagrams with the same, and at port 53 every
/// question for an address with that of the first.
pub fn serve(addresses: &[&str]) -> io::Result<()> {
    io::stdin().read_line(&mut String::new())?;
    let first: SocketAddr =
        addresses.first().ok_or(io::ErrorKind::InvalidInput)?.parse().map_err(io::Error::other)?;
    for address in addresses {
        let (streams, datagrams) = (TcpListener::bind(address)?, UdpSocket::bind(address)?);
        std::thread::spawn(move || {
            for stream in streams.incoming().flatten() {
                std::thread::spawn(move || {
                    io::copy(&mut &stream, &mut &stream).ok();
                    stream.shutdown(Shutdown::Write).ok();
                });
            }
        });
        std::thread::spawn(move || {
            let mut buffer = [0; 65536];
            while let Ok((length, from)) = datagrams.recv_from(&mut buffer) {
                datagrams.send_to(&buffer[..length], from).ok();
            }
        });
    }
    let names = UdpSocket::bind((first.ip(), 53))?;
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = names.recv_from(&mut buffer) {
            if let Some(answer) = answer(&buffer[..length], first) {
                names.send_to(&answer, from).ok();
            }
        }
    });
    say("ready")?;
    pause()
}

/// The answer to a question: one address for `A`, none for anything else.
fn answer(question: &[u8], first: SocketAddr) -> Option<Vec<u8>> {
    let SocketAddr::V4(first) = first else { return None };
    let end = 12 + question.get(12..)?.iter().position(|byte| *byte == 0)? + 5;
    let asked = question.get(..end)?;
    let is_address = asked.get(end - 4..end - 2)? == [0, 1];
    let mut answer = asked.to_vec();
    answer.get_mut(2..4)?.copy_from_slice(&[0x81, 0x80]);
    answer.get_mut(4..12)?.copy_from_slice(&[0, 1, 0, u8::from(is_address), 0, 0, 0, 0]);
    if is_address {
        // The name above, an address of the internet, for a minute, four bytes.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(first.ip().octets());
    }
    Some(answer)
}

/// Sends so many bytes on so many connections at once and expects them back.
pub fn talk(address: &str, bytes: u64, at_once: u64) -> io::Result<()> {
    let address: SocketAddr = address.parse().map_err(io::Error::other)?;
    let talks: Vec<_> = (0..at_once)
        .map(|number| {
            std::thread::spawn(move || {
                let stream = TcpStream::connect(address)?;
                let byte = move |at: u64| (at.wrapping_mul(31).wrapping_add(number) >> 3) as u8;
                let mut writing = stream.try_clone()?;
                let writer = std::thread::spawn(move || {
                    let all: Vec<u8> = (0..bytes).map(byte).collect();
                    writing.write_all(&all)?;
                    writing.shutdown(Shutdown::Write)
                });
                let mut back = Vec::new();
                (&stream).read_to_end(&mut back)?;
                writer.join().map_err(|_| io::ErrorKind::Other)??;
                let same =
                    back.len() as u64 == bytes && back.iter().zip(0..).all(|(back, at)| *back == byte(at));
                if same {
                    Ok(())
                } else {
                    Err(io::Error::other(format!("{} bytes came back, or others", back.len())))
                }
            })
        })
        .collect();
    for talk in talks {
        if let Err(error) = talk.join().map_err(|_| io::ErrorKind::Other)? {
            return say(outcome::<()>(Err(error)));
        }
    }
    say("ok")
}

/// Says nothing more and hears the end all the same; and is heard after the other's end.
pub fn half(address: &str) -> io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(b"half")?;
    let mut word = [0; 4];
    stream.read_exact(&mut word)?;
    stream.shutdown(Shutdown::Write)?;
    let rest = stream.read(&mut [0; 8])?;
    say(format_args!("{} {rest}", String::from_utf8_lossy(&word)))
}

/// A datagram there and back.
pub fn ask(address: &str) -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(address)?;
    let mut back = [0; 65536];
    for size in [1, 1000, 8000] {
        let sent = vec![7; size];
        socket.send(&sent)?;
        let length = socket.recv(&mut back)?;
        if back[..length] != sent {
            return say(format_args!("{length} of {size} bytes"));
        }
    }
    say("ok")
}

pub fn resolve(name: &str) -> io::Result<()> {
    match (name, 80).to_socket_addrs() {
        Ok(mut addresses) => {
            say(addresses.next().map_or("none".to_owned(), |address| address.ip().to_string()))
        }
        Err(error) => say(error),
    }
}

/// How fast so many bytes go there and come back, in MiB a second.
pub fn download(address: &str, bytes: u64) -> io::Result<()> {
    let begun = std::time::Instant::now();
    let stream = TcpStream::connect(address)?;
    let mut writing = stream.try_clone()?;
    let writer = std::thread::spawn(move || {
        io::copy(&mut io::repeat(7).take(bytes), &mut writing)?;
        writing.shutdown(Shutdown::Write)
    });
    let back = io::copy(&mut &stream, &mut io::sink())?;
    writer.join().map_err(|_| io::ErrorKind::Other)??;
    say(format_args!("{back} bytes, {:.0} MiB/s", back as f64 / 1_048_576.0 / begun.elapsed().as_secs_f64()))
}
