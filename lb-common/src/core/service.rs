//! From a VIP and a port to a service.

use super::Tables;
use crate::abi::{PortKey, PortRangeKey, VipEntry};

/// The service that owns a port of a VIP. `port` in host order.
#[inline(always)]
pub fn find<T: Tables>(tables: &T, vip: &VipEntry, proto: u8, port: u16) -> Option<u32> {
    // Unrolled by hand: the verifier of older kernels takes a loop over a map value badly.
    macro_rules! rule {
        ($($i:literal)*) => { $(
            let rule = &vip.rules[$i];
            if rule.proto == proto && rule.lo <= port && port <= rule.hi {
                return Some(u32::from(rule.service));
            }
        )* };
    }
    rule!(0 1 2 3);
    if vip.flags & VipEntry::SPILLED == 0 {
        return None;
    }
    let key = PortKey { vip: vip.vip, port, proto: u16::from(proto) };
    tables.port(&key).or_else(|| {
        tables.port_range(&PortRangeKey {
            prefix_len: 64,
            vip: vip.vip.to_be_bytes(),
            proto: u16::from(proto).to_be_bytes(),
            port: port.to_be_bytes(),
        })
    })
}
