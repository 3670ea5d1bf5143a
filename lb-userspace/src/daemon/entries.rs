//! What a backend's entry tells, read back from the maps.

use crate::plan::NextHopEntry;
use lb_common::abi::BackendEntry;
use std::net::IpAddr;

/// The address of a backend that has a place in the outer header.
pub(super) fn address_of(entry: &BackendEntry) -> IpAddr {
    let bytes = entry.outer_dst;
    if entry.family == 6 {
        IpAddr::from(bytes)
    } else {
        IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]])
    }
}

/// The next hop in a backend's entry, for the time until netlink has spoken.
pub(super) fn hop_of(entry: &BackendEntry) -> NextHopEntry {
    let mut mac = ([0; 6], [0; 6]);
    mac.0.copy_from_slice(&entry.l2[..6]);
    mac.1.copy_from_slice(&entry.l2[6..]);
    let source = match (entry.kind == lb_common::abi::ForwardKind::Gue as u8, entry.family) {
        (false, _) => None,
        (true, 6) => Some(IpAddr::from(entry.outer_src)),
        (true, _) => {
            let b = entry.outer_src;
            Some(IpAddr::from([b[0], b[1], b[2], b[3]]))
        }
    };
    NextHopEntry {
        ifindex: entry.ifindex,
        dst_mac: mac.0,
        src_mac: mac.1,
        vlan: entry.vlan,
        mtu: entry.mtu,
        source,
    }
}
