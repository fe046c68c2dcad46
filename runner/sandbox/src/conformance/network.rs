//! What a function reaches.

use std::io::Write;

use super::{Outcome, Spec, Subject, expect, fail, left_out, start};
use crate::{Error, Network};

pub async fn a_listener_is_reachable_inside(subject: Subject<'_>) -> Outcome {
    let port = if subject.claims().isolates_network { 9001 } else { 0 };
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let spec = subject.spec("listener", &["connect", "$ADDRESS"]);
    let first = subject.driver.create(Spec { id: "listener-1".to_owned(), ..spec.clone() }).await?;
    let second = subject.driver.create(Spec { id: "listener-2".to_owned(), ..spec }).await?;
    // Both at once: with networks of their own, neither port clashes.
    let listeners = [first.listen(address).await?, second.listen(address).await?];
    for (number, (sandbox, listener)) in [first, second].into_iter().zip(listeners).enumerate() {
        let late = vec![("ADDRESS".to_owned(), listener.local_addr()?.to_string())];
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let mut guest = start(sandbox, late).await?;
        let (stream, _) = listener.accept().await?;
        let mut stream = stream.into_std()?;
        stream.write_all(format!("number {number}").as_bytes())?;
        drop(stream);
        let out = guest.stdout.rest().await?;
        expect(out == format!("ok number {number}"), || out)?;
    }
    Ok(())
}

pub async fn the_network_is_closed(subject: Subject<'_>) -> Outcome {
    if !subject.claims().isolates_network {
        return left_out("the driver claims no network isolation");
    }
    let out = subject.output("interfaces", &["interfaces"]).await?;
    expect(out == "lo", || format!("interfaces: {out}"))?;
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    let out = subject.output("connect", &["connect", &address]).await?;
    expect(out == libc::ECONNREFUSED.to_string(), || format!("the host's loopback answers {out}"))?;
    let out = subject.output("connect", &["connect", "192.0.2.1:80"]).await?;
    expect(out == libc::ENETUNREACH.to_string(), || format!("the world answers {out}"))
}

pub async fn the_hosts_network_is_there_when_asked_for(subject: Subject<'_>) -> Outcome {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let words = ["connect", &listener.local_addr()?.to_string()];
    let mut guest =
        subject.launch(Spec { network: Network::Host, ..subject.spec("host-network", &words) }).await?;
    let (stream, _) = listener.accept().await?;
    let mut stream = stream.into_std()?;
    stream.write_all(b"the host")?;
    drop(stream);
    let out = guest.stdout.rest().await?;
    expect(out == "ok the host", || out)
}

pub async fn a_way_out_does_not_lead_to_the_host(subject: Subject<'_>) -> Outcome {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    let spec = |words: &[&str]| Spec { network: Network::Egress, ..subject.spec("way-out", words) };
    if !subject.claims().reaches_out {
        if !subject.claims().isolates_network {
            return left_out("the driver claims no network isolation");
        }
        return match subject.driver.create(spec(&["interfaces"])).await {
            Err(Error::Unsupported(_)) => left_out("the driver claims no way out"),
            _ => fail("it has a way out that was not claimed"),
        };
    }
    let out = subject.output_of(spec(&["interfaces"])).await?;
    expect(out.lines().eq(["lo", "out0"]) || out.lines().eq(["out0", "lo"]), || {
        format!("interfaces: {out}")
    })?;
    for address in [address.as_str(), "169.254.169.254:80"] {
        let out = subject.output_of(spec(&["connect", address])).await?;
        expect(out == libc::ECONNREFUSED.to_string(), || format!("{address} answers {out}"))?;
    }
    Ok(())
}
