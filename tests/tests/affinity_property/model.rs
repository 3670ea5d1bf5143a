//! The promise, word for word, and a check of every packet against it:
//!
//! *once a packet other than a SYN has been forwarded, and while the flow sends within every T, its backend is never
//! declared down and its packets are handled in order, none reaches another backend; lack of memory delays changes
//! instead.*
//!
//! Two things are checked beyond it. A packet of a flow whose backend can be reached is not lost. And the first packet
//! after the SYNs reaches the backend that answered them, unless that died, or the SYN was sent again across a change, or
//! the client took half a minute.
//!
//! A flow that said FIN is closing until it sends data again: then T is the shorter life that ARCHITECTURE.md
//! allows to what is over.

use crate::world::{Effect, SERVICES, What, World, protocol};
use lb_tests::{
    daemon::{CONFIG_ID, IDLE, UNIT, send},
    kernel::{Balancer, vip},
    packets::{ACK, FIN, Packet, RST, SYN, checksum},
};
use lb_userspace::{
    model::Protocol,
    plan::{CLOSING_LIFE, HALF_OPEN_LIFE},
};
use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

/// A kind of packet. To UDP they are all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Syn,
    Ack,
    Data,
    Fin,
    Rst,
}

/// Which flow: addresses and ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Who {
    pub service: u8,
    pub v6: bool,
    pub client: u32,
}

impl Who {
    /// Flow number `n` of a universe that has some of everything.
    pub const fn number(n: usize) -> Self {
        Self { service: (n % SERVICES as usize) as u8, v6: n / SERVICES as usize % 3 == 2, client: n as u32 }
    }

    pub fn protocol(self) -> Protocol {
        protocol(self.service)
    }

    /// Does its server put an id of its own into the connection IDs?
    fn is_named(self) -> bool {
        self.protocol() == Protocol::Quic && self.client / u32::from(SERVICES) % 2 == 1
    }

    fn source(self) -> IpAddr {
        if self.v6 {
            Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, (self.client >> 16) as u16, self.client as u16).into()
        } else {
            // 172.16.0.0/12: apart from the sources of a flood.
            Ipv4Addr::from(0xac10_0000 + self.client).into()
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.v6 { 6 } else { 4 };
        write!(f, "flow {} (service {}, {:?}{family})", self.client, self.service, self.protocol())
    }
}

/// Frames by description, from templates: building each anew would take most of the time. Transport checksums are left
/// wrong: the balancer does not look at them.
pub struct Frames(Vec<Vec<u8>>);

/// Templates of a family: TCP and UDP without and with data, QUIC with a short and with a long header.
const TEMPLATES: usize = 6;
/// A connection ID: config id and length, server id, nonce.
const CID_LEN: usize = 11;
/// A config id that names nobody.
const UNROUTABLE: u8 = 7;

impl Frames {
    pub fn new() -> Self {
        let mut templates = Vec::new();
        for v6 in [false, true] {
            // RFC 8999: a long header has version and length in front of the destination connection ID.
            let short = [&[0x42][..], &[0; CID_LEN], &[0xee; 30]].concat();
            let long = [&[0xc0, 0, 0, 0, 1, CID_LEN as u8][..], &[0; CID_LEN], &[0xee; 30]].concat();
            let none = Vec::new();
            let kinds =
                [(false, &none), (false, &b"data".to_vec()), (true, &none), (true, &b"data".to_vec())];
            for (udp, payload) in kinds.into_iter().chain([(true, &short), (true, &long)]) {
                let who = Who { service: 0, v6, client: 0 };
                let (src, dst) = ((who.source(), 40_000).into(), (vip(1, v6), 80).into());
                let packet = if udp { Packet::udp(src, dst) } else { Packet::tcp(src, dst) };
                templates.push(packet.with(|p| p.payload().clone_from(payload)).build());
            }
        }
        Self(templates)
    }

    /// A packet with these flags and this sequence number, or what is the same to a protocol that has none.
    pub fn of(&self, who: Who, flags: u8, seq: u32, data: bool) -> Vec<u8> {
        match who.protocol() {
            Protocol::Tcp => {
                let (mut frame, l4) = self.template(who, usize::from(data));
                frame[l4 + 4..l4 + 8].copy_from_slice(&seq.to_be_bytes());
                frame[l4 + 13] = flags;
                frame
            }
            Protocol::Udp => self.template(who, 2 + usize::from(data)).0,
            // A client's first connection ID is its own choice; the same in all packets of its first flight.
            Protocol::Quic => {
                let first = flags == SYN;
                self.quic(who, first, UNROUTABLE, if first { seq.to_be_bytes() } else { [0; 4] })
            }
        }
    }

    /// A packet after the first, to the server that gave out the connection ID.
    pub fn named(&self, who: Who, backend: u8) -> Vec<u8> {
        self.quic(who, false, CONFIG_ID, [0, backend, 0, 0])
    }

    fn quic(&self, who: Who, first: bool, config: u8, id: [u8; 4]) -> Vec<u8> {
        let (mut frame, l4) = self.template(who, 4 + usize::from(first));
        let cid = l4 + 8 + if first { 6 } else { 1 };
        frame[cid] = config << 5 | (CID_LEN as u8 - 1);
        frame[cid + 1..cid + 5].copy_from_slice(&id);
        frame
    }

    /// The template with the addresses and ports of a flow, and where its transport header is.
    fn template(&self, who: Who, number: usize) -> (Vec<u8>, usize) {
        let mut frame = self.0[usize::from(who.v6) * TEMPLATES + number].clone();
        let l4 = match who.source() {
            IpAddr::V4(source) => {
                frame[26..30].copy_from_slice(&source.octets());
                frame[24..26].fill(0);
                let sum = checksum(&[&frame[14..34]]);
                frame[24..26].copy_from_slice(&sum.to_be_bytes());
                34
            }
            IpAddr::V6(source) => {
                frame[22..38].copy_from_slice(&source.octets());
                54
            }
        };
        let port = 80 + u16::from(who.service);
        frame[l4 + 2..l4 + 4].copy_from_slice(&port.to_be_bytes());
        (frame, l4)
    }
}

/// What was promised to a flow.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Promise {
    Nothing,
    /// Its SYN went there, at that time.
    Handshake(u8, Instant),
    /// A packet other than a SYN went there; the last one at that time.
    Holds(u8, Instant),
}

#[derive(Debug, Clone)]
struct Flow {
    promise: Promise,
    closing: bool,
    /// The SYN was the last word: another one is the same again.
    opening: bool,
    /// How many changes of backends there were when the SYN was sent.
    changes: u64,
    isn: u32,
    /// Sequence number of the next byte.
    seq: u32,
    /// Whose id is in its connection IDs.
    named: Option<u8>,
}

impl Flow {
    /// What a packet other than a SYN says about its end.
    fn hear(&mut self, who: Who, kind: Kind) {
        match kind {
            Kind::Data => self.closing = false,
            Kind::Fin | Kind::Rst => self.closing = who.protocol() == Protocol::Tcp,
            Kind::Syn | Kind::Ack => {}
        }
    }
}

/// How often the promise was put to the test.
#[derive(Debug, Default, Clone, Copy)]
pub struct Score {
    pub packets: u64,
    pub kept: u64,
    pub handshakes: u64,
}

/// The flows and what they were promised.
pub struct Model {
    pub frames: Frames,
    flows: Vec<Flow>,
    changes: u64,
    pub score: Score,
}

/// A packet on its way: what it is, and what it should do.
struct Sent {
    frame: Vec<u8>,
    at: usize,
    kind: Kind,
    expected: Option<(u8, &'static str)>,
    now: Instant,
}

impl Model {
    pub fn new(flows: usize) -> Self {
        let mut model =
            Self { frames: Frames::new(), flows: Vec::new(), changes: 0, score: Score::default() };
        model.begin(flows);
        model
    }

    /// Forgets everything.
    pub fn begin(&mut self, flows: usize) {
        self.flows = (0..flows)
            .map(|n| {
                let isn = (n as u32 + 1).wrapping_mul(0x9e37_79b1);
                let seq = isn.wrapping_add(1);
                let promise = Promise::Nothing;
                Flow { promise, closing: false, opening: false, changes: 0, isn, seq, named: None }
            })
            .collect();
        self.changes = 0;
    }

    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// How long a flow may be silent and keep what it was promised.
    fn life(flow: &Flow) -> Duration {
        let life = match flow.promise {
            Promise::Handshake(..) => HALF_OPEN_LIFE,
            _ if flow.closing => CLOSING_LIFE,
            _ => IDLE,
        };
        // The clock of entries may be a unit ahead.
        life - UNIT
    }

    /// Flows that lose what they were promised if they are silent until `then`.
    pub fn would_be_late(&self, at: usize, then: Instant) -> bool {
        let flow = &self.flows[at];
        match flow.promise {
            Promise::Nothing => false,
            Promise::Handshake(_, since) | Promise::Holds(_, since) => then - since >= Self::life(flow),
        }
    }

    /// Is anything promised to it?
    pub fn is_promised(&self, at: usize) -> bool {
        self.flows[at].promise != Promise::Nothing
    }

    /// Is it in the middle of a handshake?
    pub fn is_opening(&self, at: usize) -> bool {
        self.flows[at].opening
    }

    /// Has it said FIN?
    pub fn is_closing(&self, at: usize) -> bool {
        self.flows[at].closing
    }

    /// Sends a packet and checks where it goes; `Err` tells a broken promise.
    pub fn packet(&mut self, world: &mut World, at: usize, kind: Kind) -> Result<String, String> {
        let sent = self.prepare(world.now(), at, kind);
        let found = send(&mut world.kernel, &sent.frame);
        self.judge(world, &sent, found)
    }

    /// The same in the midst of a change of the maps, when nothing is known of who is reachable.
    pub fn packet_between(
        &mut self,
        kernel: &mut Balancer,
        now: Instant,
        at: usize,
        kind: Kind,
        dying: Option<u8>,
    ) -> Result<String, String> {
        let mut sent = self.prepare(now, at, kind);
        sent.expected = sent.expected.filter(|(n, _)| Some(*n) != dying);
        let found = send(kernel, &sent.frame);
        if found.is_none() || found == dying {
            // On its way to somebody who is about to go.
            (self.flows[at].promise, self.flows[at].opening) = (Promise::Nothing, kind == Kind::Syn);
            return Ok(format!("{} sends {kind:?} in the midst: {found:?}", Who::number(at)));
        }
        let line = self.settle_up(&sent, found)?;
        // Another SYN would be one across a change.
        self.flows[at].changes = u64::MAX;
        Ok(format!("{line} (in the midst)"))
    }

    fn prepare(&mut self, now: Instant, at: usize, kind: Kind) -> Sent {
        let who = Who::number(at);
        let changes = self.changes;
        let life = Self::life(&self.flows[at]);
        let flow = &mut self.flows[at];
        let syn = kind == Kind::Syn && who.protocol() != Protocol::Udp;
        if syn && !flow.opening {
            // A new connection of the same addresses and ports, as RFC 6191 and RFC 9293 section 3.6.1 want it: later
            // sequence numbers.
            flow.isn = flow.seq.wrapping_add(0x0010_0000);
            (flow.promise, flow.named) = (Promise::Nothing, None);
            flow.changes = changes;
        }
        let expected = match flow.promise {
            Promise::Holds(n, since) if !syn && now - since < life => Some((n, "promised")),
            Promise::Handshake(n, since) if !syn && now - since < life => Some((n, "the handshake's")),
            _ => None,
        };
        let (flags, length) = match kind {
            Kind::Syn => (SYN, 0),
            Kind::Ack => (ACK, 0),
            Kind::Data => (ACK, 4),
            Kind::Fin => (FIN | ACK, 0),
            Kind::Rst => (RST, 0),
        };
        let seq = if syn { flow.isn } else { flow.seq };
        flow.seq = match kind {
            Kind::Syn if syn => flow.isn.wrapping_add(1),
            Kind::Data => flow.seq.wrapping_add(length),
            _ => flow.seq,
        };
        let frame = match flow.named {
            Some(backend) if !syn => self.frames.named(who, backend),
            _ => self.frames.of(who, flags, seq, kind == Kind::Data),
        };
        Sent { frame, at, kind, expected, now }
    }

    fn judge(&mut self, world: &World, sent: &Sent, found: Option<u8>) -> Result<String, String> {
        if let (Some((n, why)), None) = (sent.expected, found)
            && world.is_reachable(n)
        {
            return Err(format!(
                "{} sends {:?}: lost, though {why} backend {n}",
                Who::number(sent.at),
                sent.kind
            ));
        }
        if let Some((_, _)) = sent.expected
            && found.is_none()
        {
            // Its backend cannot be reached; it is still promised to it.
            let flow = &mut self.flows[sent.at];
            if let Promise::Holds(_, since) = &mut flow.promise {
                *since = sent.now;
            }
            // The balancer has seen it all the same.
            flow.hear(Who::number(sent.at), sent.kind);
            return Ok(format!("{} sends {:?}: no way", Who::number(sent.at), sent.kind));
        }
        self.settle_up(sent, found)
    }

    fn settle_up(&mut self, sent: &Sent, found: Option<u8>) -> Result<String, String> {
        let who = Who::number(sent.at);
        let flow = &mut self.flows[sent.at];
        let line = format!("{who} sends {:?}: {found:?}", sent.kind);
        self.score.packets += 1;
        if let Some((n, why)) = sent.expected {
            if found != Some(n) {
                return Err(format!("{line}, {why} backend is {n}"));
            }
            match flow.promise {
                Promise::Handshake(..) => self.score.handshakes += 1,
                _ => self.score.kept += 1,
            }
        }
        if who.protocol() == Protocol::Udp {
            flow.promise = found.map_or(Promise::Nothing, |n| Promise::Holds(n, sent.now));
            return Ok(line);
        }
        if sent.kind == Kind::Syn {
            let again = flow.opening;
            flow.opening = true;
            flow.closing = false;
            flow.named = found.filter(|_| who.is_named());
            flow.promise = match (found, flow.promise) {
                (Some(n), Promise::Handshake(before, _)) if n == before && flow.changes == self.changes => {
                    Promise::Handshake(n, sent.now)
                }
                (Some(n), Promise::Nothing) if !again => Promise::Handshake(n, sent.now),
                _ => Promise::Nothing,
            };
            return Ok(line);
        }
        flow.opening = false;
        flow.hear(who, sent.kind);
        let resets = sent.kind == Kind::Rst && who.protocol() == Protocol::Tcp;
        flow.promise = match found {
            Some(n) if !resets => Promise::Holds(n, sent.now),
            _ => Promise::Nothing,
        };
        Ok(line)
    }

    /// A stranger's SYN with the addresses and ports of a flow, and a sequence number that is none of its own.
    pub fn forge(&mut self, kernel: &mut Balancer, at: usize) -> String {
        let who = Who::number(at);
        let frame = self.frames.of(who, SYN, self.flows[at].seq.wrapping_add(0x4000_0000), false);
        let found = send(kernel, &frame);
        // A handshake has one place: who guesses addresses and ports while it lasts can take it. Nothing in a packet of QUIC
        // tells a connection from another one of the same addresses and ports, but an ID of the server's.
        let flow = &mut self.flows[at];
        let is_bare = who.protocol() == Protocol::Quic && flow.named.is_none();
        if is_bare || matches!(flow.promise, Promise::Handshake(..)) {
            flow.promise = Promise::Nothing;
        }
        format!("a stranger sends a SYN of {who}: {found:?}")
    }

    /// Changes a backend; what its flows were promised is void if it died.
    pub fn change(
        &mut self,
        world: &mut World,
        n: u8,
        what: What,
        between: &mut dyn FnMut(&mut Self, &mut Balancer, bool),
    ) -> &'static str {
        self.changes += 1;
        let dies = matches!(what, What::Remove | What::Disable | What::Down) && world.lives(n);
        let (name, effect) = world.change_backend(n, what, &mut |kernel| between(self, kernel, dies));
        assert_eq!(effect == Effect::Died, dies);
        if dies {
            for flow in &mut self.flows {
                // Its connections are lost, and with them the IDs it gave out.
                flow.named = flow.named.filter(|of| *of != n);
                if let Promise::Handshake(of, _) | Promise::Holds(of, _) = flow.promise
                    && of == n
                {
                    flow.promise = Promise::Nothing;
                }
            }
        }
        name
    }
}
