use super::{Decision, Tables, decide, neighbour};
use crate::{
    abi::{AddressEntry, AddressKey, BackendEntry, Control, Lease, ServiceEntry, Slot, VipEntry},
    core::neighbour::Resolved,
    csum,
    packet::{Buffer, Packet},
};
use std::{
    cell::{Cell, RefCell},
    vec::Vec,
};

const NOW: u64 = 5_000;
const OURS: [u8; 6] = [2, 0, 0, 0, 0, 1];
const THEIRS: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// 192.0.2.10 and 2001:db8::10 on interface 2, without a tag.
struct One {
    flags: u32,
    lease: Cell<Lease>,
    claims: RefCell<Vec<[u8; 16]>>,
    tokens: Cell<u32>,
}

const FOUR: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 10];
const SIX: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10];

impl One {
    fn new(flags: u32, lease: Lease) -> Self {
        Self { flags, lease: Cell::new(lease), claims: RefCell::default(), tokens: Cell::new(100) }
    }

    fn run(&self, frame: &[u8]) -> (Option<Resolved>, Vec<u8>) {
        let mut packet = Buffer::new(frame);
        let resolved = match decide(&packet, self) {
            Decision::Neighbour(at) if at.v6 => Some(neighbour::neighbour(&mut packet, self, at.l3, 2)),
            Decision::Neighbour(at) => Some(neighbour::arp(&mut packet, self, at.l3, 2)),
            _ => None,
        };
        (resolved, packet.frame().to_vec())
    }
}

impl Tables for One {
    fn vip4(&self, _: [u8; 4]) -> Option<&VipEntry> {
        None
    }
    fn vip6(&self, _: &[u8; 16]) -> Option<&VipEntry> {
        None
    }
    fn service(&self, _: u32) -> Option<&ServiceEntry> {
        None
    }
    fn slot(&self, _: u32) -> Option<Slot> {
        None
    }
    fn backend(&self, _: u32) -> Option<&BackendEntry> {
        None
    }
    fn now_ns(&self) -> u64 {
        NOW
    }
    fn switches(&self) -> u32 {
        Control::ADDRESSES
    }
    fn address(&self, key: &AddressKey) -> Option<AddressEntry> {
        let known = key.ifindex == 2 && key.vlan == 0 && (key.address == FOUR || key.address == SIX);
        known.then_some(AddressEntry { lease: 1, flags: self.flags, mac: OURS, pad: [0; 2] })
    }
    fn lease(&self, _: u32) -> Lease {
        self.lease.get()
    }
    fn end_lease(&self, _: u32, old: Lease) {
        assert_eq!(self.lease.replace(Lease::OVER), old);
    }
    fn may_answer(&self) -> bool {
        let left = self.tokens.get();
        self.tokens.set(left.saturating_sub(1));
        left > 0
    }
    fn claimed(&self, key: &AddressKey, lease: u32, mac: (u32, u16), now: u64) {
        assert_eq!((lease, now), (1, NOW));
        assert_eq!(mac, (u32::from_ne_bytes([2, 0, 0, 0]), u16::from_ne_bytes([0, 9])));
        self.claims.borrow_mut().push(key.address);
    }
}

fn arp(to: [u8; 6], operation: u8, sender: ([u8; 6], [u8; 4]), target: ([u8; 6], [u8; 4])) -> Vec<u8> {
    let head = [8, 6, 0, 1, 8, 0, 6, 4, 0, operation];
    [&to[..], &sender.0, &head, &sender.0, &sender.1, &target.0, &target.1].concat()
}

fn request() -> Vec<u8> {
    arp([0xff; 6], 1, (THEIRS, [192, 0, 2, 1]), ([0; 6], [192, 0, 2, 10]))
}

fn announcement() -> Vec<u8> {
    arp([0xff; 6], 2, (THEIRS, [192, 0, 2, 10]), ([0xff; 6], [192, 0, 2, 10]))
}

fn solicitation() -> Vec<u8> {
    let source = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
    let group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 0x10];
    let mut message = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &SIX, &[1, 1], &THEIRS].concat();
    let sum: u64 =
        [&message[..], &source, &group, &[0, 32, 0, 58]].iter().map(|part| csum::sum_bytes(part)).sum();
    message[2..4].copy_from_slice(&csum::finish(sum).to_ne_bytes());
    let head = [0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255];
    [&[0x33, 0x33, 0xff, 0, 0, 0x10][..], &THEIRS, &head, &source, &group, &message].concat()
}

#[test]
fn what_becomes_of_questions() {
    let rows = [
        (AddressEntry::ANSWER, Lease::until(NOW + 2, true), Resolved::ANSWERED),
        (AddressEntry::ANSWER, Lease::until(NOW, true), Resolved::OVER),
        (AddressEntry::ANSWER, Lease::until(NOW, false), Resolved::ANSWERED),
        (AddressEntry::ANSWER, Lease::OVER, Resolved::OVER),
        (AddressEntry::ANSWER, Lease::NONE, Resolved::PASS),
        (0, Lease::until(NOW + 2, true), Resolved::PASS),
        (0, Lease::until(NOW, true), Resolved::OVER),
        (0, Lease::until(NOW, false), Resolved::PASS),
        (0, Lease::OVER, Resolved::OVER),
        (0, Lease::NONE, Resolved::PASS),
    ];
    for (flags, lease, expected) in rows {
        for frame in [request(), solicitation()] {
            let tables = One::new(flags, lease);
            let (resolved, after) = tables.run(&frame);
            assert_eq!(resolved, Some(expected), "{flags} {lease:?}");
            assert_eq!(after == frame, expected != Resolved::ANSWERED);
        }
    }
}

#[test]
fn an_answer_names_this_node() {
    let tables = One::new(AddressEntry::ANSWER, Lease::until(NOW + 2, true));
    let (_, reply) = tables.run(&request());
    assert_eq!(reply, arp(THEIRS, 2, (OURS, [192, 0, 2, 10]), (THEIRS, [192, 0, 2, 1])));
    let (_, reply) = tables.run(&solicitation());
    assert_eq!((&reply[..6], &reply[6..12], reply.len()), (&THEIRS[..], &OURS[..], 86));
    assert_eq!((reply[54], reply[58], &reply[62..78]), (136, 0x60, &SIX[..]));
    assert_eq!((&reply[78..80], &reply[80..86]), (&[2, 1][..], &OURS[..]));
    let sum = csum::sum_bytes(&reply[22..54]) + csum::sum_bytes(&[0, 32, 0, 58]);
    assert_eq!(csum::fold(sum + csum::sum_bytes(&reply[54..])), 0xffff);
    tables.tokens.set(0);
    assert_eq!(tables.run(&request()).0, Some(Resolved::UNANSWERED));
}

#[test]
fn a_claim_ends_the_lease_of_a_silent_daemon_alone() {
    for (lease, claims, after) in [
        (Lease::until(NOW + 2, true), 1, Lease::until(NOW + 2, true)),
        (Lease::until(NOW + 2, false), 1, Lease::until(NOW + 2, false)),
        (Lease::until(NOW, false), 0, Lease::OVER),
        (Lease::until(NOW, true), 0, Lease::until(NOW, true)),
        (Lease::NONE, 0, Lease::NONE),
    ] {
        let tables = One::new(0, lease);
        tables.run(&announcement());
        assert_eq!((tables.claims.borrow().len(), tables.lease.get()), (claims, after), "{lease:?}");
    }
}

#[test]
fn no_length_and_no_tag_is_read_beyond_the_frame() {
    for frame in [request(), announcement(), solicitation()] {
        for tags in 0..4 {
            let tags = [0x81, 0, 0, 0].repeat(tags);
            let tagged = [&frame[..12], &tags, &frame[12..]].concat();
            for len in 14..=tagged.len() {
                let (_, after) = One::new(AddressEntry::ANSWER, Lease::OVER).run(&tagged[..len]);
                assert_eq!(after, &tagged[..len]);
                One::new(AddressEntry::ANSWER, Lease::until(NOW + 2, true)).run(&tagged[..len]);
            }
        }
    }
    assert!(Buffer::new(&request()).len() == 42);
}
