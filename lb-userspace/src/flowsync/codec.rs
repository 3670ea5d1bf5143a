//! Frames: how flow state travels. All numbers are big endian.
//!
//! A frame is a head of eight bytes (version, kind, two bytes of zero, the number of the frame in its stream) and a body. A
//! stream begins with [`Frame::Begin`], whose number is 0. Kinds that are not known are skipped, so that the versions of two
//! nodes may differ by one: a newer node says more, never something else.

use super::{Claim, Key, Session, Table, Value};
use lb_common::abi::FlowEntry;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Of these frames.
pub const VERSION: u8 = 1;
/// No frame is longer, in bytes.
pub const MAX_FRAME: usize = 48 * 1024;
const HEAD: usize = 8;

/// What one node tells the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// All that was said before is void; everything follows, and [`Frame::End`] after it.
    Begin,
    Service(ServiceDef),
    Backends(Vec<BackendDef>),
    /// Slot words of a part from one slot on.
    Words {
        part: u32,
        first: u32,
        words: Vec<u64>,
    },
    /// New or changed entries of one table. Their clock is the age of the last packet.
    Put(Table, Vec<(Key, Value)>),
    /// Entries that are gone.
    Gone(Table, Vec<Key>),
    /// What there was at the beginning is said.
    End,
    /// The sender is not the authority for these parts any more; what it said of them stays as it is.
    Forget(Vec<u32>),
    /// Nothing is left to say for the moment.
    Idle,
    /// To the authority: begin again.
    Resync,
    /// Whose words the sender has of parts without an instance. Its own count only behind a claim to lead.
    Claim(Claim),
    /// Of a later version.
    Unknown(u8),
}

/// A part, under the authority's number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceDef {
    pub part: u32,
    /// Slots of its ring.
    pub size: u32,
    pub seed: u64,
    /// Units of the entries' clock by which entries may be newer than they were sent.
    pub refresh: u16,
    pub service: String,
    pub instance: String,
}

/// A backend, under the authority's number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendDef {
    pub backend: u32,
    pub part: u32,
    pub name: String,
    pub address: IpAddr,
}

/// Why a frame has no effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("a frame of version {0}, this node speaks {VERSION}: versions may differ by one")]
    Version(u8),
    #[error("a frame of kind {0} ends too soon")]
    Short(u8),
    #[error("a frame of kind {0} holds what makes no sense")]
    Malformed(u8),
}

impl Frame {
    fn kind(&self) -> u8 {
        match self {
            Self::Begin => 1,
            Self::Service(_) => 2,
            Self::Backends(_) => 3,
            Self::Words { .. } => 4,
            Self::Put(..) => 5,
            Self::Gone(..) => 6,
            Self::End => 7,
            Self::Forget(_) => 8,
            Self::Idle => 9,
            Self::Resync => 10,
            Self::Claim(_) => 11,
            Self::Unknown(kind) => *kind,
        }
    }

    /// The frame as it travels. `number` is its place in the stream.
    #[must_use]
    pub fn encode(&self, number: u32) -> Vec<u8> {
        let mut out = vec![VERSION, self.kind(), 0, 0];
        out.extend(number.to_be_bytes());
        match self {
            Self::Begin | Self::End | Self::Idle | Self::Resync | Self::Unknown(_) => {}
            Self::Service(def) => {
                out.extend(def.part.to_be_bytes());
                out.extend(def.size.to_be_bytes());
                out.extend(def.seed.to_be_bytes());
                out.extend(def.refresh.to_be_bytes());
                put_name(&mut out, &def.service);
                put_name(&mut out, &def.instance);
            }
            Self::Backends(defs) => {
                for def in defs {
                    out.extend(def.backend.to_be_bytes());
                    out.extend(def.part.to_be_bytes());
                    put_name(&mut out, &def.name);
                    match def.address {
                        IpAddr::V4(v4) => {
                            out.push(4);
                            out.extend(v4.octets());
                        }
                        IpAddr::V6(v6) => {
                            out.push(6);
                            out.extend(v6.octets());
                        }
                    }
                }
            }
            Self::Words { part, first, words } => {
                out.extend(part.to_be_bytes());
                out.extend(first.to_be_bytes());
                out.extend(words.iter().flat_map(|word| word.to_be_bytes()));
            }
            Self::Put(table, entries) => {
                out.push(*table as u8);
                for (key, value) in entries {
                    put_entry(&mut out, key, value);
                }
            }
            Self::Gone(table, keys) => {
                out.push(*table as u8);
                for key in keys {
                    put_key(&mut out, key);
                }
            }
            Self::Claim(claim) => {
                out.extend(claim.epoch.to_be_bytes());
                out.push(claim.leads.into());
            }
            Self::Forget(parts) => out.extend(parts.iter().flat_map(|part| part.to_be_bytes())),
        }
        out
    }

    /// A frame and its number.
    pub fn decode(bytes: &[u8]) -> Result<(Self, u32), DecodeError> {
        let mut reader = Reader { bytes, kind: 0 };
        let [version, kind, _, _] = reader.array()?;
        if version.abs_diff(VERSION) > 1 {
            return Err(DecodeError::Version(version));
        }
        reader.kind = kind;
        let number = reader.u32()?;
        let frame = match kind {
            1 => Self::Begin,
            2 => Self::Service(ServiceDef {
                part: reader.u32()?,
                size: reader.u32()?,
                seed: u64::from_be_bytes(reader.array()?),
                refresh: u16::from_be_bytes(reader.array()?),
                service: reader.name()?,
                instance: reader.name()?,
            }),
            3 => Self::Backends(reader.all(Reader::backend)?),
            4 => Self::Words {
                part: reader.u32()?,
                first: reader.u32()?,
                words: reader.all(|r| Ok(u64::from_be_bytes(r.array()?)))?,
            },
            5 => {
                let table = reader.table()?;
                Self::Put(table, reader.all(|r| r.entry(table))?)
            }
            6 => {
                let table = reader.table()?;
                Self::Gone(table, reader.all(|r| r.key(table))?)
            }
            7 => Self::End,
            8 => Self::Forget(reader.all(Reader::u32)?),
            9 => Self::Idle,
            10 => Self::Resync,
            11 => {
                let epoch = u64::from_be_bytes(reader.array()?);
                Self::Claim(Claim { epoch, leads: reader.array()? == [1] })
            }
            kind => Self::Unknown(kind),
        };
        Ok((frame, number))
    }
}

/// Bytes of an entry, and of a key alone.
pub(super) const fn entry_size(table: Table) -> usize {
    let extra = match table {
        Table::Flows4 | Table::Flows6 => 0,
        Table::HalfOpen4 | Table::HalfOpen6 => 4,
        Table::SessionsBack => 38,
        Table::SessionsOut => 42,
    };
    key_size(table) + 8 + extra
}

/// See [`entry_size`].
pub(super) const fn key_size(table: Table) -> usize {
    if table.is_v4() { 13 } else { 37 }
}

/// So many elements of a size fit a frame.
pub(super) const fn room(size: usize) -> usize {
    (MAX_FRAME - HEAD - 1) / size
}

/// Of a backend's definition, with the longest name.
pub(super) const BACKEND_SIZE: usize = 8 + 64 + 17;

fn put_name(out: &mut Vec<u8>, name: &str) {
    // Names have at most 63 bytes.
    out.push(name.len() as u8);
    out.extend(name.as_bytes());
}

fn put_key(out: &mut Vec<u8>, key: &Key) {
    let length = if key.table.is_v4() { 4 } else { 16 };
    out.extend(&key.src[..length]);
    out.extend(&key.dst[..length]);
    out.extend(key.ports);
    out.push(key.proto);
}

fn put_entry(out: &mut Vec<u8>, key: &Key, value: &Value) {
    put_key(out, key);
    out.extend(value.entry.0.to_be_bytes());
    match key.table {
        Table::Flows4 | Table::Flows6 => {}
        Table::HalfOpen4 | Table::HalfOpen6 => out.extend(value.isn.to_be_bytes()),
        Table::SessionsOut | Table::SessionsBack => {
            let session = value.session.as_deref().copied().unwrap_or_default();
            out.extend(session.addresses.as_flattened());
            out.extend(session.ports.as_flattened());
            out.extend(session.flags.to_be_bytes());
            if key.table == Table::SessionsOut {
                out.extend(value.isn.to_be_bytes());
            }
        }
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    kind: u8,
}

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (array, rest) = self.bytes.split_first_chunk().ok_or(DecodeError::Short(self.kind))?;
        self.bytes = rest;
        Ok(*array)
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    fn name(&mut self) -> Result<String, DecodeError> {
        let [length] = self.array()?;
        let (name, rest) = self.bytes.split_at_checked(length.into()).ok_or(DecodeError::Short(self.kind))?;
        let name = std::str::from_utf8(name).map_err(|_| DecodeError::Malformed(self.kind))?;
        if name.len() >= lb_common::abi::NAME_LEN {
            return Err(DecodeError::Malformed(self.kind));
        }
        self.bytes = rest;
        Ok(name.to_owned())
    }

    fn table(&mut self) -> Result<Table, DecodeError> {
        let [number] = self.array()?;
        Table::from_u8(number).ok_or(DecodeError::Malformed(self.kind))
    }

    fn backend(&mut self) -> Result<BackendDef, DecodeError> {
        let (backend, part) = (self.u32()?, self.u32()?);
        let name = self.name()?;
        let address = match self.array()? {
            [4] => IpAddr::V4(Ipv4Addr::from(self.array::<4>()?)),
            [6] => IpAddr::V6(Ipv6Addr::from(self.array::<16>()?)),
            [_] => return Err(DecodeError::Malformed(self.kind)),
        };
        Ok(BackendDef { backend, part, name, address })
    }

    fn key(&mut self, table: Table) -> Result<Key, DecodeError> {
        let (mut src, mut dst) = ([0; 16], [0; 16]);
        if table.is_v4() {
            src[..4].copy_from_slice(&self.array::<4>()?);
            dst[..4].copy_from_slice(&self.array::<4>()?);
        } else {
            (src, dst) = (self.array()?, self.array()?);
        }
        let ports = self.array()?;
        let [proto] = self.array()?;
        Ok(Key { table, proto, ports, src, dst })
    }

    fn entry(&mut self, table: Table) -> Result<(Key, Value), DecodeError> {
        let key = self.key(table)?;
        let entry = FlowEntry(u64::from_be_bytes(self.array()?));
        let mut value = Value::flow(entry);
        match table {
            Table::Flows4 | Table::Flows6 => {}
            Table::HalfOpen4 | Table::HalfOpen6 => value.isn = self.u32()?,
            Table::SessionsOut | Table::SessionsBack => {
                let addresses = [self.array()?, self.array()?];
                let ports = [self.array()?, self.array()?];
                let flags = u16::from_be_bytes(self.array()?);
                value.session = Some(Box::new(Session { addresses, ports, flags }));
                if table == Table::SessionsOut {
                    value.isn = self.u32()?;
                }
            }
        }
        Ok((key, value))
    }

    /// What is left, one after the other.
    fn all<T>(
        &mut self,
        mut one: impl FnMut(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, DecodeError> {
        let mut found = Vec::new();
        while !self.bytes.is_empty() {
            found.push(one(self)?);
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::entry::{with_backend, with_seen},
        *,
    };
    use proptest::prelude::*;

    fn name() -> impl Strategy<Value = String> {
        proptest::collection::vec(0..26u8, 0..=63)
            .prop_map(|letters| letters.into_iter().map(|l| char::from(b'a' + l)).collect())
    }

    fn entry() -> impl Strategy<Value = (Key, Value)> {
        let key = (0..6usize, any::<u8>(), any::<[u8; 4]>(), any::<[u8; 16]>(), any::<[u8; 16]>());
        let session = (any::<[[u8; 16]; 2]>(), any::<[[u8; 2]; 2]>(), any::<u16>());
        (key, any::<u64>(), any::<u32>(), session).prop_map(
            |((table, proto, ports, mut src, mut dst), entry, isn, (addresses, ports_of, flags))| {
                let table = Table::ALL[table];
                if table.is_v4() {
                    src[4..].fill(0);
                    dst[4..].fill(0);
                }
                let mut value = Value::flow(FlowEntry(entry));
                match table {
                    Table::HalfOpen4 | Table::HalfOpen6 => value.isn = isn,
                    Table::SessionsOut | Table::SessionsBack => {
                        value.session = Some(Box::new(Session { addresses, ports: ports_of, flags }));
                        value.isn = if table == Table::SessionsOut { isn } else { 0 };
                    }
                    Table::Flows4 | Table::Flows6 => {}
                }
                (Key { table, proto, ports, src, dst }, value)
            },
        )
    }

    fn frame() -> impl Strategy<Value = Frame> {
        let of_one_table = |entries: Vec<(Key, Value)>| -> (Table, Vec<(Key, Value)>) {
            let table = entries.first().map_or(Table::Flows4, |(key, _)| key.table);
            (table, entries.into_iter().filter(|(key, _)| key.table == table).collect())
        };
        prop_oneof![
            Just(Frame::Begin),
            Just(Frame::End),
            Just(Frame::Idle),
            Just(Frame::Resync),
            any::<(u64, bool)>().prop_map(|(epoch, leads)| Frame::Claim(Claim { epoch, leads })),
            (12..=u8::MAX).prop_map(Frame::Unknown),
            (any::<(u32, u32, u64, u16)>(), name(), name()).prop_map(
                |((part, size, seed, refresh), service, instance)| {
                    Frame::Service(ServiceDef { part, size, seed, refresh, service, instance })
                }
            ),
            proptest::collection::vec((any::<(u32, u32)>(), name(), any::<IpAddr>()), 0..9).prop_map(
                |defs| {
                    let def = |((backend, part), name, address)| BackendDef { backend, part, name, address };
                    Frame::Backends(defs.into_iter().map(def).collect())
                }
            ),
            (any::<(u32, u32)>(), proptest::collection::vec(any::<u64>(), 0..50))
                .prop_map(|((part, first), words)| Frame::Words { part, first, words }),
            proptest::collection::vec(entry(), 0..20).prop_map(move |entries| {
                let (table, entries) = of_one_table(entries);
                Frame::Put(table, entries)
            }),
            proptest::collection::vec(entry(), 0..20).prop_map(move |entries| {
                let (table, entries) = of_one_table(entries);
                Frame::Gone(table, entries.into_iter().map(|(key, _)| key).collect())
            }),
            proptest::collection::vec(any::<u32>(), 0..20).prop_map(Frame::Forget),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(frame in frame(), number: u32) {
            prop_assert_eq!(Frame::decode(&frame.encode(number)), Ok((frame, number)));
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0..12u8) {
            let _ = Frame::decode(&bytes);
            let mut framed = vec![VERSION, kind, 0, 0, 0, 0, 0, 0];
            framed.extend(bytes);
            let _ = Frame::decode(&framed);
        }

        /// A frame that was cut is refused or is a shorter list, never something else.
        #[test]
        fn a_cut_frame_is_no_other(entries in proptest::collection::vec(entry(), 1..9), cut in 1..400usize) {
            let table = entries[0].0.table;
            let entries: Vec<_> = entries.into_iter().filter(|(key, _)| key.table == table).collect();
            let bytes = Frame::Put(table, entries.clone()).encode(7);
            let kept = bytes.len().saturating_sub(cut).max(9);
            match Frame::decode(&bytes[..kept]) {
                Ok((Frame::Put(_, read), 7)) => prop_assert_eq!(&read[..], &entries[..read.len()]),
                other => prop_assert_eq!(other, Err(DecodeError::Short(5))),
            }
        }

        #[test]
        fn sizes_are_those_of_the_bytes(entry in entry()) {
            let (key, value) = entry;
            let bytes = |frame: Frame| frame.encode(0).len() - HEAD - 1;
            prop_assert_eq!(bytes(Frame::Gone(key.table, vec![key])), key_size(key.table));
            prop_assert_eq!(bytes(Frame::Put(key.table, vec![(key, value)])), entry_size(key.table));
        }
    }

    /// Another version reads these bytes: they are fixed.
    #[test]
    fn the_bytes_are_fixed() {
        let hex = |frame: Frame| {
            frame.encode(0x0102_0304).iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        };
        assert_eq!(hex(Frame::Begin), "0101000001020304");
        let service = ServiceDef {
            part: 5,
            size: 65_537,
            seed: 7,
            refresh: 9,
            service: "www".to_owned(),
            instance: "a".to_owned(),
        };
        assert_eq!(
            hex(Frame::Service(service)),
            "0102000001020304000000050001000100000000000000070009037777770161"
        );
        let backend = BackendDef {
            backend: 3,
            part: 5,
            name: "b1".to_owned(),
            address: IpAddr::V4(Ipv4Addr::new(10, 2, 0, 1)),
        };
        assert_eq!(hex(Frame::Backends(vec![backend])), "01030000010203040000000300000005026231040a020001");
        assert_eq!(
            hex(Frame::Words { part: 5, first: 6, words: vec![0x1122_3344_5566_7788] }),
            "010400000102030400000005000000061122334455667788"
        );
        let mut src = [0; 16];
        src[..4].copy_from_slice(&[10, 1, 0, 1]);
        let key = Key { table: Table::Flows4, proto: 6, ports: [0x9c, 0x40, 0, 80], src, dst: src };
        let entry = with_backend(with_seen(FlowEntry(0x0abc << 48), 0x1234), 3, 1);
        assert_eq!(
            hex(Frame::Put(Table::Flows4, vec![(key, Value::flow(entry))])),
            "0105000001020304010a0100010a0100019c400050060abc123401000003"
        );
        assert_eq!(
            hex(Frame::Gone(Table::Flows4, vec![key])),
            "0106000001020304010a0100010a0100019c40005006"
        );
        assert_eq!(hex(Frame::Forget(vec![5])), "010800000102030400000005");
        assert_eq!(
            [Frame::End, Frame::Idle, Frame::Resync].map(hex),
            ["07", "09", "0a"].map(|kind| format!("01{kind}000001020304"))
        );
    }

    #[test]
    fn versions_may_differ_by_one() {
        let mut bytes = Frame::End.encode(1);
        for (version, good) in [(0, true), (1, true), (2, true), (3, false), (255, false)] {
            bytes[0] = version;
            assert_eq!(Frame::decode(&bytes).is_ok(), good, "{version}");
        }
    }
}
