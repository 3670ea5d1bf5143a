//! From a service and a flow to a backend.

use super::{
    Decision, DropReason, Forward, Ip, Refusal, Tables,
    affinity::{Place, Step},
    nat,
    quic::Route,
    reject,
};
use crate::{abi::ServiceEntry, hash, packet::Packet};

/// Sends the flow with this hash to the backend of its slot, unless `route` names another; the flow tables are asked only
/// where the slot has changed hands or the service is scheduled.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "inlined into its one caller")]
pub(super) fn select<'t, P: Packet, T: Tables>(
    packet: &P,
    tables: &'t T,
    id: u32,
    service: &ServiceEntry,
    (flow, index): (u64, u32),
    step: Step,
    route: Route,
    ip: Ip,
) -> Decision<'t> {
    let Some(slot) = tables.slot(service.ring_base.wrapping_add(index)) else {
        return Decision::Drop(Refusal { reason: DropReason::Internal });
    };
    let backend_id = if route.backend() != 0 {
        route.backend()
    } else if slot.is_plain() && service.flags & ServiceEntry::SCHEDULED == 0 {
        slot.owner()
    } else {
        let place = Place::of(&ip).of_service(id, service.flags).at(step);
        let place = if service.flags & ServiceEntry::QUIC == 0 { place } else { place.with_isn() };
        tables.choose(packet, place, slot, flow, route.isn())
    };
    if backend_id == 0 {
        return reject::nobody(packet, service.flags, &ip);
    }
    match tables.backend(backend_id) {
        Some(backend) => {
            let forward = Forward { service: id, backend_id, backend, ip, hash: flow, slot: index };
            const RARE: u32 = ServiceEntry::SESSIONS | ServiceEntry::HAIRPIN | ServiceEntry::PASSIVE;
            if service.flags & RARE == 0 {
                return Decision::Forward(forward);
            }
            if service.flags & ServiceEntry::PASSIVE != 0 && matches!(step, Step::Begin) {
                let by_source = service.flags & ServiceEntry::SOURCE_IP != 0;
                let slot = service.ring_base.wrapping_add(index);
                let chooser = if by_source { hash::mix(slot.into()) } else { flow };
                tables.watch(packet, Place::of(&ip), backend_id, flow, chooser);
            }
            // A session for all, or for clients alone that are backends themselves.
            let always = service.flags & ServiceEntry::SESSIONS != 0;
            if always
                || service.flags & ServiceEntry::HAIRPIN != 0
                    && nat::from_backend(packet, tables, ip.l3, ip.v6)
            {
                return Decision::Session(forward, step);
            }
            Decision::Forward(forward)
        }
        None => Decision::Drop(Refusal { reason: DropReason::Internal }),
    }
}
