//! QUIC: packets go where their connection ID says, whatever address the client has by now.
//!
//! Servers put their id into the connection IDs they give out, in the clear
//! (draft-ietf-quic-load-balancers, "Plaintext CID"): an octet whose three upper bits are the config id
//! (0b111 = "unroutable"), the server id of a fixed length, and a nonce. What names no living server goes the
//! way of any UDP datagram; nothing is dropped here.

use super::{Tables, affinity::Place};
use crate::{
    abi::{BackendEntry, CidKey, ServiceEntry},
    hash,
    packet::{Packet, View},
    wire::udp,
};

/// Longest server id, in bytes: the draft leaves room for a nonce of 4 in a connection ID of 20.
pub const MAX_ID_LEN: u32 = 15;

/// RFC 9000 and RFC 9369.
const VERSION_1: u32 = 1;
const VERSION_2: u32 = 0x6b33_43cf;

// Offsets from the UDP header. RFC 8999: a long header has the version and the length of the destination
// connection ID in front of it; in a short one it follows the first byte.
const FIRST: usize = udp::LEN;
const VERSION: usize = FIRST + 1;
const LONG_CID_LEN: usize = FIRST + 5;
const LONG_CID: usize = FIRST + 6;
const SHORT_CID: usize = FIRST + 1;
/// First octet and the longest server id. Every QUIC packet has as many bytes from where its connection ID starts: packets
/// are protected with a tag of 16 bytes (RFC 9001 section 5.3), which follows.
const CID_PART: usize = 1 + MAX_ID_LEN as usize;

/// How the servers of a service form their connection IDs, and the service's id: one number that passes between
/// kernel functions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Format(pub u64);

impl Format {
    /// Of the service `id`.
    #[inline(always)]
    pub const fn of(id: u32, entry: &ServiceEntry) -> Self {
        let config = entry.flags >> ServiceEntry::QUIC_CONFIG_SHIFT;
        Self(id as u64 | (entry.quic_id_len as u64 & 0xf) << 32 | (config as u64) << 40)
    }

    #[inline(always)]
    const fn service(self) -> u32 {
        self.0 as u32
    }

    #[inline(always)]
    const fn id_len(self) -> u32 {
        (self.0 >> 32) as u32 & 0xf
    }

    #[inline(always)]
    const fn config(self) -> u8 {
        (self.0 >> 40) as u8 & 7
    }
}

/// Where a datagram goes, in one number that passes between kernel functions: the backend that its connection ID
/// names (0 = the hash decides), what kind of packet it is, and the hash of a connection's first ID.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route(pub u64);

impl Route {
    /// What any UDP datagram gets.
    pub const BY_HASH: Self = Self(0);

    const INITIAL: u64 = 1 << 24;
    const EARLY: u64 = 1 << 25;

    /// The backend that the connection ID names; 0 = none that lives.
    #[inline(always)]
    pub const fn backend(self) -> u32 {
        self.0 as u32 & 0xff_ffff
    }

    /// A packet of a client's first flight, Initial or 0-RTT: what a SYN is to TCP.
    #[inline(always)]
    pub const fn begins(self) -> bool {
        self.0 & (Self::INITIAL | Self::EARLY) != 0
    }

    /// An Initial packet: what limits on new connections count.
    #[inline(always)]
    pub const fn is_initial(self) -> bool {
        self.0 & Self::INITIAL != 0
    }

    /// Of a packet that begins: a hash of its destination connection ID, the same for all packets of a first flight
    /// and another for the next connection from the same port. It stands for a SYN's initial sequence number.
    #[inline(always)]
    pub const fn isn(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// Reads the QUIC header of a UDP datagram.
#[inline(always)]
pub fn route<P: Packet, T: Tables>(packet: &P, tables: &T, place: Place, format: Format) -> Route {
    let at = place.l4();
    // One byte of payload more than the header.
    let Some(head) = packet.view::<{ udp::LEN + 1 }>(at) else { return Route::BY_HASH };
    // The frame may be longer than the datagram: padding is no connection ID.
    let length = usize::from(head.u16::<{ udp::LENGTH }>());
    if head.u8::<FIRST>() & 0x80 == 0 {
        if length < SHORT_CID + CID_PART {
            return Route::BY_HASH;
        }
        let Some(cid) = packet.view::<CID_PART>(at + SHORT_CID) else { return Route::BY_HASH };
        return Route(server(tables, cid, format).into());
    }
    if length < LONG_CID + CID_PART {
        return Route::BY_HASH;
    }
    let Some(head) = packet.view::<LONG_CID>(at) else { return Route::BY_HASH };
    let Some(cid) = packet.view::<CID_PART>(at + LONG_CID) else { return Route::BY_HASH };
    let cid_len = u32::from(head.u8::<LONG_CID_LEN>());
    let named = if cid_len > format.id_len() { server(tables, cid, format) } else { 0 };
    // RFC 9000 section 17.2 and RFC 9369 section 3.2: the bits mean Initial, 0-RTT, ...
    let kind = head.u8::<FIRST>() >> 4 & 3;
    let kind = match head.u32::<VERSION>() {
        VERSION_1 if kind == 0 => Route::INITIAL,
        VERSION_1 if kind == 1 => Route::EARLY,
        VERSION_2 if kind == 1 => Route::INITIAL,
        VERSION_2 if kind == 2 => Route::EARLY,
        _ => return Route(named.into()),
    };
    // RFC 9000 sections 7.2 and 17.2: a client's first ID has 8 bytes at least, any has 20 at most.
    if !(8..=20).contains(&cid_len) {
        return Route(named.into());
    }
    let isn = hash::mix(cid.u64::<0>() ^ u64::from(cid_len)) >> 32;
    Route(u64::from(named) | kind | isn << 32)
}

/// The living backend of the service whose id a connection ID has; 0 = none.
#[inline(always)]
fn server<T: Tables>(tables: &T, cid: View<'_, CID_PART>, format: Format) -> u32 {
    let id_len = format.id_len();
    if cid.u8::<0>() >> 5 != format.config() || id_len == 0 {
        return 0;
    }
    let key = CidKey { service: format.service(), server: server_id(cid, id_len) };
    let Some(id) = tables.cid(&key) else { return 0 };
    match tables.backend(id) {
        // A draining one goes on serving its connections. The id may have a new owner: tables change one by one.
        Some(backend)
            if backend.kind != 0
                && backend.flags & BackendEntry::DEAD == 0
                && backend.service == format.service() =>
        {
            id
        }
        _ => 0,
    }
}

/// The first `len` (1 to 15) of the bytes behind the first octet, zero-padded.
#[inline(always)]
fn server_id(cid: View<'_, CID_PART>, len: u32) -> [u8; 16] {
    /// Keeps the first `bytes` (1 to 8) bytes of a word.
    #[inline(always)]
    const fn keep(word: u64, bytes: u32) -> u64 {
        word & u64::MAX << ((64 - 8 * bytes) & 63)
    }
    let (upper, lower) = match len {
        1..=8 => (keep(cid.u64::<1>(), len), 0),
        // The last eight of the fifteen bytes, of which the first is the last of `upper`.
        _ => (cid.u64::<1>(), keep(cid.u64::<8>() << 8, len - 8)),
    };
    let mut id = [0; 16];
    id[..8].copy_from_slice(&upper.to_be_bytes());
    id[8..].copy_from_slice(&lower.to_be_bytes());
    id
}

#[cfg(test)]
mod tests;
