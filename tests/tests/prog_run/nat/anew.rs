//! A client that uses the port of a connection again which is over: its next one has the backend that the ring says now.

use super::*;
use lb_tests::packets::{ACK, RST};

struct Place {
    lab: Lab,
    v6: bool,
    from: SocketAddr,
    /// The source towards the first backend.
    at: SocketAddr,
}

impl Place {
    /// A client whose SYN of sequence number 100 went to the first backend.
    fn new(v6: bool) -> Self {
        let from = SocketAddr::from((client(v6, 1), 40_000));
        let mut lab = Lab::new();
        lab.array("BACKENDS", 20, backend(20, ForwardKind::Snat, heir(v6)));
        let at = source(&lab.run(&segment(from, v6, SYN, 100)));
        Self { lab, v6, from, at }
    }

    /// New flows go to the other backend from now on.
    fn moves(&mut self) {
        self.lab.array("RING", if self.v6 { 6 } else { 2 }, Slot::plain(20, 1).0);
    }

    /// The first backend says something.
    fn says(&mut self, flags: u8) {
        let reply = segment(self.from, self.v6, flags, 7_000);
        let reply = moved(&reply, (server(self.v6), BEHIND).into(), self.at);
        assert_eq!(self.lab.run(&reply).verdict, Verdict::Tx);
    }

    /// Where the client's segment goes.
    fn goes(&mut self, flags: u8, seq: u32) -> IpAddr {
        let out = self.lab.run(&segment(self.from, self.v6, flags, seq));
        assert_eq!(out.verdict, Verdict::Tx);
        check::parse(&out.frame).expect("a frame").dst
    }
}

fn heir(v6: bool) -> IpAddr {
    ip(if v6 { "fd00::20" } else { "10.0.0.20" })
}

fn segment(from: SocketAddr, v6: bool, flags: u8, seq: u32) -> Packet {
    Packet::tcp(from, (vip(v6), SNAT).into()).with(|p| {
        p.tcp_mut().flags = flags;
        p.tcp_mut().seq = seq;
    })
}

#[test]
fn a_connection_that_is_over_does_not_bind_the_next() {
    // What the backend has said, what the client has, and whether a new connection is chosen for anew.
    let rows: [(&str, &[u8], Option<u8>, bool); 8] = [
        ("never answered", &[], None, true),
        ("refused", &[RST | ACK], None, true),
        ("answered", &[SYN | ACK], None, false),
        ("established", &[SYN | ACK], Some(ACK), false),
        ("reset by the backend", &[SYN | ACK, RST], Some(ACK), true),
        ("closed by the backend", &[SYN | ACK, FIN | ACK], Some(ACK), true),
        ("closed by the client", &[SYN | ACK], Some(FIN | ACK), true),
        ("refused, then answered", &[RST | ACK, SYN | ACK], None, false),
    ];
    for v6 in [false, true] {
        for (name, said, client, anew) in rows {
            let mut place = Place::new(v6);
            said.iter().for_each(|flags| place.says(*flags));
            if let Some(flags) = client {
                assert_eq!(place.goes(flags, 101), server(v6), "{name}");
            }
            place.moves();
            let wanted = if anew { heir(v6) } else { server(v6) };
            assert_eq!(place.goes(SYN, 900_000), wanted, "{name}, {v6}");
            // Sent again, and what follows.
            assert_eq!(place.goes(SYN, 900_000), wanted, "{name}, {v6}");
            assert_eq!(place.goes(ACK, 900_001), wanted, "{name}, {v6}");
            assert_eq!(place.lab.stats().made, if anew { 2 } else { 1 }, "{name}, {v6}");
        }
    }
}

/// A SYN sent again may meet the answer to the first: it goes where that one went.
#[test]
fn a_syn_that_is_sent_again_stays() {
    for v6 in [false, true] {
        let mut place = Place::new(v6);
        place.moves();
        assert_eq!(place.goes(SYN, 100), server(v6));
        assert_eq!(place.goes(SYN, 101), heir(v6));

        // The same of the second connection from one port to one backend.
        let mut place = Place::new(v6);
        place.says(RST | ACK);
        assert_eq!(place.goes(SYN, 200), server(v6));
        assert_eq!(place.lab.stats().made, 1, "the session serves it as well");
        place.moves();
        assert_eq!(place.goes(SYN, 200), server(v6));
        assert_eq!(place.goes(SYN, 300), heir(v6));
    }
}
