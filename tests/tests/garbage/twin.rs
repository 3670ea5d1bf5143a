//! NAT on the host: the core's functions in the order in which the program calls them, over tables in memory.

use lb_common::{
    abi::{
        BackendEntry, Exit, FlowEntry, FlowKey6, ForwardKind, FragmentKey, FragmentTrace, NatKey, NatOrigin,
        NatScratch, PROTO_TCP, PROTO_UDP, Pool, PortRule, ServiceEntry, SessionBack, SessionOut, Slot,
        VipEntry,
    },
    core::{
        Back, Decision, FlowCell, Forward, Part, Tables,
        affinity::{Place, Step},
        decide,
        nat::{
            Added, Address, Answer, NatTables, Outcome, Verdict, Way, across, back, errors, pieces,
            session::{self, Wanted},
            translate,
        },
    },
    packet::Buffer,
};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
};

/// Sessions of one direction.
type Sessions<S> = RefCell<HashMap<FlowKey6, (Rc<Cell<u64>>, S)>>;

/// Every second address is a virtual one, every port one of a service, every other address a backend's.
pub struct Twin {
    vip: VipEntry,
    services: [ServiceEntry; 3],
    backends: [BackendEntry; 5],
    origins: [NatOrigin; 3],
    pool: Pool,
    exit: Exit,
    out: Sessions<SessionOut>,
    back: Sessions<SessionBack>,
    traces: RefCell<HashMap<FragmentKey, FragmentTrace>>,
}

struct Word(Rc<Cell<u64>>);

impl FlowCell for Word {
    fn load(&self) -> FlowEntry {
        FlowEntry(self.0.get())
    }
    fn store(&self, entry: FlowEntry) {
        self.0.set(entry.0);
    }
}

/// With so many sessions the tables are full.
const ROOM: usize = 500;
const TCP: u32 = 1;
const UDP: u32 = 2;

fn add<S: Copy>(sessions: &Sessions<S>, key: &FlowKey6, session: &S, word: u64, replace: bool) -> Added {
    let mut sessions = sessions.borrow_mut();
    if !replace && sessions.contains_key(key) {
        return Added::Exists;
    }
    if sessions.len() >= ROOM {
        return Added::Full;
    }
    sessions.insert(*key, (Rc::new(Cell::new(word)), *session));
    Added::Made
}

impl Twin {
    pub fn new() -> Self {
        let rule =
            |service: u32, proto| PortRule { lo: 0, hi: u16::MAX, service: service as u16, proto, pad: 0 };
        let mut rules = [PortRule::NONE; 4];
        (rules[0], rules[1]) = (rule(TCP, PROTO_TCP), rule(UDP, PROTO_UDP));
        let service = |flags| ServiceEntry { ring_size: 101, flags, ..ServiceEntry::default() };
        let backend = |kind: ForwardKind, family, mtu| {
            let mut outer_dst = [0; 16];
            outer_dst[..4].copy_from_slice(&[10, 0, 0, 9]);
            if family == 6 {
                outer_dst = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
            }
            let (l2, kind) = ([2; 12], kind as u8);
            BackendEntry {
                l2,
                ifindex: 2,
                outer_dst,
                mtu,
                kind,
                family,
                port: 8080,
                ..BackendEntry::default()
            }
        };
        let origin = |flags| NatOrigin {
            vip: Address::mapped(0x0a00_a8c0).bytes(),
            service: TCP,
            backend: 1,
            port: [0, 80],
            flags,
            ..NatOrigin::default()
        };
        Self {
            vip: VipEntry { vip: 1, flags: VipEntry::POOL | VipEntry::FRAGMENTS, rules },
            services: [service(0), service(ServiceEntry::SESSIONS), service(ServiceEntry::HAIRPIN)],
            backends: [
                BackendEntry::default(),
                backend(ForwardKind::Snat, 4, 1500),
                backend(ForwardKind::Snat, 6, 1280),
                backend(ForwardKind::Nat, 4, 100),
                backend(ForwardKind::Nat, 6, 1500),
            ],
            origins: [origin(0), origin(NatOrigin::SESSIONS), origin(NatOrigin::SESSIONS | NatOrigin::HEIR)],
            pool: Pool { base: 0, v4: 2, v6: 2, lo: 1024, hi: 2047, pad: 0 },
            exit: Exit { ifindex: 3, l2: [4; 12], mtu: 1500, vlan: 7, ..Exit::default() },
            out: RefCell::default(),
            back: RefCell::default(),
            traces: RefCell::default(),
        }
    }

    /// Forgets every session and fragment, as the daemon does in time.
    pub fn forget(&self) {
        self.out.borrow_mut().clear();
        self.back.borrow_mut().clear();
        self.traces.borrow_mut().clear();
    }

    pub fn sessions(&self) -> usize {
        self.out.borrow().len()
    }

    /// What becomes of a frame, and of its bytes. `None`: NAT is not asked.
    pub fn run(&self, frame: &[u8]) -> Option<(Answer, Vec<u8>)> {
        let mut packet = Buffer::new(frame);
        let answer = match decide(&packet, self) {
            Decision::Session(to, step) => self.session(&mut packet, &to, step),
            Decision::Steer(to) => self.steer(&mut packet, &to),
            Decision::Back(back) if back.v6 => self.back::<true>(&mut packet, back),
            Decision::Back(back) => self.back::<false>(&mut packet, back),
            Decision::Pass
            | Decision::Drop(_)
            | Decision::Forward(_)
            | Decision::Answer(_)
            | Decision::Neighbour(_) => return None,
        };
        Some((answer, packet.frame().to_vec()))
    }

    fn session(&self, packet: &mut Buffer, to: &Forward<'_>, step: Step) -> Answer {
        let (place, ids) = (Place::of(&to.ip), (to.service, to.backend_id));
        let first = to.ip.part == Part::First;
        let mut scratch = NatScratch::default();
        let ask = |packet: &mut Buffer, scratch: &mut NatScratch, step| {
            if to.ip.v6 {
                session::out::<_, _, true>(packet, self, scratch, place, ids, to.hash, step, first)
            } else {
                session::out::<_, _, false>(packet, self, scratch, place, ids, to.hash, step, first)
            }
        };
        let mut answer = ask(packet, &mut scratch, step);
        if answer.verdict() == Verdict::Make {
            let own = answer.own();
            let wanted = Wanted { service: to.service, chosen: to.backend_id, hash: to.hash, step, own };
            answer = session::make(self, &mut scratch, wanted);
            if answer.verdict() == Verdict::Pass {
                answer = ask(packet, &mut scratch, Step::Begin);
            }
        }
        match (answer.verdict(), to.ip.v6) {
            (Verdict::Cross, true) => {
                translate::out::<_, _, true>(packet, self, &mut scratch, place, to.hash)
            }
            (Verdict::Cross, false) => {
                translate::out::<_, _, false>(packet, self, &mut scratch, place, to.hash)
            }
            _ => answer,
        }
    }

    fn steer(&self, packet: &mut Buffer, to: &Forward<'_>) -> Answer {
        let (l3, chosen, mut scratch) = (to.ip.l3, to.backend_id, NatScratch::default());
        let scratch = &mut scratch;
        let answer = match (to.ip.part, to.ip.v6) {
            (Part::Later, false) => pieces::out::<_, _, false>(packet, self, scratch, l3),
            (Part::Later, true) => pieces::out::<_, _, true>(packet, self, scratch, l3),
            (_, false) => errors::steer::<_, _, false>(packet, self, scratch, l3, chosen),
            (_, true) => errors::steer::<_, _, true>(packet, self, scratch, l3, chosen),
        };
        match (answer.verdict(), to.ip.v6) {
            (Verdict::Cross, true) => across::finish::<_, _, true>(packet, self, scratch, l3),
            (Verdict::Cross, false) => across::finish::<_, _, false>(packet, self, scratch, l3),
            _ => answer,
        }
    }

    fn back<const V6: bool>(&self, packet: &mut Buffer, from: Back) -> Answer {
        let (l3, mut scratch) = (from.l3, NatScratch::default());
        let scratch = &mut scratch;
        let mut answer = Answer::SESSION;
        if !from.pool {
            answer = back::reply::<_, _, V6>(packet, self, scratch, l3, false);
        }
        if answer.verdict() == Verdict::Session {
            answer = session::back::<_, _, V6>(packet, self, scratch, l3);
            if answer.verdict() == Verdict::Pass && !from.pool {
                answer = back::reply::<_, _, V6>(packet, self, scratch, l3, true);
            }
        }
        match answer.verdict() {
            Verdict::Piece => pieces::back::<_, _, V6>(packet, self, scratch, l3),
            Verdict::Cross => translate::back::<_, _, V6>(packet, self, scratch, l3),
            Verdict::Icmp => {
                let mut answer = errors::back::<_, _, V6>(packet, self, scratch, l3);
                if answer.verdict() == Verdict::Cross {
                    answer = match V6 {
                        true => across::way::<_, false>(self, scratch),
                        false => across::way::<_, true>(self, scratch),
                    };
                }
                match answer.verdict() {
                    Verdict::Cross => across::finish::<_, _, V6>(packet, self, scratch, l3),
                    _ => answer,
                }
            }
            _ => answer,
        }
    }
}

impl Tables for Twin {
    fn vip4(&self, address: [u8; 4]) -> Option<&VipEntry> {
        address[3].is_multiple_of(2).then_some(&self.vip)
    }
    fn vip6(&self, address: &[u8; 16]) -> Option<&VipEntry> {
        address[15].is_multiple_of(2).then_some(&self.vip)
    }
    fn service(&self, id: u32) -> Option<&ServiceEntry> {
        self.services.get(id as usize)
    }
    fn slot(&self, index: u32) -> Option<Slot> {
        Some(Slot::plain(1 + index % 4, 0))
    }
    fn backend(&self, id: u32) -> Option<&BackendEntry> {
        self.backends.get(id as usize)
    }
    fn now_ns(&self) -> u64 {
        1 << 40
    }
    fn fragment_trace(&self, key: &FragmentKey) -> Option<FragmentTrace> {
        self.traces.borrow().get(key).copied()
    }
    fn add_fragment_trace(&self, key: &FragmentKey, trace: &FragmentTrace) {
        self.traces.borrow_mut().insert(*key, *trace);
    }
    fn switches(&self) -> u32 {
        lb_common::abi::Control::NAT
    }
}

impl NatTables for Twin {
    fn nat(&self, key: &NatKey) -> Option<&NatOrigin> {
        match key.port {
            [0, 0] => (key.address[15] & 7 == 1).then_some(&self.origins[0]),
            [_, low] => self.origins.get(usize::from(low & 3)),
        }
    }
    fn way(&self, _: bool, _: Address, to: Address) -> Way<'_> {
        match to.lo.to_ne_bytes()[7] & 0xf {
            0xf => Way::None,
            0xe => Way::Here,
            _ => Way::Exit(&self.exit),
        }
    }
    fn session_out(&self, key: &FlowKey6) -> Option<(SessionOut, impl FlowCell)> {
        self.out
            .borrow()
            .get(key)
            .map(|(word, session)| (SessionOut { entry: word.get(), ..*session }, Word(Rc::clone(word))))
    }
    fn session_back(&self, key: &FlowKey6) -> Option<(SessionBack, impl FlowCell)> {
        self.back
            .borrow()
            .get(key)
            .map(|(word, session)| (SessionBack { entry: word.get(), ..*session }, Word(Rc::clone(word))))
    }
    fn add_session_out(&self, key: &FlowKey6, session: &SessionOut) -> Added {
        add(&self.out, key, session, session.entry, false)
    }
    fn replace_session_out(&self, key: &FlowKey6, session: &SessionOut) -> bool {
        add(&self.out, key, session, session.entry, true) == Added::Made
    }
    fn add_session_back(&self, key: &FlowKey6, session: &SessionBack) -> Added {
        add(&self.back, key, session, session.entry, false)
    }
    fn remove_session_back(&self, key: &FlowKey6) {
        self.back.borrow_mut().remove(key);
    }
    fn pool(&self, _: u32) -> Option<&Pool> {
        Some(&self.pool)
    }
    fn pool_address(&self, index: u32) -> Option<Address> {
        Some(match index {
            0 | 1 => Address::mapped(u32::from_ne_bytes([10, 0, 0, 250 + index as u8])),
            _ => Address { hi: 0xfd, lo: u64::from(index).to_be() },
        })
    }
    fn count_session(&self, _: Outcome) {}
}
