//! The UDP check: one datagram; it passes if the answer is the expected one.
//!
//! Without anything expected silence passes, and only an ICMP error (nothing listens, no way there) fails: that is all
//! that can be known of a service whose answers are not. A datagram may get lost: it is sent again twice, evenly over the
//! time there is.

use super::{Deadline, Peer, ProbeFailure, Stage};
use crate::model::UdpCheck;
use nix::sys::socket::{setsockopt, sockopt};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};
use tokio::net::UdpSocket;

/// Times the datagram is sent at most.
const TRIES: u32 = 3;
/// Longest answer that is looked at.
const MAX_ANSWER: usize = 4096;

/// A socket of its own, which takes nothing from others than the backend and learns of ICMP errors.
pub(super) async fn connect(peer: Peer) -> Result<UdpSocket, ProbeFailure> {
    let Peer { address, from } = peer;
    let failure = |error: io::Error| ProbeFailure::from_io(&error, Stage::Connect);
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind(from.unwrap_or_else(|| (any, 0).into())).await.map_err(failure)?;
    // Without it only some ICMP errors are told: not those of routers that know no way to the backend.
    let told = match address {
        SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4RecvErr, &true),
        SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvErr, &true),
    };
    told.map_err(|errno| failure(errno.into()))?;
    socket.connect(address).await.map_err(failure)?;
    Ok(socket)
}

/// Sends `request`, and again where nothing comes, until `judge` accepts an answer. What it calls not ours is passed over.
pub(super) async fn ask<T>(
    socket: &UdpSocket,
    request: &[u8],
    deadline: Deadline,
    judge: impl Fn(&[u8]) -> Option<Result<T, ProbeFailure>>,
) -> Result<T, ProbeFailure> {
    let failure = |error: io::Error| ProbeFailure::from_io(&error, Stage::Answer);
    let wait = deadline.timeout / TRIES;
    let exchange = async {
        let mut answer = vec![0; MAX_ANSWER];
        loop {
            socket.send(request).await.map_err(failure)?;
            let again = tokio::time::Instant::now() + wait;
            while let Ok(received) = tokio::time::timeout_at(again, socket.recv(&mut answer)).await {
                let length = received.map_err(failure)?;
                if let Some(judged) = judge(&answer[..length]) {
                    return judged;
                }
            }
        }
    };
    deadline.limit(Stage::Answer, exchange).await
}

/// Passes if the server at `address` answers the datagram as expected.
pub async fn probe(peer: impl Into<Peer>, check: &UdpCheck, deadline: Deadline) -> Result<(), ProbeFailure> {
    let socket = connect(peer.into()).await?;
    let Some(expected) = &check.expect else {
        let silence = ask(&socket, &check.send, deadline, |_| Some(Ok(()))).await;
        return match silence {
            Err(ProbeFailure::Timeout { .. }) => Ok(()),
            other => other,
        };
    };
    ask(&socket, &check.send, deadline, |answer| {
        let fits = answer.windows(expected.len()).any(|part| part == expected.as_slice());
        Some(if fits { Ok(()) } else { Err(ProbeFailure::Unexpected { found: shown(answer) }) })
    })
    .await
}

/// The beginning of an answer, as an operator can read it.
pub(super) fn shown(answer: &[u8]) -> String {
    const LONGEST: usize = 32;
    let cut = &answer[..answer.len().min(LONGEST)];
    let more = if answer.len() > LONGEST { "..." } else { "" };
    format!("'{}'{more}", cut.escape_ascii())
}
