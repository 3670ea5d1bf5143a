//! The ICMP check: an echo request; it passes if the reply comes. It says that the host is there, and nothing of
//! what runs on it.

use super::{Deadline, Peer, ProbeFailure, Stage};
use socket2::Type;
use std::{net::SocketAddr, time::Duration};
use surge_ping::{Client, Config, ICMP, PingIdentifier, PingSequence, SurgeError};

/// Bytes behind the header, as many as ping sends.
const PAYLOAD: [u8; 56] = [0x6c; 56];
/// Echo requests at most, evenly over the time there is: one may get lost.
const TRIES: u16 = 3;

/// Passes if the host answers.
pub async fn probe(peer: impl Into<Peer>, deadline: Deadline) -> Result<(), ProbeFailure> {
    let Peer { address, from } = peer.into();
    let mut config = Config::builder().kind(if address.is_ipv4() { ICMP::V4 } else { ICMP::V6 });
    if let Some(from) = from {
        // A raw socket: of another the kernel chooses the identifier.
        config = config.bind(SocketAddr::new(from.ip(), 0)).sock_type_hint(Type::RAW);
    }
    let config = config.build();
    let identifier = from.map_or_else(identifier, |from| from.port());
    let client = Client::new(&config).map_err(|error| ProbeFailure::from_io(&error, Stage::Connect))?;
    let mut pinger = client.pinger(address.ip(), PingIdentifier(identifier)).await;
    // The deadline is ours, not the library's.
    pinger.timeout(Duration::from_secs(24 * 3600));
    let wait = deadline.timeout / u32::from(TRIES);
    let exchange = async {
        let mut sequence = 0_u16;
        loop {
            let ping = pinger.ping(PingSequence(sequence), &PAYLOAD);
            match tokio::time::timeout(wait, ping).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(SurgeError::IOError(error))) => {
                    return Err(ProbeFailure::from_io(&error, Stage::Answer));
                }
                // Something else than a reply to ours, or silence.
                Ok(Err(_)) => tokio::time::sleep(wait).await,
                Err(_) => {}
            }
            sequence = sequence.wrapping_add(1);
        }
    };
    deadline.limit(Stage::Answer, exchange).await
}

/// Tells this check's replies from those of others that are under way.
fn identifier() -> u16 {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed) ^ std::process::id() as u16
}
