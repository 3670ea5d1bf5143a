//! Classic BPF for the packet sockets and for the sockets that hold ports. Pure.

use lb_common::wire::proto;
use libc::sock_filter;
use std::{collections::BTreeSet, net::IpAddr};

/// Loads from here on are from the network header, whatever lies in front of it.
const NETWORK: u32 = libc::SKF_NET_OFF as u32;
/// More virtual addresses than this are not told apart here: a program holds 4,096 instructions, and each is compared in
/// turn. What is for no probe is then passed over by the reader.
const MOST_V4: usize = 1000;
const MOST_V6: usize = 200;
/// Of a packet that is let through.
const WHOLE: u32 = u32::MAX;

const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

const fn op(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

/// Lets nothing through.
pub(super) const NOTHING: [sock_filter; 1] = [op(RETURN, 0)];

/// Lets packets of one family through that a virtual address sends to one of `sources`, and ICMP to these from anybody.
pub(super) fn answers(v6: bool, sources: &BTreeSet<IpAddr>, vips: &BTreeSet<IpAddr>) -> Vec<sock_filter> {
    let of = |addresses: &BTreeSet<IpAddr>| {
        addresses.iter().filter(|a| a.is_ipv6() == v6).copied().collect::<Vec<_>>()
    };
    let (protocol, source, destination, icmp) =
        if v6 { (6, 8, 24, proto::ICMPV6) } else { (9, 12, 16, proto::ICMP) };
    let (sources, vips) = (of(sources), of(vips));
    let mut program = one_of(destination, &sources);
    program.push(op(LOAD_BYTE, NETWORK.wrapping_add(protocol)));
    program.push(sock_filter { code: IF_EQUAL, jt: 0, jf: 1, k: icmp.into() });
    program.push(op(RETURN, WHOLE));
    if vips.len() <= if v6 { MOST_V6 } else { MOST_V4 } {
        program.extend(one_of(source, &vips));
    }
    program.push(op(RETURN, WHOLE));
    program
}

/// Goes on behind its own end if the address at this offset of the IP header is one of these; else the packet is let go.
fn one_of(offset: u32, addresses: &[IpAddr]) -> Vec<sock_filter> {
    let words = |address: &IpAddr| -> Vec<u32> {
        let words = |octets: &[u8]| {
            octets
                .chunks_exact(4)
                .map(|word| u32::from_be_bytes([word[0], word[1], word[2], word[3]]))
                .collect()
        };
        match address {
            IpAddr::V4(v4) => words(&v4.octets()),
            IpAddr::V6(v6) => words(&v6.octets()),
        }
    };
    let mut program = Vec::new();
    let mut found = Vec::new();
    for address in addresses {
        let words = words(address);
        for (n, word) in words.iter().enumerate() {
            program.push(op(LOAD_WORD, NETWORK.wrapping_add(offset + 4 * n as u32)));
            // Past the other words and the jump, to the next address.
            let rest = 2 * (words.len() - 1 - n) + 1;
            program.push(sock_filter { code: IF_EQUAL, jt: 0, jf: rest as u8, k: *word });
        }
        found.push(program.len());
        program.push(op(JUMP, 0));
    }
    program.push(op(RETURN, 0));
    for at in found {
        program[at].k = (program.len() - at - 1) as u32;
    }
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would do with the program and a packet that begins with its IP header.
    fn passes(program: &[sock_filter], packet: &[u8]) -> bool {
        let (mut at, mut a) = (0, 0);
        loop {
            let op = program[at];
            at += 1;
            let from = || op.k.wrapping_sub(NETWORK) as usize;
            match op.code {
                LOAD_WORD => match packet.get(from()..from() + 4) {
                    Some(word) => a = u32::from_be_bytes(word.try_into().unwrap()),
                    None => return false,
                },
                LOAD_BYTE => match packet.get(from()) {
                    Some(byte) => a = u32::from(*byte),
                    None => return false,
                },
                IF_EQUAL => at += usize::from(if a == op.k { op.jt } else { op.jf }),
                JUMP => at += op.k as usize,
                RETURN => return op.k > 0,
                code => panic!("{code}"),
            }
        }
    }

    fn packet(src: &str, dst: &str, proto: u8) -> Vec<u8> {
        match (src.parse().unwrap(), dst.parse().unwrap()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                [&[0x45, 0, 0, 20, 0, 0, 0, 0, 64, proto, 0, 0][..], &src.octets(), &dst.octets()].concat()
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                [&[0x60, 0, 0, 0, 0, 0, proto, 64][..], &src.octets(), &dst.octets()].concat()
            }
            _ => panic!("two families"),
        }
    }

    #[test]
    fn answers_pass_and_others_do_not() {
        let set = |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect::<BTreeSet<IpAddr>>();
        let sources = set(&["10.0.0.2", "10.2.0.2", "fd00::2", "fd00::3"]);
        let vips = set(&["192.0.2.10", "192.0.2.11", "2001:db8::10", "2001:db8::11"]);
        let (v4, v6) = (answers(false, &sources, &vips), answers(true, &sources, &vips));
        for (src, dst, proto, expected) in [
            ("192.0.2.10", "10.0.0.2", 6, true),
            ("192.0.2.11", "10.2.0.2", 17, true),
            ("192.0.2.12", "10.0.0.2", 6, false),
            ("192.0.2.10", "10.0.0.3", 6, false),
            ("10.0.0.11", "10.0.0.2", 1, true),
            ("10.0.0.11", "10.0.0.3", 1, false),
        ] {
            assert_eq!(passes(&v4, &packet(src, dst, proto)), expected, "{src} {dst} {proto}");
        }
        for (src, dst, proto, expected) in [
            ("2001:db8::10", "fd00::2", 6, true),
            ("2001:db8::11", "fd00::3", 17, true),
            ("2001:db8::12", "fd00::2", 6, false),
            ("2001:db8::10", "fd00::4", 6, false),
            ("fd00::11", "fd00::2", 58, true),
        ] {
            assert_eq!(passes(&v6, &packet(src, dst, proto)), expected, "{src} {dst} {proto}");
        }
        assert!(!passes(&NOTHING, &packet("192.0.2.10", "10.0.0.2", 6)));
        let many = (0..5000u32).map(|n| IpAddr::V4((0x0a00_0000 + n).into())).collect();
        assert!(answers(false, &sources, &many).len() < 4096);
        assert!(passes(&answers(false, &sources, &many), &packet("192.0.2.12", "10.0.0.2", 6)));
    }
}
