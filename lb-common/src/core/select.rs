//! From a service and a flow to a backend.

use super::{
    Decision, DropReason, Forward, Ip, Refusal, Tables,
    affinity::{Place, Step},
    quic::Route,
};
use crate::{abi::ServiceEntry, hash, packet::Packet};

/// Sends the flow with this hash to its slot's backend, unless `route` names another; the flow table is asked only
/// where the slot has changed hands.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "inlined into its one caller")]
pub(super) fn select<'t, P: Packet, T: Tables>(
    packet: &P,
    tables: &'t T,
    id: u32,
    service: &ServiceEntry,
    flow: u64,
    step: Step,
    route: Route,
    ip: Ip,
) -> Decision<'t> {
    let index = hash::slot(flow, service.ring_size);
    let Some(slot) = tables.slot(service.ring_base.wrapping_add(index)) else {
        return Decision::Drop(Refusal { reason: DropReason::Internal });
    };
    let backend_id = if route.backend() != 0 {
        route.backend()
    } else if slot.is_plain() {
        slot.owner()
    } else {
        tables.choose(packet, Place::of(&ip), slot, flow, step)
    };
    if backend_id == 0 {
        return Decision::Drop(Refusal { reason: DropReason::NoBackend });
    }
    match tables.backend(backend_id) {
        Some(backend) => {
            Decision::Forward(Forward { service: id, backend_id, backend, ip, hash: flow, slot: index })
        }
        None => Decision::Drop(Refusal { reason: DropReason::Internal }),
    }
}
