use super::*;
use crate::bfd::packet::State::{AdminDown, Down, Init, Up};
use proptest::prelude::*;

fn at(us: u64) -> Moment {
    Moment(us * 1000)
}

fn in_state(state: State) -> Session {
    Session { state, ..Session::new(7, 10_000, 3, at(0)) }
}

fn packet(state: State) -> Packet {
    Packet {
        diagnostic: Diagnostic::NONE,
        state,
        poll: false,
        last: false,
        control_independent: false,
        demand: false,
        multiplier: 3,
        mine: 9,
        yours: 7,
        min_tx: 20_000,
        min_rx: 10_000,
        min_echo_rx: 0,
    }
}

/// RFC 5880 section 6.2 and 6.8.6: every own state with every one received, and with silence.
#[test]
fn the_full_cross_product() {
    let rows = [
        // own, then: admin-down, down, init, up received; silence
        (AdminDown, [AdminDown, AdminDown, AdminDown, AdminDown], AdminDown),
        (Down, [Down, Init, Up, Down], Down),
        (Init, [Down, Init, Up, Up], Down),
        (Up, [Down, Down, Up, Up], Down),
    ];
    for (own, after, silent) in rows {
        for (received, expected) in State::ALL.into_iter().zip(after) {
            let mut session = in_state(own);
            let change = session.receive(&packet(received), at(1000));
            assert_eq!(session.state, expected, "{own:?} hears {received:?}");
            assert_eq!(change.map(|c| (c.from, c.to)), (own != expected).then_some((own, expected)));
            if own != Down && expected == Down {
                assert_eq!(session.diagnostic, Diagnostic::NEIGHBOUR_DOWN);
            }
        }
        let mut session = in_state(own);
        session.expires = Some(at(5000));
        assert_eq!(session.tick(at(4999)), None);
        let change = session.tick(at(5000));
        assert_eq!(session.state, silent, "{own:?} hears nothing");
        assert_eq!(change.is_some(), own != silent);
        if let Some(change) = change {
            assert_eq!(change.diagnostic, Diagnostic::TIME_EXPIRED);
        }
    }
}

#[test]
fn silence_is_counted_by_the_peers_multiplier_and_the_slower_interval() {
    let mut session = in_state(Up);
    session.receive(&Packet { multiplier: 5, ..packet(Up) }, at(1000));
    // 5 * max(10 ms, 20 ms).
    assert_eq!(session.expires, Some(at(101_000)));
    session.receive(&Packet { multiplier: 2, min_tx: 1000, ..packet(Up) }, at(2000));
    assert_eq!(session.expires, Some(at(22_000)));
}

#[test]
fn slow_until_up_then_a_poll_sequence() {
    let mut session = Session::new(7, 10_000, 3, at(0));
    let first = session.transmit(at(0), 0).unwrap();
    assert_eq!((first.state, first.min_tx, first.yours, first.poll), (Down, SLOW, 0, false));
    assert_eq!(session.deadline(), Some(at(1_000_000)), "no jitter at 0");
    session.receive(&packet(Init), at(500_000));
    assert_eq!(session.state, Up);
    // The change is told at once, with the intervals that are wanted, until the peer has answered.
    let polled = session.transmit(at(500_000), 0).unwrap();
    assert_eq!((polled.state, polled.min_tx, polled.yours, polled.poll), (Up, 10_000, 9, true));
    session.receive(&Packet { last: true, ..packet(Up) }, at(501_000));
    let next = session.transmit(at(510_000), 0).unwrap();
    assert!(!next.poll && !next.last);
    // The peer's own poll is answered at once, between two packets.
    session.receive(&Packet { poll: true, ..packet(Up) }, at(511_000));
    let answer = session.transmit(at(511_000), 0).unwrap();
    assert!(answer.last && !answer.poll);
    assert_eq!(session.transmit(at(511_000), 0), None, "once");
}

#[test]
fn jitter_takes_off_up_to_a_quarter() {
    for (multiplier, none, most) in [(3, 10_000, 7500), (1, 9000, 7500)] {
        for (jitter, expected) in [(0, none), (255, most)] {
            let mut session = Session { multiplier, ..in_state(Up) };
            session.receive(&packet(Up), at(0));
            session.transmit(at(0), jitter).unwrap();
            assert_eq!(session.next, at(expected), "{multiplier} {jitter}");
        }
    }
}

#[test]
fn a_peer_that_wants_nothing_gets_nothing() {
    let mut session = in_state(Up);
    session.receive(&Packet { min_rx: 0, ..packet(Up) }, at(0));
    assert_eq!(session.transmit(at(1_000_000), 0), None);
    session.receive(&Packet { min_rx: 0, poll: true, ..packet(Up) }, at(1_000_000));
    assert!(session.transmit(at(1_000_000), 0).is_some_and(|packet| packet.last), "but an answer");
    // Demand mode: quiet as long as both are up.
    let mut session = in_state(Up);
    session.receive(&Packet { demand: true, ..packet(Up) }, at(0));
    assert_eq!(session.transmit(at(1_000_000), 0), None);
}

proptest! {
    /// Two ends that hear each other come up, whatever their intervals and clocks; once one is silent the other is down
    /// within its detection time.
    #[test]
    fn two_ends_meet_and_notice_silence(
        a in 5_000u32..2_000_000,
        b in 5_000u32..2_000_000,
        multiplier in 2u8..6,
        jitters in proptest::collection::vec(any::<u8>(), 16),
        late in 0u64..3_000_000,
    ) {
        let mut ends = [Session::new(1, a, multiplier, at(0)), Session::new(2, b, multiplier, at(late))];
        let (mut now, mut round) = (at(0), 0);
        while ends.iter().any(|end| end.state != Up) {
            prop_assert!(now < at(30_000_000), "{ends:?}");
            now = ends.iter().filter_map(Session::deadline).min().unwrap().max(now);
            for from in 0..2 {
                ends[from].tick(now);
                round += 1;
                if let Some(packet) = ends[from].transmit(now, jitters[round % jitters.len()]) {
                    ends[1 - from].receive(&packet, now);
                }
            }
        }
        let [one, _] = &mut ends;
        let limit = at(u64::from(a.max(b).max(SLOW)) * u64::from(multiplier)).since(at(0));
        let silent = now;
        while one.state == Up {
            now = one.deadline().unwrap();
            prop_assert!(now.since(silent) <= limit);
            one.tick(now);
            one.transmit(now, 0);
        }
        prop_assert_eq!(one.diagnostic, Diagnostic::TIME_EXPIRED);
        prop_assert!(one.expires.is_none());
    }
}
