//! The packets that go in, and what must come out.

use crate::{Mode, Scenario, Transport};
use anyhow::{Context as _, ensure};
use lb_common::abi::BackendEntry;

pub const VIP4: [u8; 4] = [192, 0, 2, 10];
pub const VIP6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10];
pub const TCP_PORT: u16 = 80;
pub const UDP_PORT: u16 = 53;
pub const GUE_PORT: u16 = 6080;
/// Low bits of the outer IPv4 or IPv6 source that ipip varies with the flow.
pub const ENTROPY_BITS: u8 = 16;

/// Where backends of `nat` listen.
pub const NAT_PORT: u16 = 8080;
/// The backend whose replies are measured, and the client they go to.
pub const NAT_BACKEND: [u8; 4] = [10, 1, 0, 1];
pub const CLIENT: [u8; 4] = [10, 0, 0, 1];
/// The link header of a reply on its way to the client.
pub const EXIT_MACS: [u8; 12] = [2, 0, 0, 0, 9, 0xff, 2, 0, 0, 0, 0, 1];

/// The link header that the benchmark's programs restore.
const MACS: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];

/// The packet of a scenario's first flow.
pub fn input(scenario: &Scenario) -> Vec<u8> {
    let mut segment = match scenario.transport {
        Transport::Tcp => {
            vec![0x80, 1, 0, TCP_PORT as u8, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 4, 0, 0, 0, 0, 0]
        }
        Transport::Syn => {
            vec![0x80, 1, 0, TCP_PORT as u8, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 4, 0, 0, 0, 0, 0]
        }
        Transport::Udp => {
            let mut udp = vec![0x80, 1, 0, UDP_PORT as u8, 0, 26, 0, 0];
            udp.extend([0x5a; 18]);
            udp
        }
    };
    let (protocol, check_at) = if scenario.transport == Transport::Udp { (17, 6) } else { (6, 16) };
    let mut ip = Vec::new();
    if scenario.v6 {
        ip.extend([0x60, 0, 0, 0]);
        ip.extend((segment.len() as u16).to_be_bytes());
        ip.extend([protocol, 64]);
        ip.extend([0x20, 1, 0xd, 0xb8, 0xff, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 1]);
        ip.extend(VIP6);
    } else {
        ip.extend([0x45, 0]);
        ip.extend((segment.len() as u16 + 20).to_be_bytes());
        ip.extend([0, 0, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1]);
        ip.extend(VIP4);
    }
    if scenario.mode == Mode::Pass {
        // The neighbour of the VIP is none.
        *ip.last_mut().expect("an address is there") ^= 1;
    }
    if scenario.mode == Mode::NatBack {
        ip[12..16].copy_from_slice(&NAT_BACKEND);
        ip[16..20].copy_from_slice(&CLIENT);
        segment.swap(0, 2);
        segment.swap(1, 3);
        segment[..2].copy_from_slice(&NAT_PORT.to_be_bytes());
    }
    if !scenario.v6 {
        let check = finish(sum(&ip));
        ip[10..12].copy_from_slice(&check);
    }
    let check = finish(pseudo(&ip, protocol, segment.len()) + sum(&segment));
    segment[check_at..check_at + 2].copy_from_slice(&check);
    let mut frame = MACS.to_vec();
    frame.extend(if scenario.v6 { [0x86, 0xdd] } else { [8, 0] });
    frame.extend(ip);
    frame.extend(segment);
    frame.resize(frame.len().max(60), 0);
    frame
}

/// Length of the IP packet in a frame.
pub fn ip_len(frame: &[u8]) -> usize {
    let word = |at: usize| usize::from(frame[at]) << 8 | usize::from(frame[at + 1]);
    if frame[14] >> 4 == 6 { 40 + word(18) } else { word(16) }
}

/// Is `out` what `mode` makes of `frame` for one of these backends?
pub fn check_output(
    scenario: &Scenario,
    frame: &[u8],
    out: &[u8],
    backends: &[BackendEntry],
) -> anyhow::Result<()> {
    if scenario.mode == Mode::Pass {
        ensure!(out == frame, "the packet was changed");
        return Ok(());
    }
    if matches!(scenario.mode, Mode::Nat | Mode::NatBack) {
        return check_rewritten(scenario, frame, out, backends);
    }
    // One hop further, checksum and all.
    let mut inner = frame[14..].to_vec();
    if scenario.v6 {
        inner[7] -= 1;
    } else {
        inner[8] -= 1;
        inner[10..12].fill(0);
        let check = finish(sum(&inner[..20]));
        inner[10..12].copy_from_slice(&check);
    }
    let (l2, rest) = out.split_at_checked(14).context("the frame has no link header")?;
    ensure!(backends.iter().any(|b| b.l2 == l2[..12]), "the MAC addresses are no backend's: {l2:x?}");
    ensure!(l2[12..] == frame[12..14], "the EtherType is {:x?}", &l2[12..]);
    let outer_len = rest.len().checked_sub(inner.len()).context("the frame is shorter than before")?;
    let (outer, tail) = rest.split_at(outer_len);
    ensure!(tail == inner, "the packet inside is not the one that came, one hop further");
    let gue = if scenario.mode == Mode::Gue { 8 } else { 0 };
    let expected_len = match (scenario.mode, scenario.v6) {
        (Mode::Dsr | Mode::Nat | Mode::NatBack | Mode::Pass, _) => 0,
        (_, false) => 20 + gue,
        (_, true) => 40 + gue,
    };
    ensure!(outer_len == expected_len, "{outer_len} bytes were put in front, not {expected_len}");
    if expected_len == 0 {
        return Ok(());
    }
    let payload = ip_len(frame) + gue;
    let protocol = match (scenario.mode, scenario.v6) {
        (Mode::Gue, _) => 17,
        (_, false) => 4,
        (_, true) => 41,
    };
    let whose = |source: &[u8], destination: &[u8]| {
        let fixed = source.len() - usize::from(ENTROPY_BITS / 8);
        backends.iter().any(|b| {
            b.outer_src[..fixed] == source[..fixed] && b.outer_dst[..destination.len()] == *destination
        })
    };
    let (source, destination) = if scenario.v6 {
        ensure!(outer[0] >> 4 == 6 && outer[6] == protocol && outer[7] == 64, "outer header {outer:x?}");
        ensure!(outer[4..6] == (payload as u16).to_be_bytes(), "outer length {:x?}", &outer[4..6]);
        (&outer[8..24], &outer[24..40])
    } else {
        let header = &outer[..20];
        ensure!(header[0] == 0x45 && header[9] == protocol && header[8] == 64, "outer header {header:x?}");
        ensure!(header[2..4] == (payload as u16 + 20).to_be_bytes(), "outer length {:x?}", &header[2..4]);
        ensure!(finish(sum(header)) == [0, 0], "outer header checksum");
        (&header[12..16], &header[16..20])
    };
    ensure!(whose(source, destination), "outer addresses {source:?} to {destination:?} are no backend's");
    if gue > 0 {
        let udp = &outer[outer_len - 8..];
        ensure!(udp[0] >= 0xc0 && udp[2..4] == GUE_PORT.to_be_bytes(), "ports {udp:x?}");
        ensure!(udp[4..6] == (payload as u16).to_be_bytes(), "UDP length {:x?}", &udp[4..6]);
        if scenario.v6 {
            let packet = &rest[outer_len - 8..][..payload];
            ensure!(finish(pseudo(outer, 17, payload) + sum(packet)) == [0, 0], "UDP checksum {udp:x?}");
        }
    }
    Ok(())
}

/// Is `out` an IPv4 frame with one end rewritten, checksums and all?
fn check_rewritten(
    scenario: &Scenario,
    frame: &[u8],
    out: &[u8],
    backends: &[BackendEntry],
) -> anyhow::Result<()> {
    let (ip, segment) = (14..34, 34..14 + ip_len(frame));
    let mut expected = frame.to_vec();
    if scenario.mode == Mode::Nat {
        let to = backends.iter().find(|b| b.l2 == out[..12]).context("the MAC addresses are no backend's")?;
        expected[..12].copy_from_slice(&to.l2);
        expected[30..34].copy_from_slice(&to.outer_dst[..4]);
        expected[36..38].copy_from_slice(&NAT_PORT.to_be_bytes());
    } else {
        expected[..12].copy_from_slice(&EXIT_MACS);
        expected[26..30].copy_from_slice(&VIP4);
        expected[34..36].copy_from_slice(&TCP_PORT.to_be_bytes());
    }
    expected[22] -= 1;
    expected[24..26].fill(0);
    let check = finish(sum(&expected[ip.clone()]));
    expected[24..26].copy_from_slice(&check);
    expected[50..52].fill(0);
    let check = finish(pseudo(&expected[ip], 6, segment.len()) + sum(&expected[segment]));
    expected[50..52].copy_from_slice(&check);
    ensure!(out == expected, "the packet is not the one that came with one end rewritten: {out:x?}");
    Ok(())
}

/// Sum of big-endian 16-bit words.
fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|w| u64::from(w[0]) << 8 | u64::from(w.get(1).copied().unwrap_or(0))).sum()
}

fn finish(mut sum: u64) -> [u8; 2] {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// Sum of the pseudo header of an IP header's segment.
fn pseudo(ip: &[u8], protocol: u8, len: usize) -> u64 {
    let addresses = if ip[0] >> 4 == 6 { &ip[8..40] } else { &ip[12..20] };
    sum(addresses) + u64::from(protocol) + len as u64
}
