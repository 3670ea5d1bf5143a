//! From a service and a flow to a backend.

use super::{
    Decision, DropReason, FlowKey, Forward, Ip, Refusal, Tables,
    affinity::{self, Step},
};
use crate::{abi::ServiceEntry, hash};

/// Sends the flow with this hash to its slot's backend. The flow's key is made only where a slot has
/// changed hands and the flow table must be asked.
#[inline(always)]
pub(super) fn select<'t, T: Tables, K: FlowKey>(
    tables: &'t T,
    id: u32,
    service: &ServiceEntry,
    flow: u64,
    step: Step,
    key: impl FnOnce() -> K,
    ip: Ip,
) -> Decision<'t> {
    let index = hash::slot(flow, service.ring_size);
    let Some(slot) = tables.slot(service.ring_base.wrapping_add(index)) else {
        return Decision::Drop(Refusal { reason: DropReason::Internal });
    };
    let backend_id =
        if slot.is_plain() { slot.owner() } else { affinity::choose(tables, slot, flow, step, &key()) };
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
