//! Rewritten packets against packets made anew.

use super::{
    Address, Ends,
    rewrite::{self, BOTH, DESTINATION, SOURCE},
};
use crate::{
    core::{Ip, Part},
    csum,
    packet::Buffer,
    wire::{eth, proto},
};
use proptest::prelude::*;
use std::vec::Vec;

/// Addresses and ports of a packet, as bytes.
#[derive(Clone, Debug)]
struct Names {
    src: [u8; 16],
    dst: [u8; 16],
    ports: [u8; 4],
}

impl Names {
    fn ends(&self, v6: bool) -> Ends {
        let address = |bytes: &[u8; 16]| match v6 {
            true => Address::read(bytes),
            false => Address::mapped(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])),
        };
        Ends {
            src: address(&self.src),
            dst: address(&self.dst),
            src_port: u16::from_ne_bytes([self.ports[0], self.ports[1]]),
            dst_port: u16::from_ne_bytes([self.ports[2], self.ports[3]]),
        }
    }
}

/// A frame with right checksums, summed over all of it.
fn frame(v6: bool, protocol: u8, names: &Names, payload: &[u8], checksum: bool) -> Vec<u8> {
    let width = if v6 { 16 } else { 4 };
    let (src, dst) = (&names.src[..width], &names.dst[..width]);
    let (header, field) = if protocol == proto::TCP { (20, 16) } else { (8, 6) };
    let mut segment = std::vec![0; header];
    segment[..4].copy_from_slice(&names.ports);
    if protocol == proto::TCP {
        segment[12..14].copy_from_slice(&[0x50, 0x10]);
    } else {
        segment[4..6].copy_from_slice(&((8 + payload.len()) as u16).to_be_bytes());
    }
    segment.extend_from_slice(payload);
    if checksum {
        let len = (segment.len() as u32).to_be_bytes();
        let covered = [src, dst, &len, &[0, 0, 0, protocol], &segment].concat();
        let mut check = csum::finish(csum::sum_bytes(&covered));
        if protocol == proto::UDP && check == 0 {
            check = 0xffff;
        }
        segment[field..field + 2].copy_from_slice(&check.to_ne_bytes());
    }
    let mut ip;
    if v6 {
        ip = std::vec![0x60, 0, 0, 0];
        ip.extend_from_slice(&(segment.len() as u16).to_be_bytes());
        ip.extend_from_slice(&[protocol, 64]);
        ip.extend_from_slice(&[src, dst].concat());
    } else {
        ip = std::vec![0x45, 0];
        ip.extend_from_slice(&(20 + segment.len() as u16).to_be_bytes());
        ip.extend_from_slice(&[0x12, 0x34, 0x40, 0, 64, protocol, 0, 0]);
        ip.extend_from_slice(&[src, dst].concat());
        let check = csum::finish(csum::sum_bytes(&ip));
        ip[10..12].copy_from_slice(&check.to_ne_bytes());
    }
    let mut frame = std::vec![0; eth::LEN];
    frame.extend_from_slice(&ip);
    frame.extend_from_slice(&segment);
    frame
}

fn change(buffer: &mut Buffer, ip: &Ip, which: u8, to: &Ends) -> bool {
    match which {
        SOURCE => rewrite::ends::<_, SOURCE>(buffer, ip, eth::LEN, to),
        DESTINATION => rewrite::ends::<_, DESTINATION>(buffer, ip, eth::LEN, to),
        _ => rewrite::ends::<_, BOTH>(buffer, ip, eth::LEN, to),
    }
    .is_ok()
}

fn any_names() -> impl Strategy<Value = Names> {
    // Ports of zero mean "as it was" and are no ports.
    let port = || prop_oneof![Just(1u16), Just(u16::MAX), 1..=u16::MAX];
    (any::<[u8; 16]>(), any::<[u8; 16]>(), port(), port()).prop_map(|(src, dst, from, to)| {
        let ([a, b], [c, d]) = (from.to_be_bytes(), to.to_be_bytes());
        Names { src, dst, ports: [a, b, c, d] }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    /// A packet rewritten is, byte for byte, the packet that would have been made with the other names; there and back again it
    /// is what it was.
    #[test]
    fn a_rewritten_packet_is_the_one_made_anew(
        v6: bool, tcp: bool, checksum: bool, old in any_names(), new in any_names(), which in 1..=3u8,
        payload in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        let protocol = if tcp { proto::TCP } else { proto::UDP };
        let checksum = checksum || tcp;
        let mut expected = old.clone();
        if which & SOURCE != 0 {
            expected.src = new.src;
            expected.ports[..2].copy_from_slice(&new.ports[..2]);
        }
        if which & DESTINATION != 0 {
            expected.dst = new.dst;
            expected.ports[2..].copy_from_slice(&new.ports[2..]);
        }
        let bytes = frame(v6, protocol, &old, &payload, checksum);
        let header_len = if v6 { 40 } else { 20 };
        let total_len = (bytes.len() - eth::LEN) as u16;
        let ip = Ip { l3: eth::LEN, header_len, v6, total_len, tos: 0, proto: protocol, part: Part::Whole };
        let mut buffer = Buffer::new(&bytes);
        prop_assert!(change(&mut buffer, &ip, which, &new.ends(v6)));
        let there = buffer.frame().to_vec();
        prop_assert_eq!(&there, &frame(v6, protocol, &expected, &payload, checksum));
        prop_assert!(change(&mut buffer, &ip, which, &old.ends(v6)));
        prop_assert_eq!(buffer.frame(), &bytes[..]);
    }

    #[test]
    fn an_address_is_what_it_was(bytes: [u8; 16], v4: u32) {
        let mut copy = [0; 16];
        Address::read(&bytes).write(&mut copy);
        prop_assert_eq!(copy, bytes);
        prop_assert_eq!(Address::read(&bytes).bytes(), bytes);
        let mapped = Address::mapped(v4);
        prop_assert!(mapped.is_v4());
        prop_assert_eq!(mapped.v4(), v4);
    }
}
