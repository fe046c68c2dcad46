//! How bytes leave a connection: at once, within this machine unpaced, and not for ever to somebody who takes none.
//!
//! BBR, which many machines have by default, sends at the pace of a timer. Between two processes of one machine there is no queue to be spared, and the
//! timers cost more than everything else: three times the CPU of a body (`docs/adr/0052`). Such connections take `reno`, which every Linux has and
//! everybody may choose. What leaves the machine goes as its operator decided.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// What does not pace, is in every kernel and needs no right.
const UNPACED: &str = "reno";

/// A connection to the first address of `host` that answers.
///
/// # Errors
/// That of the last address; or the name is not known.
pub async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
    for address in tokio::net::lookup_host((host, port)).await? {
        match connect_to(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn connect_to(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if address.ip().to_canonical().is_loopback() {
        // Only who has not begun to pace never does.
        unpaced(&socket);
    }
    let stream = socket.connect(address).await?;
    prepare(&stream)?;
    Ok(stream)
}

/// The same for those who come to this port, where only this machine can.
pub fn listens(listener: &TcpListener) {
    if listener.local_addr().is_ok_and(|address| address.ip().to_canonical().is_loopback()) {
        unpaced(listener);
    }
}

/// The same for one that is there.
///
/// # Errors
/// That of the system; it has been closed.
pub fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (ours, theirs) = (stream.local_addr()?.ip().to_canonical(), stream.peer_addr()?.ip().to_canonical());
    // To another address of this machine too; to a loopback one it has been said already, and is free to say again.
    if ours == theirs {
        unpaced(stream);
    }
    Ok(())
}

/// Those who come to this port and take nothing of what there is for them for so long lose their connection: it ends with
/// [`TimedOut`](io::ErrorKind::TimedOut). The system looks after it, since only it knows what has arrived: what it keeps for somebody slow is several megabytes.
///
/// # Errors
/// That of the system.
pub fn gives_up_after(listener: &TcpListener, time: Duration) -> io::Result<()> {
    // Connections have it from their port. None is no limit, and so is what is beyond 49 days.
    let limit = u32::try_from(time.as_millis()).unwrap_or_default();
    Ok(rustix::net::sockopt::set_tcp_user_timeout(listener, limit)?)
}

fn unpaced(socket: impl std::os::fd::AsFd) {
    // It is as fast as the system lets it be, then.
    rustix::net::sockopt::set_tcp_congestion(socket, UNPACED).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn congestion(socket: impl std::os::fd::AsFd) -> String {
        rustix::net::sockopt::tcp_congestion(socket).unwrap()
    }

    #[tokio::test]
    async fn what_stays_on_this_machine_is_not_paced() {
        for address in ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0"] {
            let listener = TcpListener::bind(address).await.unwrap();
            listens(&listener);
            let bound = listener.local_addr().unwrap();
            let host =
                if bound.ip().is_unspecified() { "127.0.0.1".to_owned() } else { bound.ip().to_string() };
            let (connected, accepted) = tokio::join!(connect(&host, bound.port()), listener.accept());
            let (connected, (accepted, _)) = (connected.unwrap(), accepted.unwrap());
            prepare(&accepted).unwrap();
            for end in [&connected, &accepted] {
                assert_eq!((congestion(end).as_str(), end.nodelay().unwrap()), (UNPACED, true), "{address}");
            }
        }
    }

    #[tokio::test]
    async fn what_may_leave_it_goes_as_its_operator_decided() {
        let usual = congestion(TcpSocket::new_v4().unwrap());
        let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
        listens(&listener);
        assert_eq!(congestion(&listener), usual);
    }

    #[tokio::test]
    async fn a_name_without_an_answer_is_told() {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let error = connect("localhost", free).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
