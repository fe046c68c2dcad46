//! Where calls come from and answers go: STDIN and STDOUT, or a connection.

use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// One direction.
#[derive(Debug)]
pub enum Pipe {
    File(File),
    Socket(UnixStream),
    Tcp(TcpStream),
}

impl Pipe {
    /// A copy of STDIN or STDOUT, without the buffer of the standard library.
    pub fn of(fd: impl AsFd) -> io::Result<Self> {
        Ok(Pipe::File(fd.as_fd().try_clone_to_owned()?.into()))
    }

    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Pipe::File(file) => Pipe::File(file.try_clone()?),
            Pipe::Socket(socket) => Pipe::Socket(socket.try_clone()?),
            Pipe::Tcp(socket) => Pipe::Tcp(socket.try_clone()?),
        })
    }
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Pipe::File(file) => file.read(buffer),
            Pipe::Socket(socket) => socket.read(buffer),
            Pipe::Tcp(socket) => socket.read(buffer),
        }
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Pipe::File(file) => file.write(bytes),
            Pipe::Socket(socket) => socket.write(bytes),
            Pipe::Tcp(socket) => socket.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What comes in, at the pace that was asked for.
#[derive(Debug)]
pub struct Input {
    pipe: Pipe,
    held: Vec<u8>,
    at: usize,
    /// At most so much at once, and a pause before each.
    pub pace: Option<(usize, Duration)>,
}

impl Input {
    pub fn new(pipe: Pipe) -> Self {
        Self { pipe, held: Vec::new(), at: 0, pace: None }
    }
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let held = self.fill_buf()?;
        let count = held.len().min(buffer.len());
        buffer[..count].copy_from_slice(&held[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Input {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.held.len() {
            let most = match self.pace {
                None => 64 * 1024,
                Some((most, pause)) => {
                    std::thread::sleep(pause);
                    most
                }
            };
            self.held.resize(most, 0);
            let count = self.pipe.read(&mut self.held)?;
            self.held.truncate(count);
            self.at = 0;
        }
        Ok(&self.held[self.at..])
    }

    fn consume(&mut self, count: usize) {
        self.at += count;
    }
}

/// Both directions.
#[derive(Debug)]
pub struct Channel {
    pub input: Input,
    pub output: Pipe,
}

impl Channel {
    pub fn stdio() -> io::Result<Self> {
        Ok(Self { input: Input::new(Pipe::of(io::stdin())?), output: Pipe::of(io::stdout())? })
    }

    pub fn connection(pipe: Pipe) -> io::Result<Self> {
        Ok(Self { output: pipe.try_clone()?, input: Input::new(pipe) })
    }

    /// Closes the way in.
    pub fn close_input(&mut self) -> io::Result<()> {
        match &self.input.pipe {
            Pipe::Socket(socket) => return socket.shutdown(Shutdown::Read),
            Pipe::Tcp(socket) => return socket.shutdown(Shutdown::Read),
            Pipe::File(_) => self.input.pipe = nothing()?,
        }
        close(0);
        Ok(())
    }

    /// Closes the way out.
    pub fn close_output(&mut self) -> io::Result<()> {
        match &self.output {
            Pipe::Socket(socket) => return socket.shutdown(Shutdown::Write),
            Pipe::Tcp(socket) => return socket.shutdown(Shutdown::Write),
            Pipe::File(_) => self.output = nothing()?,
        }
        close(1);
        Ok(())
    }
}

fn nothing() -> io::Result<Pipe> {
    Ok(Pipe::File(File::options().read(true).write(true).open("/dev/null")?))
}

#[expect(unsafe_code, reason = "the standard library closes no STDIN and no STDOUT")]
fn close(fd: i32) {
    // SAFETY: the descriptor is open, it is closed here only, and the standard library does without it.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
}
