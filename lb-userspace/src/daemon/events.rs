//! Records of the programs, by kind.

use crate::dataplane::DataplaneError;
use aya::maps::{MapData, RingBuf};
use lb_common::abi::{ClaimEvent, EventHeader, ResolveEvent, TraceEvent};
use std::net::IpAddr;
use tokio::io::unix::AsyncFd;

/// Records taken at once at most: the loop has other things to do.
const BATCH: usize = 512;

/// What a program tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    Resolve(ResolveEvent),
    Trace(TraceEvent),
    Claim(ClaimEvent),
}

impl Event {
    /// `None`: of a kind or size this daemon does not know.
    fn read(record: &[u8]) -> Option<Self> {
        let header: EventHeader = plain(record)?;
        let size = header.size as usize;
        match header.kind {
            EventHeader::RESOLVE if size == size_of::<ResolveEvent>() => plain(record).map(Self::Resolve),
            EventHeader::TRACE if size == size_of::<TraceEvent>() => plain(record).map(Self::Trace),
            EventHeader::CLAIM if size == size_of::<ClaimEvent>() => plain(record).map(Self::Claim),
            _ => None,
        }
    }
}

/// A record's kind of value; only for the types of `abi::event` and `abi::watch`.
fn plain<T: Copy>(record: &[u8]) -> Option<T> {
    let bytes = record.get(..size_of::<T>())?;
    // SAFETY: as many bytes as T has; the types of records are integers and byte arrays without padding.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// Neighbours that packets wait for: egress and address.
pub(super) fn neighbours(events: &[Event]) -> impl Iterator<Item = (u32, IpAddr)> {
    events.iter().filter_map(|event| match event {
        Event::Resolve(event) => {
            let address = IpAddr::from(event.address);
            Some((event.ifindex, if event.family == 4 { address.to_canonical() } else { address }))
        }
        Event::Trace(_) | Event::Claim(_) => None,
    })
}

/// The ring buffer, to wait on. Its only reader.
pub(super) struct Events(AsyncFd<RingBuf<MapData>>);

impl Events {
    pub(super) fn new(ring: RingBuf<MapData>) -> Result<Self, DataplaneError> {
        // SAFETY: the ring buffer owns its descriptor and neither closes nor changes it while it lives inside the AsyncFd.
        let watched = unsafe { AsyncFd::register(ring) };
        watched
            .map(Self)
            .map_err(|e| DataplaneError::Read { map: "EVENTS", source: std::io::Error::other(e.to_string()) })
    }

    /// Waits for records; cancelled, none is lost.
    pub(super) async fn next(&mut self) -> Vec<Event> {
        let Ok(mut ready) = self.0.readable_mut().await else { return std::future::pending().await };
        let mut events = Vec::new();
        let mut all = false;
        while !all && events.len() < BATCH {
            match ready.get_inner_mut().next() {
                Some(record) => events.extend(Event::read(&record)),
                None => all = true,
            }
        }
        // What is left makes the next wait return at once.
        if all {
            ready.clear_ready();
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes<T: Copy>(value: &T) -> Vec<u8> {
        // SAFETY: a live value without padding.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast::<u8>(), size_of::<T>()) }.to_vec()
    }

    #[test]
    fn a_neighbour_to_resolve_is_told_by_its_family() {
        let v4 = std::net::Ipv4Addr::new(10, 0, 0, 1);
        let v6: std::net::Ipv6Addr = "fe80::1".parse().unwrap();
        let event = |family, address| {
            Event::Resolve(ResolveEvent { family, address, ifindex: 7, ..ResolveEvent::default() })
        };
        let events = [
            event(4, v4.to_ipv6_mapped().octets()),
            Event::Trace(TraceEvent::default()),
            event(6, v6.octets()),
        ];
        assert_eq!(neighbours(&events).collect::<Vec<_>>(), [(7, v4.into()), (7, v6.into())]);
    }

    #[test]
    fn a_record_is_read_by_its_kind_and_a_strange_one_is_skipped() {
        let header = |kind, size: usize| EventHeader { kind, size: size as u32 };
        let trace = TraceEvent {
            header: header(EventHeader::TRACE, size_of::<TraceEvent>()),
            slot: 7,
            ..TraceEvent::default()
        };
        assert_eq!(Event::read(&bytes(&trace)), Some(Event::Trace(trace)));
        let resolve = ResolveEvent {
            header: header(EventHeader::RESOLVE, size_of::<ResolveEvent>()),
            ifindex: 3,
            ..ResolveEvent::default()
        };
        assert_eq!(Event::read(&bytes(&resolve)), Some(Event::Resolve(resolve)));
        assert_eq!(Event::read(&bytes(&trace)[..40]), None);
        assert_eq!(Event::read(&bytes(&TraceEvent { header: header(99, 88), ..trace })), None);
        assert_eq!(Event::read(&[1, 0]), None);
    }
}
