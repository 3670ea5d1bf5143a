//! QUIC services: by the server id in the connection ID, else as any UDP datagram.

use crate::rig::Rig;
use lb_common::abi::{BackendEntry, Slot, SlotState};
use lb_tests::{
    kernel::{Counter, QUIC_CONFIG, Verdict},
    packets::{Packet, describe},
};
use lb_userspace::plan::Image;
use std::collections::BTreeMap;

const UNROUTABLE: u8 = 7;
const VERSION_1: [u8; 4] = [0, 0, 0, 1];
const VERSION_2: [u8; 4] = [0x6b, 0x33, 0x43, 0xcf];

/// A connection ID of 11 bytes.
fn cid(config: u8, server: [u8; 2]) -> Vec<u8> {
    let mut cid = vec![config << 5 | 10, server[0], server[1]];
    cid.extend_from_slice(b"nonces!!");
    cid
}

fn short(cid: &[u8]) -> Vec<u8> {
    [&[0x42], cid, &[0xee; 30]].concat()
}

fn long(first: u8, version: [u8; 4], cid: &[u8]) -> Vec<u8> {
    [&[first], &version[..], &[cid.len() as u8], cid, &[0], &[0xee; 40]].concat()
}

/// The server ids of a service's backends, with their ids.
fn servers(image: &Image, service: u32) -> BTreeMap<[u8; 2], u32> {
    let own = image.cids.iter().filter(|(key, _)| key.service == service);
    own.map(|(key, backend)| ([key.server[0], key.server[1]], *backend)).collect()
}

/// The id of the backend that takes a packet; `None` = it was not forwarded.
#[track_caller]
fn taken(rig: &mut Rig, packet: &Packet) -> Option<u32> {
    let (outcome, moved) = rig.run(&packet.build());
    let backends: Vec<u32> = moved
        .iter()
        .filter_map(|(counter, _)| match counter {
            Counter::Backend(id) => Some(id),
            _ => None,
        })
        .collect();
    let sent = matches!(outcome.verdict, Verdict::Tx | Verdict::Redirect);
    assert_eq!(backends.len(), usize::from(sent), "{moved:?}\n{}", describe(&outcome.frame));
    backends.first().copied()
}

/// Both services, both families: every kind of packet with every server's id, from many clients.
#[test]
fn a_connection_id_names_the_backend() {
    let mut rig = Rig::new();
    for name in ["quic4", "quic6"] {
        let id = rig.world.image.service_id(name).expect("a service");
        let servers = servers(&rig.world.image, id);
        assert_eq!(servers.len(), 3);
        for v6 in [false, true] {
            for client in 0..20 {
                for (server, backend) in &servers {
                    let named = cid(QUIC_CONFIG, *server);
                    let packet = rig.world.packet(name, v6, client);
                    for payload in [
                        short(&named),
                        long(0xc0, VERSION_1, &named),
                        long(0xd0, VERSION_1, &named),
                        long(0xe0, VERSION_1, &named),
                        long(0xf0, VERSION_1, &named),
                        long(0xd0, VERSION_2, &named),
                        long(0xc0, [0xff; 4], &named),
                    ] {
                        let packet = packet.with(|p| *p.payload() = payload.clone());
                        assert_eq!(taken(&mut rig, &packet), Some(*backend), "{name} {v6} {payload:02x?}");
                    }
                }
            }
        }
    }
}

/// What names no server goes where the flow hashes to, header for header as a UDP service sends it.
#[test]
fn everything_else_goes_by_the_hash() {
    let mut rig = Rig::new();
    for name in ["quic4", "quic6"] {
        let id = rig.world.image.service_id(name).expect("a service");
        let server = *servers(&rig.world.image, id).keys().next().expect("a server id");
        let good = cid(QUIC_CONFIG, server);
        let mut payloads = vec![
            short(&cid(UNROUTABLE, server)),
            short(&cid(QUIC_CONFIG ^ 1, server)),
            short(&cid(QUIC_CONFIG, [0xde, 0xad])),
            long(0xc0, VERSION_1, &cid(UNROUTABLE, server)),
            long(0xe0, VERSION_1, &cid(QUIC_CONFIG, [0xde, 0xad])),
            // Shorter than first octet and server id.
            long(0xc0, VERSION_1, &good[..2]),
            long(0xc0, VERSION_1, &[]),
        ];
        // Cut anywhere before sixteen bytes of connection ID and what follows are there.
        payloads.extend((0..17).map(|len| short(&good)[..len].to_vec()));
        payloads.extend((0..22).map(|len| long(0xc0, VERSION_1, &good)[..len].to_vec()));
        for v6 in [false, true] {
            for (client, payload) in payloads.iter().enumerate() {
                let packet = rig.world.packet(name, v6, client as u16);
                let packet = packet.with(|p| *p.payload() = payload.clone());
                rig.forwards(&format!("{name} {v6} {payload:02x?}"), name, &packet);
                // Padding that would complete the ID.
                let padded = packet.with(|p| p.pad_to = 200);
                rig.forwards(&format!("{name} {v6} padded {payload:02x?}"), name, &padded);
            }
        }
    }
}

/// A server that drains keeps what its ID names; one that takes no packets does not.
#[test]
fn draining_and_dead_servers() {
    let mut rig = Rig::new();
    let id = rig.world.image.service_id("quic4").expect("a service");
    let servers = servers(&rig.world.image, id);
    let (server, backend) = servers.iter().next().map(|(s, b)| (*s, *b)).expect("a server id");
    let others: Vec<u32> = servers.values().copied().filter(|other| *other != backend).collect();
    let mut image = rig.world.image.clone();
    // Nobody's slot any more.
    image.rings.get_mut(&id).expect("a ring").update(|words| words.fill(Slot::plain(others[0], 0)));
    let packet =
        rig.world.packet("quic4", false, 1).with(|p| *p.payload() = short(&cid(QUIC_CONFIG, server)));
    let flagged = |flags| {
        let mut image = image.clone();
        image.backends.get_mut(&backend).expect("the backend").entry.flags = flags;
        image
    };
    for (flags, expected) in [
        (0, backend),
        (BackendEntry::DRAINING, backend),
        (BackendEntry::DOWN | BackendEntry::DEAD, others[0]),
        (BackendEntry::DEAD, others[0]),
    ] {
        rig.balancer.set_image(&flagged(flags));
        assert_eq!(taken(&mut rig, &packet), Some(expected), "flags {flags}");
    }
    // Its id is another service's now, and the server id not yet gone.
    let mut foreign = flagged(0);
    foreign.backends.get_mut(&backend).expect("the backend").entry.service = id + 1;
    rig.balancer.set_image(&foreign);
    assert_eq!(taken(&mut rig, &packet), Some(others[0]));
    let mut forgotten = flagged(0);
    forgotten.cids.clear();
    rig.balancer.set_image(&forgotten);
    assert_eq!(taken(&mut rig, &packet), Some(others[0]));
}

/// A slot that changes hands: first packets of connections go to the new owner, and what follows them by the hash
/// too; whatever else comes stays where it was.
#[test]
fn an_initial_begins_a_flow() {
    let mut rig = Rig::new();
    let id = rig.world.image.service_id("quic4").expect("a service");
    let backends: Vec<u32> = servers(&rig.world.image, id).into_values().collect();
    let (owner, home) = (backends[0], backends[1]);
    let mut image = rig.world.image.clone();
    let ring = image.rings.get_mut(&id).expect("a ring");
    ring.update(|words| words.fill(Slot::new(owner, home, SlotState::Moving, 0)));
    rig.balancer.set_image(&image);
    let unnamed = cid(UNROUTABLE, [1, 2]);
    let mut send = |client, payload: Vec<u8>| {
        let packet = rig.world.packet("quic4", false, client).with(|p| *p.payload() = payload);
        taken(&mut rig, &packet)
    };
    for (client, first) in [(1, long(0xc0, VERSION_1, &unnamed)), (2, long(0xd0, VERSION_2, &unnamed))] {
        assert_eq!(send(client, short(&unnamed)), Some(home), "established before");
        let client = client + 100;
        assert_eq!(send(client, first.clone()), Some(owner));
        assert_eq!(send(client, long(0xe0, VERSION_1, &unnamed)), Some(owner));
        assert_eq!(send(client, short(&unnamed)), Some(owner));
        assert_eq!(send(client, first), Some(owner));
    }
    assert_eq!(send(201, long(0xe0, VERSION_1, &unnamed)), Some(home), "a handshake is none");
    assert_eq!(send(202, long(0xc0, [0xff; 4], &unnamed)), Some(home), "an unknown version is none");
}
