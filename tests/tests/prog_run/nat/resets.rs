//! RSTs of backends, counted on their way back: refusals of a SYN apart from all others.

use super::*;
use lb_common::abi::{Signal, Signals};
use lb_tests::packets::{ACK, RST};

impl Lab {
    /// Service and backend `id` are watched, and so are replies to `nat` and to the pool.
    fn watched(&mut self, id: u32, v6: bool) {
        let (flags, kind) = match id {
            1 | 5 => (0, ForwardKind::Nat),
            _ => (ServiceEntry::SESSIONS, ForwardKind::Snat),
        };
        let flags = flags | ServiceEntry::PASSIVE;
        let entry = ServiceEntry { ring_base: id, ring_size: 1, seed: 7, flags, ..ServiceEntry::default() };
        self.array("SERVICES", id, entry);
        self.array("BACKENDS", id, backend(id, kind, server(v6)));
        self.array("CONTROL", 0, Control { flags: Control::NAT | Control::WATCHED, ..Control::default() });
        let key = NatKey { address: mapped(server(v6)), port: BEHIND.to_be_bytes(), proto: 6 };
        let first = if v6 { 5 } else { 1 };
        let port = NAT.to_be_bytes();
        let vip = mapped(vip(v6));
        self.nats(key, NatOrigin { vip, service: first, backend: first, port, ..NatOrigin::default() });
        let flags = VipEntry::POOL | VipEntry::FRAGMENTS | VipEntry::WATCHED;
        self.vip(pool(v6), VipEntry { vip: 2, flags, rules: [PortRule::NONE; 4] });
    }

    fn signals(&self, backend: u32) -> Signals {
        let all =
            self.program.per_cpu::<Signals>("BACKEND_SIGNALS").get(&backend, 0).expect("BACKEND_SIGNALS");
        all.iter().fold(Signals::default(), |a, b| a.plus(*b))
    }

    /// What the reply of a backend moves.
    #[track_caller]
    fn counts(&mut self, backend: u32, reply: &Packet) -> Vec<Signal> {
        let before = self.signals(backend);
        assert_eq!(self.run(reply).verdict, Verdict::Tx);
        let mut moved = self.signals(backend).since(before);
        let signals = lb_tests::kernel::SIGNALS.into_iter();
        signals.filter(|signal| std::mem::take(moved.of(*signal)) == 1).collect()
    }
}

fn flagged(packet: &Packet, flags: u8, seq: u32) -> Packet {
    packet.with(|p| {
        p.tcp_mut().flags = flags;
        p.tcp_mut().seq = seq;
    })
}

#[test]
fn resets_are_counted_by_what_they_say() {
    let mut lab = Lab::new();
    for v6 in [false, true] {
        for snat in [false, true] {
            let id = u32::from(snat) + if v6 { 5 } else { 1 };
            let from = SocketAddr::from((client(v6, 1), 40_000));
            let to = SocketAddr::from((server(v6), BEHIND));
            let port = if snat { SNAT } else { NAT };
            let syn = flagged(&Packet::tcp(from, (vip(v6), port).into()), SYN, 5_000);
            // Not watched yet.
            let at = source(&lab.run(&syn));
            let reply = moved(&syn, to, at);
            assert_eq!(lab.counts(id, &flagged(&reply, RST | ACK, 0)), []);
            lab.watched(id, v6);
            assert_eq!(lab.run(&syn).verdict, Verdict::Tx);
            let seen = lab.signals(id);
            assert_eq!((seen.syns, seen.watched), (1, 1), "{seen:?}");
            for (flags, seq, expected) in [
                (RST | ACK, 0, &[Signal::Refused][..]),
                (RST | ACK, 1, &[Signal::Reset]),
                (RST, 0, &[Signal::Reset]),
                (SYN | ACK, 0, &[]),
                (FIN | ACK, 0, &[]),
                (ACK, 0, &[]),
            ] {
                assert_eq!(
                    lab.counts(id, &flagged(&reply, flags, seq)),
                    expected,
                    "{flags:#x} {seq} {snat} {v6}"
                );
            }
            let tagged = flagged(&reply, RST | ACK, 0).with(|p| p.tags = vec![(0x8100, 7)]);
            assert_eq!(lab.counts(id, &tagged), [Signal::Refused]);
        }
    }
}
