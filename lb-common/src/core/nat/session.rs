//! Sessions: what source a flow was given towards its backend, and back from there.
//!
//! The entry of the way back is made first: its key says which source address and port are taken towards a
//! backend's port, so that inserting it where there is none is what allocates them, for all CPUs at once. The entry of the
//! way out follows; another CPU may have been quicker there, whose session then holds.

use super::{
    Address, Answer, Ends, NatTables, Way,
    back::{Aligned, Head, any, leave, refusal},
    pieces,
    rewrite::{self, BOTH},
    tables::{Added, Outcome, counted, touch},
};
use crate::{
    abi::{
        BackendEntry, FlowEntry, FlowKey6, ForwardKind, NatKey, NatScratch, ServiceEntry, SessionBack,
        SessionOut,
    },
    core::{
        DropReason, FlowCell as _, Part, Tables,
        affinity::{Place, Step, is_alive},
        service,
    },
    hash,
    packet::{PacketMut, View, ViewMut},
    wire::{proto, tcp, udp},
};

/// Source ports tried before the pool counts as exhausted.
pub const CANDIDATES: u32 = 8;
/// Ports taken where the client's own is not free and there is no pool to say: those no system service has
/// (RFC 6335 section 6).
const FIRST_PORT: u16 = 1024;

/// The tag of a session on its way back: elements of a hash map are recycled under its readers.
#[inline(always)]
pub(super) const fn back_tag(src: Address, dst: Address, ports: u32) -> u64 {
    hash::mix(src.lo ^ dst.lo.rotate_left(32) ^ ports as u64)
}

/// Writes a key, by words: it lies in memory that is aligned to eight bytes.
#[inline(always)]
pub(super) fn set_key(key: &mut FlowKey6, src: Address, dst: Address, ports: u32, proto: u8) {
    src.write(&mut key.src);
    dst.write(&mut key.dst);
    ViewMut(&mut key.ports).set32::<0>(ports);
    key.proto = proto.into();
}

/// What a client's flow to a service is rewritten to.
#[derive(Clone, Copy)]
pub(super) struct Leg {
    pub source: Address,
    /// As in the packet.
    pub port: u16,
    pub backend: u32,
}

/// A packet of a service whose flows have sessions. `chosen` is the backend of a flow that has none; `first`: it is the
/// first fragment of a datagram.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "inlined into two kernel functions, whose arguments these are")]
pub fn out<P: PacketMut, T: NatTables, const V6: bool>(
    packet: &mut P,
    tables: &T,
    scratch: &mut NatScratch,
    place: Place,
    (service, chosen): (u32, u32),
    hash: u64,
    step: Step,
    first: bool,
) -> Answer {
    const INTERNAL: Answer = Answer::drop(DropReason::Internal);
    let Some(mut head) = any::<P, V6>(packet, place.l3()) else { return INTERNAL };
    (head.ip.header_len, head.ip.proto) = (place.header_len(), place.proto() as u8);
    // As long as a UDP header, within which TCP has its sequence number.
    let Some(l4) = packet.view::<{ udp::LEN }>(place.l4()) else { return INTERNAL };
    let ports = l4.raw32::<0>();
    scratch.going.isn = if head.ip.proto == proto::TCP { l4.u32::<{ tcp::SEQ }>() } else { 0 };
    let Some(flags) = tables.service(service).map(|service| service.flags) else { return INTERNAL };
    let own = ServiceEntry::HAIRPIN & flags != 0 && {
        let key = Aligned(NatKey { address: head.src.bytes(), port: [0; 2], proto: 0 });
        tables.nat(&key.0).is_some()
    };
    if flags & ServiceEntry::SESSIONS == 0 && !own {
        return Answer::PLAIN;
    }
    set_key(&mut scratch.out, head.src, head.dst, ports, head.ip.proto);
    // Behind other extension headers: the fragments that follow could not be rewritten.
    if first && !matches!(head.ip.part, Part::First) {
        return Answer::drop(DropReason::Fragment);
    }
    let Some(leg) = find(tables, scratch, hash, step, chosen) else {
        // A call of the program's and not of this function's: both together need more stack than BPF has.
        let begins = matches!(step, Step::Begin) || head.ip.proto == proto::UDP;
        let may = begins || !own && resumes(tables, chosen);
        return if may { Answer::make(own) } else { Answer::drop(DropReason::NatSession) };
    };
    let Some(backend) = tables.backend(leg.backend) else { return INTERNAL };
    if backend.ifindex == 0 {
        return Answer::drop(DropReason::NoNextHop);
    }
    if (backend.family == 6) != V6 {
        // The fragments behind it could not follow: each would need a header of the other version.
        return if first { Answer::drop(DropReason::Fragment) } else { Answer::cross(leg.backend) };
    }
    if head.ip.total_len > backend.mtu {
        return Answer::too_big(backend.mtu);
    }
    let to = Ends {
        src: leg.source,
        dst: Address::of_backend(backend),
        src_port: leg.port,
        dst_port: backend.port.to_be(),
    };
    match rewrite::ends::<P, BOTH>(packet, &head.ip, head.ip.l3, &to)
        .and_then(|()| leave(packet, &head.ip, &backend.l2, backend.vlan))
    {
        Ok(()) => {
            pieces::remember(tables, scratch, &head, (leg.backend, backend.service), (to.src, to.dst));
            Answer::send(backend.ifindex, leg.backend)
        }
        Err(reason) => Answer::drop(reason),
    }
}

/// May the middle of a TCP flow make a session? UDP has no beginning. TCP has, and what a new backend makes of its middle is no
/// answer to the client; nor could the backend know the client by a source that is taken anew. By `nat` it knows the
/// client as itself, and the ring knows the backend: a flow that is older than the need for sessions goes on.
#[inline(always)]
fn resumes<T: Tables>(tables: &T, chosen: u32) -> bool {
    tables.backend(chosen).is_some_and(|backend| backend.kind == ForwardKind::Nat as u8)
}

/// The session of the flow whose key is in `scratch.out` and whose sequence number in `scratch.going`, brought up to date.
#[inline(always)]
fn find<T: NatTables>(
    tables: &T,
    scratch: &mut NatScratch,
    hash: u64,
    step: Step,
    chosen: u32,
) -> Option<Leg> {
    let begins = matches!(step, Step::Begin);
    let NatScratch { out: key, back, going, .. } = scratch;
    if let Some((session, cell)) = tables.session_out(key) {
        let entry = FlowEntry(session.entry);
        if holds(tables, entry, hash, begins, chosen) {
            let other = begins && is_unanswered(key) && session.isn != going.isn;
            if other && is_over(tables, key, back, &session) {
                if entry.backend() != chosen {
                    return None;
                }
                // The next SYN is compared with this one, which its backend may be about to answer.
                *going =
                    SessionOut { entry: entry.touched(tables.now_ns(), false).0, isn: going.isn, ..session };
                tables.replace_session_out(key, going);
            } else if !begins || entry.is_closing() {
                touch(&cell, entry, tables.now_ns(), closing(step, entry));
            }
            return Some(Leg {
                source: Address::read(&session.source),
                port: u16::from_ne_bytes(session.port),
                backend: entry.backend(),
            });
        }
    }
    None
}

/// Has the session of TCP no connection any more, or none yet? Either end has closed it or reset it, or the backend never
/// answered its SYN. The client may then use the port for another, whose backend is chosen anew.
#[inline(always)]
fn is_over<T: NatTables>(tables: &T, key: &FlowKey6, back: &mut FlowKey6, session: &SessionOut) -> bool {
    let entry = FlowEntry(session.entry);
    let Some(backend) = tables.backend(entry.backend()) else { return true };
    let virt_port = View(&key.ports).raw16::<2>();
    let [b0, b1] = if backend.port == 0 { virt_port } else { backend.port.to_be() }.to_ne_bytes();
    let [p0, p1] = session.port;
    let both = u32::from_ne_bytes([b0, b1, p0, p1]);
    let (target, source) = (Address::of_backend(backend), Address::read(&session.source));
    set_key(back, target, source, both, key.proto as u8);
    let Some((session, _)) = tables.session_back(back) else { return true };
    let answered = FlowEntry(session.entry);
    entry.is_closing()
        || answered.is_half_open()
        || answered.is_closing()
        || answered.tag() != FlowEntry::tag_of(back_tag(target, source, both))
}

/// Is it this flow's session, and does it serve the packet? A client that uses a closed connection's port again
/// begins anew, unless it comes to the same backend anyway.
#[inline(always)]
fn holds<T: Tables>(tables: &T, entry: FlowEntry, hash: u64, begins: bool, chosen: u32) -> bool {
    let again = begins && entry.is_closing() && entry.backend() != chosen;
    entry.tag() == FlowEntry::tag_of(hash) && !again && is_alive(tables, entry)
}

#[inline(always)]
fn closing(step: Step, entry: FlowEntry) -> bool {
    match step {
        Step::End => true,
        Step::Acknowledge => entry.is_closing(),
        Step::Begin | Step::Within => false,
    }
}

/// A session to be made.
#[derive(Clone, Copy)]
pub struct Wanted {
    pub service: u32,
    /// The flow's backend.
    pub chosen: u32,
    pub hash: u64,
    pub step: Step,
    /// The client is a backend of the service: it must not see its own address as the source.
    pub own: bool,
}

/// Makes a session of the flow whose key [`out`] has left in `scratch.out`, and whose sequence number in `scratch.going`.
#[inline(always)]
pub fn make<T: NatTables>(tables: &T, scratch: &mut NatScratch, wanted: Wanted) -> Answer {
    let NatScratch { out: key, back, going, coming, .. } = scratch;
    match allocate(tables, key, back, coming, &wanted) {
        Err(reason) => Answer::drop(reason),
        Ok(Leg { source, port, backend }) => {
            let begins = is_unanswered(key);
            let incarnation = tables.backend(backend).map_or(0, |backend| backend.incarnation);
            going.entry = FlowEntry::new(backend, incarnation, wanted.hash, tables.now_ns(), begins).0;
            source.write(&mut going.source);
            ViewMut(&mut going.port).set16::<0>(port);
            going.flags = 0;
            match record(tables, key, back, going, &wanted) {
                Ok(()) => Answer::PASS,
                Err(reason) => Answer::drop(reason),
            }
        }
    }
}

/// Is a session of TCP's that nobody has answered yet; of UDP nobody can tell what is an answer.
#[inline(always)]
fn is_unanswered(key: &FlowKey6) -> bool {
    key.proto == u32::from(proto::TCP)
}

/// Takes a source address and port, by making the session's way back.
#[inline(always)]
fn allocate<T: NatTables>(
    tables: &T,
    key: &FlowKey6,
    back: &mut FlowKey6,
    coming: &mut SessionBack,
    wanted: &Wanted,
) -> Result<Leg, DropReason> {
    let Some(backend) = tables.backend(wanted.chosen) else { return Err(DropReason::Internal) };
    let incarnation = backend.incarnation;
    let begins = is_unanswered(key);
    let now = tables.now_ns();
    let (client, virt) = (Address::read(&key.src), Address::read(&key.dst));
    let ports = View(&key.ports);
    let (client_port, virt_port) = (ports.raw16::<0>(), ports.raw16::<2>());
    let target = Address::of_backend(backend);
    let port = if backend.port == 0 { virt_port } else { backend.port.to_be() };
    let [b0, b1] = port.to_ne_bytes();
    let pooled = backend.kind == ForwardKind::Snat as u8;
    let range = if pooled { Range::of(tables, wanted.service, backend)? } else { Range::ANY };
    // Ports of services are not for sources.
    let vip = match wanted.own && !pooled {
        false => None,
        true if virt.is_v4() => tables.vip4(virt.v4().to_ne_bytes()),
        true => tables.vip6(&key.dst),
    };
    client.write(&mut coming.client);
    virt.write(&mut coming.vip);
    ViewMut(&mut coming.client_port).set16::<0>(client_port);
    ViewMut(&mut coming.vip_port).set16::<0>(virt_port);
    coming.service = wanted.service;
    // The backend knows a flow that goes on by its own name and no other.
    let goes_on = !pooled && is_unanswered(key) && !matches!(wanted.step, Step::Begin);
    for candidate in 0..CANDIDATES {
        if candidate != 0 && goes_on {
            return Err(DropReason::NatSession);
        }
        let drawn = hash::mix(wanted.hash.wrapping_add(u64::from(candidate)));
        let mut port = range.lo.wrapping_add(hash::slot(drawn, range.ports) as u16).to_be();
        let source = if pooled {
            let index = range.base.wrapping_add(hash::slot(drawn << 32, range.addresses));
            tables.pool_address(index).ok_or(DropReason::Internal)?
        } else {
            // Its own port first: a session that changes nothing is easiest to follow.
            if candidate == 0 {
                port = client_port;
            }
            if wanted.own { virt } else { client }
        };
        if let Some(entry) = vip
            && service::find(tables, entry, key.proto as u8, u16::from_be(port)).is_some()
        {
            continue;
        }
        let [p0, p1] = port.to_ne_bytes();
        let both = u32::from_ne_bytes([b0, b1, p0, p1]);
        set_key(back, target, source, both, key.proto as u8);
        let tag = back_tag(target, source, both);
        coming.entry = FlowEntry::new(wanted.chosen, incarnation, tag, now, begins).0;
        match tables.add_session_back(back, coming) {
            Added::Made => return Ok(Leg { source, port, backend: wanted.chosen }),
            Added::Exists => {}
            Added::Full => return Err(counted(tables, Outcome::Full)),
        }
    }
    Err(counted(tables, Outcome::Exhausted))
}

/// Makes the session's way out, unless another CPU was quicker.
#[inline(always)]
fn record<T: NatTables>(
    tables: &T,
    key: &FlowKey6,
    back: &FlowKey6,
    going: &SessionOut,
    wanted: &Wanted,
) -> Result<(), DropReason> {
    let mut added = tables.add_session_out(key, going);
    if added == Added::Exists {
        let begins = matches!(wanted.step, Step::Begin);
        let own = |session: &SessionOut| {
            let same = !begins || session.isn == going.isn;
            same && holds(tables, FlowEntry(session.entry), wanted.hash, begins, wanted.chosen)
        };
        if tables.session_out(key).is_some_and(|(session, _)| own(&session)) {
            tables.remove_session_back(back);
            return Ok(());
        }
        // What was there is over: of a dead backend, closed, or never answered.
        added = if tables.replace_session_out(key, going) { Added::Made } else { Added::Full };
    }
    if added == Added::Full {
        tables.remove_session_back(back);
        return Err(counted(tables, Outcome::Full));
    }
    tables.count_session(Outcome::Made);
    Ok(())
}

/// Where source ports and addresses are taken from.
struct Range {
    base: u32,
    addresses: u32,
    lo: u16,
    ports: u32,
}

impl Range {
    const ANY: Self = Self { base: 0, addresses: 0, lo: FIRST_PORT, ports: (1 << 16) - FIRST_PORT as u32 };

    #[inline(always)]
    fn of<T: NatTables>(tables: &T, service: u32, backend: &BackendEntry) -> Result<Self, DropReason> {
        let Some(pool) = tables.pool(service) else { return Err(DropReason::Internal) };
        let (base, addresses) = if backend.family == 6 {
            (pool.base.wrapping_add(pool.v4.into()), pool.v6)
        } else {
            (pool.base, pool.v4)
        };
        if addresses == 0 || pool.lo > pool.hi {
            return Err(counted(tables, Outcome::Exhausted));
        }
        let ports = u32::from(pool.hi) - u32::from(pool.lo) + 1;
        Ok(Self { base, addresses: addresses.into(), lo: pool.lo, ports })
    }
}

/// A packet that may belong to a session's way back: to a source address of sessions, or from a port of a
/// backend that several virtual ones lead to.
#[inline(always)]
pub fn back<P: PacketMut, T: NatTables, const V6: bool>(
    packet: &mut P,
    tables: &T,
    scratch: &mut NatScratch,
    l3: usize,
) -> Answer {
    let Some(head) = any::<P, V6>(packet, l3) else { return Answer::PASS };
    let ip = head.ip;
    if let Part::Later = ip.part {
        return Answer::PIECE;
    }
    let at = l3 + ip.header_len;
    let flags = match ip.proto {
        proto::TCP => match packet.view::<{ tcp::LEN }>(at) {
            Some(header) => header.u8::<{ tcp::FLAGS }>(),
            None => return Answer::PASS,
        },
        proto::UDP => 0,
        proto::ICMP if !V6 => return Answer::ICMP,
        proto::ICMPV6 if V6 => return Answer::ICMP,
        _ => return Answer::PASS,
    };
    let Some(ports) = packet.view::<{ udp::LEN }>(at) else { return Answer::PASS };
    let ports = ports.raw32::<0>();
    set_key(&mut scratch.back, head.src, head.dst, ports, ip.proto);
    let Some((session, cell)) = tables.session_back(&scratch.back) else { return Answer::PASS };
    let entry = FlowEntry(session.entry);
    if entry.tag() != FlowEntry::tag_of(back_tag(head.src, head.dst, ports)) {
        return Answer::PASS;
    }
    let ended = flags & (tcp::FIN | tcp::RST) != 0;
    // An acknowledgement, with data or without, does not bring back what has ended.
    let closing = ended || entry.is_closing() && flags & tcp::SYN == 0;
    let new = entry.confirmed(tables.now_ns(), closing);
    if new.0 != entry.0 {
        cell.store(new);
    }
    drop(cell);
    let (client, vip) = (Address::read(&session.client), Address::read(&session.vip));
    if client.is_v4() == V6 {
        // As on the way out.
        let whole = matches!(ip.part, Part::Whole);
        return if whole { Answer::cross(0) } else { Answer::drop(DropReason::Fragment) };
    }
    match tables.way(V6, vip, client) {
        // The client is this host: its kernel would take a packet from its own VIP for a forgery.
        Way::Here | Way::None => Answer::drop(DropReason::NoNextHop),
        Way::Exit(exit) => {
            if let Some(refused) = refusal(packet, &head, exit) {
                return refused;
            }
            let to = Ends {
                src: vip,
                dst: client,
                src_port: u16::from_ne_bytes(session.vip_port),
                dst_port: u16::from_ne_bytes(session.client_port),
            };
            match rewrite::ends::<P, BOTH>(packet, &ip, l3, &to)
                .and_then(|()| leave(packet, &ip, &exit.l2, exit.vlan))
            {
                Ok(()) => {
                    pieces::remember(tables, scratch, &head, (0, 0), (vip, client));
                    Answer::send(exit.ifindex, entry.backend())
                }
                Err(reason) => Answer::drop(reason),
            }
        }
    }
}

/// The session of a packet that [`out`] has just looked at.
#[inline(always)]
pub(super) fn live<T: NatTables>(
    tables: &T,
    scratch: &mut NatScratch,
    head: &Head,
    ports: u32,
    hash: u64,
) -> Option<Leg> {
    set_key(&mut scratch.out, head.src, head.dst, ports, head.ip.proto);
    let (session, _) = tables.session_out(&scratch.out)?;
    let entry = FlowEntry(session.entry);
    (entry.tag() == FlowEntry::tag_of(hash) && is_alive(tables, entry)).then(|| Leg {
        source: Address::read(&session.source),
        port: u16::from_ne_bytes(session.port),
        backend: entry.backend(),
    })
}

/// What a packet becomes that [`back`] has just looked at, and the backend it comes from.
#[inline(always)]
pub(super) fn returned<T: NatTables>(
    tables: &T,
    scratch: &mut NatScratch,
    head: &Head,
    ports: u32,
) -> Option<(Ends, u32)> {
    set_key(&mut scratch.back, head.src, head.dst, ports, head.ip.proto);
    let (session, _) = tables.session_back(&scratch.back)?;
    let tag = FlowEntry::tag_of(back_tag(head.src, head.dst, ports));
    let entry = FlowEntry(session.entry);
    (entry.tag() == tag).then(|| {
        let ends = Ends {
            src: Address::read(&session.vip),
            dst: Address::read(&session.client),
            src_port: u16::from_ne_bytes(session.vip_port),
            dst_port: u16::from_ne_bytes(session.client_port),
        };
        (ends, entry.backend())
    })
}
