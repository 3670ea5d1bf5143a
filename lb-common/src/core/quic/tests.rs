//! The header reader against a second one, written byte by byte from the RFCs and the draft.

use super::*;
use crate::{
    abi::{Slot, VipEntry},
    packet::Buffer,
};
use proptest::prelude::*;
use std::{collections::BTreeMap, vec, vec::Vec};

const SERVICE: u32 = 9;
/// Offset of the UDP header: Ethernet and IPv4.
const L4: usize = 34;

/// Server ids, and backends of this service (1), dead (2), draining (3), of another service (4), gone (5).
struct Servers {
    ids: BTreeMap<Vec<u8>, u32>,
    backends: [BackendEntry; 6],
}

impl Servers {
    fn new(ids: &[(&[u8], u32)]) -> Self {
        let mut backends = [BackendEntry { kind: 1, service: SERVICE, ..BackendEntry::default() }; 6];
        backends[2].flags = BackendEntry::DEAD | BackendEntry::DOWN;
        backends[3].flags = BackendEntry::DRAINING;
        backends[4].service = SERVICE + 1;
        backends[5].kind = 0;
        Self { ids: ids.iter().map(|(id, backend)| (id.to_vec(), *backend)).collect(), backends }
    }
}

impl Tables for Servers {
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
    fn backend(&self, id: u32) -> Option<&BackendEntry> {
        self.backends.get(id as usize)
    }
    fn cid(&self, key: &CidKey) -> Option<u32> {
        assert_eq!(key.service, SERVICE);
        let found = self.ids.iter().find(|(id, _)| {
            let mut padded = (*id).clone();
            padded.resize(16, 0);
            padded == key.server
        });
        found.map(|(_, backend)| *backend)
    }
    fn now_ns(&self) -> u64 {
        0
    }
}

fn place() -> Place {
    Place(14 | 20 << 8 | 17 << 24)
}

fn format(id_len: u32, config: u32) -> Format {
    let flags = ServiceEntry::QUIC | config << ServiceEntry::QUIC_CONFIG_SHIFT;
    Format::of(SERVICE, &ServiceEntry { flags, quic_id_len: id_len, ..ServiceEntry::default() })
}

/// A datagram whose UDP length says `says` bytes of payload.
fn routed(servers: &Servers, format: Format, payload: &[u8], says: usize) -> Route {
    let mut frame = vec![0; L4];
    frame.extend_from_slice(&[0x9c, 0x40, 1, 0xbb]);
    frame.extend_from_slice(&((8 + says) as u16).to_be_bytes());
    frame.extend_from_slice(&[0, 0]);
    frame.extend_from_slice(payload);
    route(&Buffer::new(&frame), servers, place(), format)
}

/// What the reader should say of a datagram: backend, Initial, 0-RTT.
fn expected(servers: &Servers, id_len: usize, config: u8, payload: &[u8]) -> (u32, bool, bool) {
    let lookup = |cid: &[u8]| {
        if cid.len() < 1 + id_len || cid[0] >> 5 != config {
            return 0;
        }
        match servers.ids.iter().find(|(id, _)| id[..] == cid[1..=id_len]) {
            Some((_, backend @ (1 | 3))) => *backend,
            _ => 0,
        }
    };
    match payload.first() {
        None => (0, false, false),
        Some(first) if first & 0x80 == 0 => match payload.len() {
            0..=16 => (0, false, false),
            _ => (lookup(&payload[1..]), false, false),
        },
        Some(_) if payload.len() < 22 => (0, false, false),
        Some(first) => {
            let len = usize::from(payload[5]);
            // A connection ID that goes beyond the datagram is looked at as far as a server id can reach.
            let cid = &payload[6..payload.len().min(6 + len)];
            let (one, two) = ([0, 0, 0, 1], [0x6b, 0x33, 0x43, 0xcf]);
            let bits = first >> 4 & 3;
            let fits = (8..=20).contains(&len);
            let initial = payload[1..5] == one && bits == 0 || payload[1..5] == two && bits == 1;
            let early = payload[1..5] == one && bits == 1 || payload[1..5] == two && bits == 2;
            (lookup(cid), initial && fits, early && fits)
        }
    }
}

/// A long header with a connection ID of `len` bytes that starts as given.
fn long(first: u8, version: u32, len: u8, cid: &[u8]) -> Vec<u8> {
    let mut packet = vec![first];
    packet.extend_from_slice(&version.to_be_bytes());
    packet.push(len);
    packet.extend_from_slice(cid);
    packet.resize(60, 0x77);
    packet
}

#[test]
fn packets_go_to_the_server_their_id_names() {
    let servers =
        Servers::new(&[(&[0x0a, 1], 1), (&[0x0a, 2], 2), (&[0x0a, 3], 3), (&[0x0a, 4], 4), (&[0x0a, 5], 5)]);
    let format = format(2, 5);
    let first = 5 << 5 | 9;
    for (last, backend) in [(1, 1), (2, 0), (3, 3), (4, 0), (5, 0), (6, 0)] {
        let cid = [first, 0x0a, last, 1, 2, 3, 4, 5, 6, 7];
        let mut short = vec![0x41];
        short.extend_from_slice(&cid);
        short.resize(40, 0x55);
        assert_eq!(routed(&servers, format, &short, 40), Route(backend.into()), "short, {last}");
        let handshake = long(0xe0, 1, 10, &cid);
        assert_eq!(routed(&servers, format, &handshake, 60), Route(backend.into()), "handshake, {last}");
        let unknown = long(0xc0, 0x1a2a_3a4a, 10, &cid);
        assert_eq!(routed(&servers, format, &unknown, 60), Route(backend.into()), "unknown version, {last}");
        let initial = routed(&servers, format, &long(0xc0, 1, 10, &cid), 60);
        assert_eq!((initial.backend(), initial.is_initial(), initial.begins()), (backend, true, true));
        // Another config, and "unroutable".
        for config in [0, 4, 6, 7] {
            short[1] = config << 5 | 9;
            assert_eq!(routed(&servers, format, &short, 40), Route::BY_HASH);
        }
    }
}

#[test]
fn first_flights_of_both_versions() {
    let servers = Servers::new(&[]);
    let format = format(4, 0);
    let cid = [0xff, 1, 2, 3, 4, 5, 6, 7];
    let kinds = |version| {
        [0xc0, 0xd0, 0xe0, 0xf0].map(|first| {
            let route = routed(&servers, format, &long(first, version, 8, &cid), 60);
            (route.is_initial(), route.begins())
        })
    };
    let (initial, early, other) = ((true, true), (false, true), (false, false));
    assert_eq!(kinds(VERSION_1), [initial, early, other, other]);
    assert_eq!(kinds(VERSION_2), [other, initial, early, other]);
    assert_eq!(kinds(0), [other; 4]);
    assert_eq!(kinds(2), [other; 4]);
    // The number is that of the connection: the same for all its first packets, another for another ID.
    let isn = |first, cid: &[u8]| routed(&servers, format, &long(first, 1, 8, cid), 60).isn();
    assert_eq!(isn(0xc0, &cid), isn(0xd3, &cid));
    assert_ne!(isn(0xc0, &cid), isn(0xc0, &[0xff, 1, 2, 3, 4, 5, 6, 8]));
    // RFC 9000 section 7.2: an Initial of a shorter first ID is none.
    for len in 0..=30u8 {
        let route = routed(&servers, format, &long(0xc0, 1, len, &cid), 60);
        assert_eq!(route.begins(), (8..=20).contains(&len), "{len} bytes");
    }
}

/// Padding of the frame behind a short datagram is no connection ID.
#[test]
fn the_datagram_ends_where_udp_says() {
    let servers = Servers::new(&[(&[0x0a], 1)]);
    let mut short = vec![0x41, 3, 0x0a];
    short.resize(60, 0);
    for says in 0..=60 {
        let expected = if says >= 17 { 1 } else { 0 };
        assert_eq!(routed(&servers, format(1, 0), &short, says).backend(), expected, "{says} bytes");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    /// Any bytes at all, and bytes that look like QUIC to a service with these servers.
    #[test]
    fn both_readers_agree(
        id_len in 1..=15usize, config in 0..=6u8, noise in proptest::collection::vec(any::<u8>(), 0..64),
        first: u8, version in prop_oneof![Just(1u32), Just(VERSION_2), Just(0), any::<u32>()],
        cid_len in prop_oneof![0..=21u8, any::<u8>()], server in 1..=5u32, id: [u8; 15], like: bool,
    ) {
        let servers = Servers::new(&[(&id[..id_len], server)]);
        let mut payload = noise;
        if like {
            let mut head = vec![first];
            if first & 0x80 != 0 {
                head.extend_from_slice(&version.to_be_bytes());
                head.push(cid_len);
            }
            head.push(config << 5 | first & 0x1f);
            head.extend_from_slice(&id[..id_len]);
            let n = head.len().min(payload.len());
            payload[..n].copy_from_slice(&head[..n]);
        }
        let found = routed(&servers, format(id_len as u32, config.into()), &payload, payload.len());
        let early = found.begins() && !found.is_initial();
        prop_assert_eq!(
            (found.backend(), found.is_initial(), early),
            expected(&servers, id_len, config, &payload)
        );
    }

    /// A number from a map cannot make the reader panic, whatever it is.
    #[test]
    fn no_format_is_too_odd(format: u64, payload in proptest::collection::vec(any::<u8>(), 0..64), says in 0..100usize) {
        let _ = routed(&Servers::new(&[]), Format(format & !0xffff_ffff | u64::from(SERVICE)), &payload, says);
    }
}
