//! Sessions that find no room, and flows that are older than the need for sessions.

use super::*;
use lb_common::abi::{FlowEntry, FlowKey6, SessionBack, SessionOut};

impl Lab {
    fn sessions(&self) -> (usize, usize) {
        let out = self.program.hash::<FlowKey6, SessionOut>("SESSIONS_OUT").keys().count();
        (out, self.program.hash::<FlowKey6, SessionBack>("SESSIONS_BACK").keys().count())
    }

    fn unanswered(&self) -> usize {
        let back = self.program.hash::<FlowKey6, SessionBack>("SESSIONS_BACK");
        back.iter().filter(|e| FlowEntry(e.as_ref().expect("an entry").1.entry).is_half_open()).count()
    }

    /// A second virtual port leads to the backends' port since now: `flags` of the reply's origin.
    fn ambiguous(&mut self, flags: u16) {
        for (v6, nat, other) in [(false, 1, 4), (true, 5, 8)] {
            for (id, more) in [(nat, 0), (other, ServiceEntry::HAIRPIN)] {
                let flags = ServiceEntry::SESSIONS | more;
                let entry =
                    ServiceEntry { ring_base: id, ring_size: 1, seed: 7, flags, ..ServiceEntry::default() };
                self.array("SERVICES", id, entry);
            }
            for (proto, vip) in [(6, vip(v6)), (17, udp_vip(v6))] {
                let key = NatKey { address: mapped(server(v6)), port: BEHIND.to_be_bytes(), proto };
                let (vip, port) = (mapped(vip), NAT.to_be_bytes());
                self.nats(key, NatOrigin { vip, service: nat, port, flags, ..NatOrigin::default() });
            }
        }
    }
}

/// A table that is full: counted as such, the packet dropped, and nothing half made is left.
#[test]
fn tables_that_are_full() {
    for table in ["SESSIONS_OUT", "SESSIONS_BACK"] {
        let mut lab = Lab::with_room(&[(table, 8)]);
        for n in 1..=12 {
            let packet = Packet::tcp((client(false, n), 40_000).into(), (vip(false), SNAT).into());
            let packet = packet.with(|p| p.tcp_mut().flags = SYN);
            if n <= 8 {
                assert_eq!(lab.run(&packet).verdict, Verdict::Tx, "{table}, {n}");
            } else {
                lab.drops(&packet, DropReason::NatFull);
            }
        }
        assert_eq!(lab.sessions(), (8, 8), "{table}");
        assert_eq!((lab.stats().made, lab.stats().full), (8, 4), "{table}");
        // Those that have one go on.
        let packet = Packet::tcp((client(false, 1), 40_000).into(), (vip(false), SNAT).into());
        assert_eq!(lab.run(&packet).verdict, Verdict::Tx);
    }
}

/// The first answer makes a session one that was answered: it then lives as long as the service says.
#[test]
fn an_answer_is_noted() {
    let mut lab = Lab::new();
    for v6 in [false, true] {
        let from = SocketAddr::from((client(v6, 1), 40_000));
        let syn = Packet::tcp(from, (vip(v6), SNAT).into()).with(|p| p.tcp_mut().flags = SYN);
        let at = source(&lab.run(&syn));
        assert_eq!(lab.unanswered(), 1);
        assert_eq!(lab.run(&syn).verdict, Verdict::Tx);
        assert_eq!(lab.unanswered(), 1, "the client alone does not answer itself");
        let reply = Packet::tcp((server(v6), BEHIND).into(), at);
        assert_eq!(lab.run(&reply).verdict, Verdict::Tx);
        assert_eq!(lab.unanswered(), 0);
    }
}

/// Flows of `nat` from before a second virtual port led to the backend's: whoever speaks first, they go on.
#[test]
fn a_flow_older_than_the_need_for_sessions_goes_on() {
    for first in ["client", "backend"] {
        let mut lab = Lab::new();
        for v6 in [false, true] {
            let made = lab.stats().made;
            let (from, to) =
                (SocketAddr::from((client(v6, 1), 40_000)), SocketAddr::from((server(v6), BEHIND)));
            let vip = SocketAddr::from((vip(v6), NAT));
            let packet = Packet::tcp(from, vip);
            let reply = moved(&packet, to, from);
            lab.becomes(&packet, &moved(&packet, from, to), BACKEND_MAC);
            lab.becomes(&reply, &moved(&packet, vip, from), CLIENT_MAC);
            assert_eq!(lab.stats().made, made);

            lab.ambiguous(NatOrigin::SESSIONS | NatOrigin::HEIR);
            if first == "backend" {
                lab.becomes(&reply, &moved(&packet, vip, from), CLIENT_MAC);
                // An error about what was sent before finds its sender, too.
                let sent = moved(&packet, from, to).ip();
                let inner = error(to.ip(), from.ip(), &sent);
                lab.becomes(&inner, &error(vip.ip(), from.ip(), &packet.ip()), CLIENT_MAC);
                assert_eq!(lab.stats().made, made);
            }
            for packet in [&packet, &packet, &packet.with(|p| p.tcp_mut().flags |= FIN)] {
                lab.becomes(packet, &moved(packet, from, to), BACKEND_MAC);
                lab.becomes(&reply, &moved(&reply, vip, from), CLIENT_MAC);
            }
            assert_eq!(lab.stats().made, made + 1);

            // The same client port towards the other virtual port: its middle is not known by that name, and another the
            // backend does not know. Its beginning gets another.
            let other = SocketAddr::from((super::vip(v6), HAIRPIN));
            let second = Packet::tcp(from, other);
            lab.drops(&second, DropReason::NatSession);
            let syn = second.with(|p| p.tcp_mut().flags = SYN);
            let at = source(&lab.run(&syn));
            assert!(at.ip() == from.ip() && at.port() != from.port(), "{at}");
            lab.becomes(&second, &moved(&second, at, to), BACKEND_MAC);
            lab.becomes(&moved(&second, to, at), &moved(&second, other, from), CLIENT_MAC);
            // Back to the state before, for the other family.
            for id in [1, 5] {
                let entry = ServiceEntry { ring_base: id, ring_size: 1, seed: 7, ..ServiceEntry::default() };
                lab.array("SERVICES", id, entry);
            }
        }
    }
}

/// Where it was never one alone, an answer without a session is nobody's.
#[test]
fn an_answer_without_a_session_is_the_kernels() {
    let mut lab = Lab::new();
    lab.ambiguous(NatOrigin::SESSIONS);
    for v6 in [false, true] {
        let reply = Packet::tcp((server(v6), BEHIND).into(), (client(v6, 1), 40_000).into());
        let out = lab.run(&reply);
        assert_eq!((out.verdict, out.frame), (Verdict::Pass, reply.build()));
    }
}

/// No two flows get the same source towards a backend; a pool that is used up says so.
#[test]
fn sources_are_never_shared() {
    let mut lab = Lab::new();
    for v6 in [false, true] {
        let (mut seen, mut refused) = (BTreeSet::new(), 0);
        for n in 1..=100 {
            let packet = Packet::tcp((client(v6, n), 40_000).into(), (vip(v6), SNAT).into());
            let out = lab.run(&packet.with(|p| p.tcp_mut().flags = SYN));
            match out.verdict {
                Verdict::Tx => assert!(seen.insert(source(&out)), "{} twice", source(&out)),
                _ => refused += 1,
            }
        }
        assert!(seen.len() > 55 && seen.len() <= 64, "{} of 64 ports were given away", seen.len());
        assert_eq!(seen.len() + refused, 100);
    }
    assert_eq!(lab.dropped(DropReason::NatExhausted), lab.stats().exhausted);
    assert!(lab.stats().exhausted >= 72);
}
