//! Structured garbage: packets of every kind, bent in several places at once, of any length asked for.

use super::{Generator, Net, Packet, Rng, Transport};

impl Generator {
    /// Garbage number `index`, cut or filled up to `len` bytes. What lies where a header ends may be a header of another
    /// protocol, so that every reader meets every kind of byte.
    #[must_use]
    pub fn garbage(&self, index: u64, len: usize) -> Vec<u8> {
        let mut rng = Rng::new(self.seed() ^ index.wrapping_mul(0xa076_1d64_78bd_642f) ^ 0x6761_7262);
        rng.bits();
        let mut packet = self.packet(&mut rng);
        match rng.below(10) {
            0..=2 => quic(&mut rng, &mut packet),
            3 => icmp_error(&mut rng, &mut packet),
            4 => {
                if let Net::V4(ip) = &mut packet.net {
                    ip.fragment = rng.pick(&[0x2000, 0x2001, 0x0001, 0x00b9, 0x1fff, 0x8000, 0x4000]);
                }
            }
            _ => {}
        }
        // Some fit the length from the start: what is cut is mostly refused for it.
        let room = len.saturating_sub(packet.with(|p| shrink(p, 0)).build().len());
        if rng.percent(60) {
            shrink(&mut packet, room);
        }
        let mut frame = packet.build();
        for _ in 0..rng.pick(&[0, 0, 0, 1, 1, 2, 4]) {
            // A mutation expects the IP header to be there.
            let l3 = packet.l3().min(frame.len().saturating_sub(61));
            if frame.len() > l3 + 60 {
                self.mutate(&mut rng, &mut frame, l3);
            }
        }
        // Half of those that change their length say so.
        let (l3, v6) = (packet.l3(), packet.is_v6());
        if frame.len() > len {
            frame.truncate(len);
            if rng.percent(50) {
                tell_length(&mut frame, l3, v6);
            }
        } else {
            let more = rng.bytes(len - frame.len());
            frame.extend_from_slice(&more);
            if rng.percent(25) {
                tell_length(&mut frame, l3, v6);
            }
        }
        frame
    }
}

/// Leaves so many bytes of the payload.
fn shrink(packet: &mut Packet, len: usize) {
    match &mut packet.transport {
        Transport::Tcp(tcp) => tcp.payload.truncate(len),
        Transport::Udp(udp) => udp.payload.truncate(len),
        Transport::Echo(_) | Transport::Other(..) => {}
    }
    packet.pad_to = packet.pad_to.min(len);
}

/// Sets the IP length to what is there.
fn tell_length(frame: &mut [u8], l3: usize, v6: bool) {
    let header = if v6 { 40 } else { 0 };
    let at = l3 + if v6 { 4 } else { 2 };
    if let Some(inside) = frame.len().checked_sub(l3 + header)
        && let Some(field) = frame.get_mut(at..at + 2)
    {
        field.copy_from_slice(&(inside as u16).to_be_bytes());
    }
}

/// Makes the payload of a UDP packet look like QUIC: any version and type, connection IDs of right and wrong lengths.
fn quic(rng: &mut Rng, packet: &mut Packet) {
    let Transport::Udp(udp) = &mut packet.transport else { return };
    let config = rng.pick(&[0, 2, 2, 2, 2, 7]) << 5;
    let cid_len = if rng.percent(70) { 8 + rng.below(13) } else { rng.below(40) };
    let mut cid = rng.bytes(cid_len.max(3));
    // The server ids of the tests' backends are the ends of their addresses.
    (cid[0], cid[1]) = (config | cid[0] & 0x1f, 0);
    cid[2] = rng.below(5) as u8;
    cid.truncate(cid_len);
    let mut payload = Vec::new();
    if rng.percent(60) {
        payload.push(0x80 | rng.bits() as u8);
        let versions = [[0, 0, 0, 1], [0x6b, 0x33, 0x43, 0xcf], [0, 0, 0, 0], [0x1a, 0x2a, 0x3a, 0x4a]];
        payload.extend_from_slice(&rng.pick(&versions));
        let says = if rng.percent(90) { cid_len as u8 } else { rng.bits() as u8 };
        payload.push(says);
    } else {
        payload.push(rng.bits() as u8 & 0x7f);
    }
    payload.extend_from_slice(&cid);
    let more = rng.below(60);
    payload.extend_from_slice(&rng.bytes(more));
    udp.payload = payload;
}

/// An ICMP or ICMPv6 error, or something like one, that quotes a packet from where this one goes to where it comes from.
fn icmp_error(rng: &mut Rng, packet: &mut Packet) {
    let (src, dst) = packet.addresses();
    let (number, types) = if packet.is_v6() { (58, [1, 2, 3, 4]) } else { (1, [3, 11, 12, 5]) };
    let quoted = if rng.percent(50) {
        Packet::tcp((dst, 80).into(), (src, 40_000).into())
    } else {
        Packet::udp((dst, 80).into(), (src, 40_000).into())
    };
    let mut bytes = vec![rng.pick(&types), rng.below(6) as u8, 0, 0];
    bytes.extend_from_slice(&(rng.bits() as u32 & 0x7ff).to_be_bytes());
    bytes.extend_from_slice(&quoted.ip());
    let kept = if rng.percent(60) { bytes.len() } else { rng.below(bytes.len() + 1) };
    bytes.truncate(kept);
    packet.transport = Transport::Other(number, bytes);
}
