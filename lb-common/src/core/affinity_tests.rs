//! The rules of the flow tables, a sequence of packets each.

use super::affinity_rig::{A, B, C, CLOSING_KEPT, HANDSHAKE_KEPT, IDLE, KEPT, Rig};
use crate::abi::SlotState::{Moving, Tracked};

#[test]
fn a_handshake_on_a_moving_slot_is_confirmed_by_its_sequence_number() {
    for isn in [0, 7, u32::MAX - 5] {
        let rig = Rig::new(B, A, Moving);
        assert_eq!(rig.syn(1, isn), B);
        assert_eq!(rig.entries(), (0, 1));
        assert_eq!(rig.syn(1, isn), B, "sent again");
        assert_eq!(rig.data(1, isn.wrapping_add(65_536)), B, "the last of the first window");
        assert_eq!(rig.entries(), (1, 0), "promoted");
        assert_eq!(rig.data(1, isn.wrapping_add(99_999_999)), B);
        for stranger in [isn, isn.wrapping_sub(1), isn.wrapping_add(65_537), isn ^ 1 << 31] {
            let rig = Rig::new(B, A, Moving);
            assert_eq!((rig.syn(1, isn), rig.data(1, stranger)), (B, A), "{isn} {stranger}");
        }
    }
}

/// An established flow that has no entry yet lives at home; a SYN that somebody makes up in its name changes nothing.
#[test]
fn a_forged_syn_takes_no_flow_away() {
    let rig = Rig::new(B, A, Moving);
    assert_eq!(rig.syn(1, 1_000_000), B);
    assert_eq!(rig.data(1, 77), A);
    assert_eq!(rig.syn(1, 2_000_000), A, "it is recorded now");
    assert_eq!(rig.data(1, 78), A);
}

#[test]
fn what_goes_home_anyway_needs_no_entry() {
    let rig = Rig::new(B, B, Tracked);
    assert_eq!((rig.syn(1, 5), rig.data(1, 6)), (B, B));
    assert_eq!(rig.entries(), (0, 0));
    let rig = Rig::new(A, A, Moving);
    assert_eq!((rig.syn(1, 5), rig.entries()), (A, (0, 0)));
    assert_eq!((rig.data(1, 6), rig.entries()), (A, (1, 0)), "a moving slot records who lives at home");
}

/// The owner goes back while a handshake with the one in between has not been answered; the client tries again with a
/// sequence number close to the first.
#[test]
fn a_new_handshake_at_home_takes_the_place_of_an_old_one_elsewhere() {
    let mut rig = Rig::new(B, A, Moving);
    assert_eq!(rig.syn(1, 1000), B);
    rig.slot(A, A, Moving);
    assert_eq!(rig.syn(1, 1500), A);
    assert_eq!(rig.data(1, 1501), A);
}

#[test]
fn a_closing_flow_gives_way_to_a_new_one() {
    let rig = Rig::new(B, A, Moving);
    assert_eq!((rig.data(1, 10), rig.fin(1, 11)), (A, A));
    assert!(rig.entry(1).is_closing());
    assert_eq!(rig.syn(1, 500_000), B);
    assert_eq!(rig.entries(), (1, 1));
    assert_eq!(rig.data(1, 12), A, "the old one has more to say");
    assert!(!rig.entry(1).is_closing() && rig.entry(1).is_pending());
    assert_eq!(rig.data(1, 500_001), B, "and the new one is confirmed all the same");
    assert_eq!(rig.entries(), (1, 0));
    assert_eq!(rig.data(1, 500_100), B);
    assert!(!rig.entry(1).is_pending());
}

#[test]
fn a_living_flow_is_not_moved_by_a_syn() {
    let rig = Rig::new(B, A, Moving);
    assert_eq!((rig.data(1, 10), rig.syn(1, 99)), (A, A));
    assert_eq!((rig.entries(), rig.entry(1).is_pending()), ((1, 0), false));
}

/// The same addresses and ports again after so long a silence that the daemon may forget the entry between the SYN and its
/// acknowledgement, up to the last moment of a handshake: both go to the same backend.
#[test]
fn a_handshake_outlives_the_entry_that_its_syn_met() {
    for room in [100, 0] {
        for silence in 0..KEPT + 60 {
            for wait in [1, HANDSHAKE_KEPT - 3] {
                let rig = Rig::new(B, A, Moving);
                assert_eq!((rig.syn(1, 5), rig.data(1, 6)), (B, B));
                rig.pass(silence);
                rig.world.half_room.set(room);
                let to = rig.syn(1, 1 << 20);
                rig.walk(wait);
                assert_eq!(rig.data(1, (1 << 20) + 1), to, "{silence} s, {wait} s, room {room}");
            }
        }
    }
}

/// The same for a flow that ended, and a handshake that finds no room.
#[test]
fn without_room_a_closing_entry_outlives_the_handshake() {
    for silence in 0..CLOSING_KEPT + 10 {
        let mut rig = Rig::new(B, A, Moving);
        assert_eq!((rig.data(1, 10), rig.fin(1, 11)), (A, A));
        rig.pass(silence);
        rig.world.half_room.set(0);
        rig.slot(C, B, Moving);
        let to = rig.syn(1, 500_000);
        rig.walk(HANDSHAKE_KEPT - 3);
        assert_eq!(rig.ack(1, 500_001), to, "{silence} s");
        rig.walk(IDLE - 3);
        assert_eq!(rig.data(1, 500_001), to, "{silence} s: the new flow lives as long as any");
    }
}

/// The handshake's last step comes when it has been forgotten, or after a stranger's SYN took its place: it meets the entry that
/// closes, and from then on the flow lives there.
#[test]
fn a_flow_that_comes_too_late_to_be_confirmed_lives_on_in_the_closing_entry() {
    for forged in [false, true] {
        let mut rig = Rig::new(B, A, Moving);
        assert_eq!((rig.data(1, 10), rig.fin(1, 11), rig.ack(1, 12)), (A, A, A));
        assert!(rig.entry(1).is_closing(), "the last word of most connections");
        assert_eq!(rig.syn(1, 500_000), B);
        if forged {
            assert_eq!(rig.syn(1, 900_000_000), B);
        } else {
            rig.walk(HANDSHAKE_KEPT + 3);
            assert_eq!(rig.entries(), (1, 0));
        }
        assert_eq!(rig.ack(1, 500_001), A);
        rig.slot(B, B, Tracked);
        rig.walk(IDLE - 3);
        assert_eq!(rig.ack(1, 500_001), A, "forged {forged}");
    }
}

/// The same for one that was confirmed among the handshakes.
#[test]
fn an_entry_confirmed_in_place_outlives_the_handshake() {
    for closing in [false, true] {
        for silence in 0..KEPT + 10 {
            let mut rig = Rig::new(B, A, Moving);
            rig.world.room.set(0);
            assert_eq!((rig.syn(1, 5), rig.data(1, 6)), (B, B));
            if closing {
                assert_eq!(rig.fin(1, 7), B);
            }
            rig.pass(silence);
            rig.slot(C, A, Moving);
            let to = rig.syn(1, 1 << 20);
            if !closing && silence <= IDLE - 3 {
                assert_eq!(to, B, "{silence} s: the flow lives");
            }
            rig.walk(HANDSHAKE_KEPT - 3);
            assert_eq!(rig.ack(1, (1 << 20) + 1), to, "{silence} s, closing {closing}");
            rig.walk(IDLE - 3);
            assert_eq!(
                rig.data(1, (1 << 20) + 1),
                to,
                "{silence} s, closing {closing}: it lives as long as any"
            );
        }
    }
}

/// A flow that was silent for longer than the idle timeout is over: its successor goes where new flows go. One that was
/// silent for less is not, and no SYN takes it away.
#[test]
fn a_silent_flow_gives_way_to_a_new_one_after_the_idle_timeout_only() {
    for silence in 0..KEPT + 60 {
        let rig = Rig::new(B, A, Moving);
        assert_eq!(rig.data(1, 10), A);
        rig.pass(silence);
        let to = rig.syn(1, 1 << 20);
        match silence {
            0..=IDLE => assert_eq!(to, A, "{silence} s"),
            _ if silence > IDLE + 5 => assert_eq!(to, B, "{silence} s"),
            _ => {}
        }
        assert_eq!(rig.data(1, 11), A, "{silence} s: a stranger's SYN, perhaps");
    }
}

/// Who makes up SYNs keeps no entry alive.
#[test]
fn syns_keep_no_entry_alive() {
    let rig = Rig::new(B, A, Moving);
    assert_eq!(rig.data(1, 10), A);
    for isn in 0..20 {
        rig.walk(10);
        rig.syn(1, isn << 20);
    }
    assert_eq!(rig.entries(), (0, 1));
    rig.walk(HANDSHAKE_KEPT + 3);
    assert_eq!(rig.entries(), (0, 0));
}

#[test]
fn a_full_table_of_handshakes_sends_new_flows_home() {
    let rig = Rig::new(B, A, Moving);
    rig.world.half_room.set(1);
    assert_eq!((rig.syn(1, 5), rig.syn(2, 5)), (B, A));
    assert_eq!((rig.data(1, 6), rig.data(2, 6)), (B, A));
    // One that has a place keeps it.
    assert_eq!((rig.syn(3, 5), rig.syn(3, 50), rig.data(3, 51)), (B, B, B));
}

/// A SYN for which there is no room, on a flow that closes: its acknowledgement will meet the old entry. It went home once,
/// and the next packet to another backend.
#[test]
fn without_room_a_new_flow_follows_the_closing_one() {
    let mut rig = Rig::new(B, A, Moving);
    assert_eq!((rig.data(1, 10), rig.fin(1, 11)), (A, A));
    rig.world.half_room.set(0);
    rig.slot(C, B, Moving);
    assert_eq!(rig.syn(1, 500_000), A);
    assert_eq!(rig.data(1, 500_001), A);
}

/// A handshake that was recorded must not be lost because there is no room among the confirmed: it stays where it is.
#[test]
fn a_handshake_is_confirmed_in_place_where_there_is_no_room() {
    let mut rig = Rig::new(B, A, Moving);
    rig.world.room.set(0);
    assert_eq!((rig.syn(1, 5), rig.data(1, 6), rig.data(1, 900_000)), (B, B, B));
    assert_eq!(rig.entries(), (0, 1));
    rig.slot(C, A, Moving);
    assert_eq!(rig.data(1, 900_001), B);
    assert_eq!(rig.fin(1, 900_002), B);
    // Nothing could hold both.
    assert_eq!((rig.syn(1, 7), rig.data(1, 8)), (B, B));
}

#[test]
fn a_fin_alone_is_recorded_as_closing() {
    let rig = Rig::new(B, A, Moving);
    assert_eq!(rig.fin(1, 9), A);
    assert!(rig.entry(1).is_closing());
    let rig = Rig::new(B, B, Tracked);
    assert_eq!((rig.fin(1, 9), rig.entries()), (B, (0, 0)));
}

#[test]
fn entries_of_another_life_are_misses() {
    let mut rig = Rig::new(B, A, Moving);
    assert_eq!((rig.syn(1, 5), rig.data(1, 6), rig.syn(2, 5)), (B, B, B));
    rig.reborn(B);
    assert_eq!(rig.data(1, 7), A, "to the home, in the place of the dead entry");
    assert_eq!((rig.entries(), rig.entry(1).backend()), ((1, 1), A));
    assert_eq!(rig.data(2, 6), A, "a handshake of another life confirms nothing");
    let mut rig = Rig::new(B, A, Moving);
    assert_eq!((rig.syn(1, 5), rig.data(1, 6)), (B, B));
    rig.reborn(B);
    assert_eq!((rig.syn(1, 70), rig.data(1, 71)), (B, B));
}

#[test]
fn nobody_takes_new_flows_while_all_drain() {
    let rig = Rig::new(0, A, Moving);
    assert_eq!((rig.syn(1, 5), rig.data(1, 6), rig.data(2, 6)), (0, A, A));
    assert_eq!(rig.entries(), (2, 0));
}

/// The case that matters for speed asks for one entry; the marks tell it from the others.
#[test]
fn an_entry_with_a_handshake_beside_it_is_marked() {
    let rig = Rig::new(B, A, Moving);
    rig.data(1, 10);
    assert!(!rig.entry(1).is_pending());
    rig.fin(1, 11);
    rig.syn(1, 500_000);
    assert!(rig.entry(1).is_pending());
}
