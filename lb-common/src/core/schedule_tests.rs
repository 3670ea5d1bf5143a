//! Flows of scheduled services, a sequence of packets each.

use super::{
    affinity_rig::{A, B, C, IDLE, Rig, SERVICE},
    schedule::{pick, weighted},
};
use crate::{
    abi::{ServiceEntry, SlotState::Moving},
    core::Tables,
    wire::proto,
};
use std::{collections::BTreeMap, vec, vec::Vec};

#[test]
fn round_robin_takes_turns_and_keeps_flows() {
    let mut rig = Rig::scheduled(ServiceEntry::ROUND_ROBIN, &[A.into(), B.into(), C.into()]);
    for client in 0..30u8 {
        let turn = [A, B, C][usize::from(client) % 3];
        assert_eq!((rig.syn(client, 5), rig.syn(client, 5)), (turn, turn), "no turn for a SYN sent again");
        assert_eq!((rig.data(client, 6), rig.data(client, 1 << 30)), (turn, turn));
    }
    // Drained: no new flows at once, the old ones stay.
    *rig.world.schedule.borrow_mut() = vec![B.into(), C.into()];
    rig.slot(B, A, Moving);
    assert!((40..60).all(|client| rig.syn(client, 5) != A));
    assert_eq!(rig.data(0, 1 << 30), A);
    rig.world.schedule.borrow_mut().clear();
    assert_eq!(rig.syn(70, 5), 0, "nobody is left");
    assert_eq!(rig.data(80, 5), A, "unknown: home");
}

#[test]
fn a_scheduled_flow_without_room_stays_with_the_ring() {
    let rig = Rig::scheduled(ServiceEntry::ROUND_ROBIN, &[B.into(), C.into()]);
    rig.world.half_room.set(0);
    assert_eq!((rig.syn(1, 5), rig.data(1, 6), rig.syn(2, 5)), (A, A, A));
    let rig = Rig { proto: proto::UDP, ..rig };
    rig.world.room.set(0);
    assert_eq!((rig.data(1, 0), rig.data(1, 0)), (A, A));
}

/// A datagram flow that found no room is at home, and nothing tells it from a new one when there is room again: until it
/// would be over anyway, unknown flows go home and are recorded there.
#[test]
fn a_datagram_flow_that_found_no_room_is_not_placed_anew() {
    for flags in [ServiceEntry::ROUND_ROBIN, ServiceEntry::LEAST_CONNECTIONS] {
        let words = [weighted(B, 1), weighted(C, 1)];
        let rig = Rig { proto: proto::UDP, ..Rig::scheduled(flags, &words) };
        assert_ne!(rig.data(9, 0), A, "placed");
        rig.world.room.set(1);
        assert_eq!(rig.data(1, 0), A);
        rig.pass(IDLE / 2);
        assert_eq!((rig.data(1, 0), rig.data(9, 0) != A), (A, true));
        rig.pass(IDLE / 2);
        rig.world.room.set(100);
        assert_eq!((rig.data(1, 0), rig.data(2, 0)), (A, A), "it may be older than it looks");
        assert_eq!(rig.entries().0, 3);
        let counts = [A, B, C].map(|id| rig.world.active(id)).iter().sum::<u64>();
        assert_eq!(counts, if flags == ServiceEntry::LEAST_CONNECTIONS { 3 } else { 0 });
        rig.pass(IDLE + 5);
        assert_ne!(rig.data(3, 0), A, "nobody without an entry is left");
        assert_eq!((rig.data(1, 0), rig.data(2, 0)), (A, A));
    }
}

/// Of a full flow table: each flow that could not be recorded, again and again while others find room.
#[test]
fn a_datagram_flow_at_home_stays_while_the_table_is_full_now_and_then() {
    let rig = Rig { proto: proto::UDP, ..Rig::scheduled(ServiceEntry::ROUND_ROBIN, &[B.into(), C.into()]) };
    let mut at = BTreeMap::new();
    for round in 0..60_usize {
        rig.world.room.set([0, 3, 1, 9, 5, 0, 0, 2, 12][round % 9]);
        for client in 0..10 {
            let now = rig.data(client, 0);
            assert_eq!(*at.entry(client).or_insert(now), now, "round {round}, client {client}");
        }
        rig.walk(IDLE - 3);
    }
}

#[test]
fn a_word_of_another_service_is_not_obeyed() {
    let mut rig = Rig::scheduled(ServiceEntry::ROUND_ROBIN, &[B.into()]);
    rig.world.backends[B as usize].service = SERVICE + 1;
    assert_eq!(rig.syn(1, 5), A);
}

#[test]
fn scheduled_datagrams_are_placed_at_once_and_stay() {
    let mut rig =
        Rig { proto: proto::UDP, ..Rig::scheduled(ServiceEntry::ROUND_ROBIN, &[B.into(), C.into()]) };
    assert_eq!((rig.data(1, 0), rig.data(2, 0), rig.data(1, 0), rig.data(2, 0)), (B, C, B, C));
    rig.reborn(B);
    assert_eq!((rig.data(1, 0), rig.data(1, 0)), (B, B), "a new life, a new turn");
}

#[test]
fn least_connections_counts_open_flows() {
    let words: Vec<u64> = [(A, 1), (B, 1), (C, 2)].map(|(id, weight)| weighted(id, weight)).to_vec();
    let rig = Rig::scheduled(ServiceEntry::LEAST_CONNECTIONS, &words);
    let mut clients = BTreeMap::<u32, Vec<u8>>::new();
    for client in 0..40 {
        let backend = rig.syn(client, 5);
        assert_eq!((rig.data(client, 6), rig.data(client, 7)), (backend, backend));
        clients.entry(backend).or_default().push(client);
    }
    let counts = |rig: &Rig| [A, B, C].map(|id| rig.world.active(id));
    assert_eq!(counts(&rig), [10, 10, 20]);
    for client in &clients[&B] {
        rig.fin(*client, 8);
        rig.fin(*client, 9);
    }
    assert_eq!(counts(&rig), [10, 0, 20], "a FIN counts once");
    assert!((100..105).all(|client| rig.syn(client, 5) == B));
    rig.data(clients[&B][0], 10);
    assert_eq!(counts(&rig), [10, 1, 20], "data brings it back");
    // A new connection with the addresses and ports of one that closed.
    let first = clients[&A][0];
    rig.fin(first, 11);
    assert_eq!(counts(&rig), [9, 1, 20]);
    assert_eq!((rig.syn(first, 1 << 20), rig.data(first, (1 << 20) + 1)), (B, B));
    assert_eq!(counts(&rig), [9, 2, 20]);
    rig.world.active.borrow_mut().insert(C, -3);
    assert_eq!(rig.syn(200, 5), C, "less than nothing is nothing");
}

/// All backends are compared, not a part of them; equals take turns.
#[test]
fn least_connections_finds_the_only_one_with_room() {
    for size in [1, 2, 17, 255, 256] {
        let words: Vec<u64> = (1..=size).map(|id| weighted(id, 10)).collect();
        let rig = Rig::scheduled(ServiceEntry::LEAST_CONNECTIONS, &words);
        let picked = |rig: &Rig| pick(&rig.world, SERVICE, true);
        let mut turns: Vec<u32> = (0..size).map(|_| picked(&rig)).collect();
        turns.sort_unstable();
        assert_eq!(turns, (1..=size).collect::<Vec<_>>());
        for id in 1..=size {
            rig.world.active.borrow_mut().insert(id, 1000);
        }
        for id in 1..=size {
            rig.world.active.borrow_mut().insert(id, 999);
            assert!((0..3).all(|_| picked(&rig) == id), "{id} of {size}");
            rig.world.active.borrow_mut().insert(id, 1000);
        }
    }
    let rig = Rig::scheduled(ServiceEntry::LEAST_CONNECTIONS, &[weighted(A, 65_535), weighted(B, 1)]);
    rig.world.active.borrow_mut().extend([(A, 65_534), (B, 1)]);
    assert_eq!(pick(&rig.world, SERVICE, true), A, "65,534 / 65,535 is less than one");
    rig.world.active.borrow_mut().extend([(A, 1 << 40), (B, 1 << 41)]);
    assert_eq!(pick(&rig.world, SERVICE, true), A, "whatever the counts say");
}
