//! Packets, built from the inside out.

pub const BALANCER4: [u8; 4] = [198, 18, 3, 4];
pub const BALANCER6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 4];
pub const STRANGER4: [u8; 4] = [198, 19, 3, 4];
pub const STRANGER6: [u8; 16] = [0xfd, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 4];

pub fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u32 =
        bytes.chunks(2).map(|w| u32::from(w[0]) << 8 | w.get(1).map_or(0, |b| u32::from(*b))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

pub fn ip4(source: [u8; 4], protocol: u8, tos: u8, payload: &[u8]) -> Vec<u8> {
    let mut ip = vec![0x45, tos];
    ip.extend((payload.len() as u16 + 20).to_be_bytes());
    ip.extend([0, 7, 0x40, 0, 64, protocol, 0, 0]);
    ip.extend(source);
    ip.extend([10, 0, 0, 11]);
    seal(&mut ip);
    ip.extend(payload);
    ip
}

/// Sets the checksum of an IPv4 header without options.
pub fn seal(ip: &mut [u8]) {
    ip[10..12].fill(0);
    let check = checksum(&ip[..20]);
    ip[10..12].copy_from_slice(&check);
}

pub fn ip6(source: [u8; 16], next: u8, class: u8, payload: &[u8]) -> Vec<u8> {
    let mut ip = vec![0x60 | class >> 4, class << 4 | 0xa, 0xbc, 0xde];
    ip.extend((payload.len() as u16).to_be_bytes());
    ip.extend([next, 64]);
    ip.extend(source);
    ip.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 11]);
    ip.extend(payload);
    ip
}

pub fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
    let mut udp = vec![0xc1, 0x23];
    udp.extend(port.to_be_bytes());
    udp.extend((payload.len() as u16 + 8).to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload);
    udp
}

pub fn frame(vlan: Option<u16>, ip: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 0x11, 2, 0, 0, 0, 0, 0x22];
    if let Some(tag) = vlan {
        frame.extend([0x81, 0]);
        frame.extend(tag.to_be_bytes());
    }
    frame.extend(if ip[0] >> 4 == 6 { [0x86, 0xdd] } else { [8, 0] });
    frame.extend(ip);
    frame
}

/// What a client sent to a virtual address, traffic class `tos`.
pub fn inner(v6: bool, tos: u8) -> Vec<u8> {
    let segment: Vec<u8> = (0..40).collect();
    if v6 { ip6([0x20; 16], 6, tos, &segment) } else { ip4([203, 0, 113, 5], 6, tos, &segment) }
}
