//! Entries of all flow tables in one form.

use lb_common::abi::{FlowEntry, FlowKey4, FlowKey6, HalfOpen, SessionBack, SessionOut};

/// A table of flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Table {
    Flows4 = 1,
    Flows6 = 2,
    HalfOpen4 = 3,
    HalfOpen6 = 4,
    SessionsOut = 5,
    SessionsBack = 6,
}

impl Table {
    /// In the order in which they are read: a handshake that is confirmed meanwhile is met among the flows.
    pub const ALL: [Self; 6] =
        [Self::HalfOpen4, Self::HalfOpen6, Self::Flows4, Self::Flows6, Self::SessionsOut, Self::SessionsBack];

    /// By its number on the wire.
    #[must_use]
    pub fn from_u8(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|table| *table as u8 == number)
    }

    /// Its keys are those of IPv4.
    #[must_use]
    pub const fn is_v4(self) -> bool {
        matches!(self, Self::Flows4 | Self::HalfOpen4)
    }
}

/// Names an entry. Of IPv4 the addresses' first four bytes count, the others are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub table: Table,
    pub proto: u8,
    pub ports: [u8; 4],
    pub src: [u8; 16],
    pub dst: [u8; 16],
}

/// An entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    pub entry: FlowEntry,
    /// Of a handshake, and of a session on its way out: its initial sequence number.
    pub isn: u32,
    /// Of a NAT session.
    pub session: Option<Box<Session>>,
}

/// What a NAT session's half says besides its entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Session {
    /// The client's half: the source towards the backend. The backend's half: the client and the virtual address.
    pub addresses: [[u8; 16]; 2],
    /// The ports that belong to them.
    pub ports: [[u8; 2]; 2],
    pub flags: u16,
}

impl Key {
    /// Of a table of IPv4.
    #[must_use]
    pub fn v4(table: Table, key: &FlowKey4) -> Self {
        let wide = |address: [u8; 4]| {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&address);
            bytes
        };
        Self { table, proto: key.proto as u8, ports: key.ports, src: wide(key.src), dst: wide(key.dst) }
    }

    /// Of the other tables.
    #[must_use]
    pub fn v6(table: Table, key: &FlowKey6) -> Self {
        Self { table, proto: key.proto as u8, ports: key.ports, src: key.src, dst: key.dst }
    }

    /// As the tables of IPv4 have it.
    #[must_use]
    pub fn to_v4(self) -> FlowKey4 {
        let short = |bytes: [u8; 16]| [bytes[0], bytes[1], bytes[2], bytes[3]];
        FlowKey4 { src: short(self.src), dst: short(self.dst), ports: self.ports, proto: self.proto.into() }
    }

    /// As the other tables have it.
    #[must_use]
    pub fn to_v6(self) -> FlowKey6 {
        FlowKey6 { src: self.src, dst: self.dst, ports: self.ports, proto: self.proto.into() }
    }
}

impl Value {
    /// Of a confirmed flow.
    #[must_use]
    pub const fn flow(entry: FlowEntry) -> Self {
        Self { entry, isn: 0, session: None }
    }

    #[must_use]
    pub const fn half_open(half: HalfOpen) -> Self {
        Self { entry: FlowEntry(half.entry), isn: half.isn, session: None }
    }

    #[must_use]
    pub fn out(out: &SessionOut) -> Self {
        let session =
            Session { addresses: [out.source, [0; 16]], ports: [out.port, [0; 2]], flags: out.flags };
        Self { entry: FlowEntry(out.entry), isn: out.isn, session: Some(Box::new(session)) }
    }

    #[must_use]
    pub fn back(back: &SessionBack) -> Self {
        let session = Session {
            addresses: [back.client, back.vip],
            ports: [back.client_port, back.vip_port],
            flags: 0,
        };
        Self { entry: FlowEntry(back.entry), isn: 0, session: Some(Box::new(session)) }
    }

    #[must_use]
    pub const fn to_half_open(&self) -> HalfOpen {
        HalfOpen { entry: self.entry.0, isn: self.isn, pad: 0 }
    }

    #[must_use]
    pub fn to_out(&self) -> SessionOut {
        let session = self.session.as_deref().copied().unwrap_or_default();
        SessionOut {
            entry: self.entry.0,
            source: session.addresses[0],
            port: session.ports[0],
            flags: session.flags,
            isn: self.isn,
        }
    }

    /// `service` is the id of the part.
    #[must_use]
    pub fn to_back(&self, service: u32) -> SessionBack {
        let session = self.session.as_deref().copied().unwrap_or_default();
        SessionBack {
            entry: self.entry.0,
            client: session.addresses[0],
            vip: session.addresses[1],
            client_port: session.ports[0],
            vip_port: session.ports[1],
            service,
        }
    }
}

const SEEN: u64 = 0xffff << 32;

/// The same entry with another time.
pub(super) const fn with_seen(entry: FlowEntry, seen: u16) -> FlowEntry {
    FlowEntry(entry.0 & !SEEN | (seen as u64) << 32)
}

/// The same entry of another backend.
pub(super) const fn with_backend(entry: FlowEntry, backend: u32, incarnation: u8) -> FlowEntry {
    FlowEntry(entry.0 & !0xffff_ffff | (backend & 0x00ff_ffff) as u64 | (incarnation as u64) << 24)
}
