//! Slots that change hands: who gets a packet, and what is recorded. Backend A owns or has owned the slots, B is
//! the other one.

use crate::rig::Rig;
use lb_common::abi::{BackendEntry, Slot, SlotState};
use lb_tests::{
    kernel::{Counter, Counters, Verdict},
    packets::{ACK, FIN, Packet, RST, SYN},
};

const SERVICE: &str = "ipip4-tcp";

/// Backend ids of the service, the first two.
fn two(rig: &Rig) -> (u32, u32) {
    let service = rig.world.image.service_id(SERVICE).unwrap();
    let mut ids =
        rig.world.image.backends.iter().filter(|(_, b)| b.entry.service == service).map(|(id, _)| *id);
    (ids.next().unwrap(), ids.next().unwrap())
}

/// Puts every slot of the service into one state.
fn slots(rig: &mut Rig, owner: u32, home: u32, state: SlotState) {
    let service = rig.world.image.service_id(SERVICE).unwrap();
    let ring = rig.world.image.rings.get_mut(&service).unwrap();
    ring.update(|words| words.fill(Slot::new(owner, home, state, 1)));
    rig.balancer.set_image(&rig.world.image);
}

/// The packet goes to this backend, and so many flows are recorded on the way.
#[track_caller]
fn goes_to(rig: &mut Rig, what: &str, packet: &Packet, backend: u32, recorded: u64) {
    let (outcome, moved) = rig.run(&packet.build());
    assert!(matches!(outcome.verdict, Verdict::Tx | Verdict::Redirect), "{what}: {outcome:?}");
    let len = packet.ip().len() as u64;
    let service = rig.world.image.service_id(SERVICE).unwrap();
    let mut expected = Counters::one(Counter::Service(service), len);
    expected.add_stats(Counter::Backend(backend), (1, len));
    expected.add_stats(Counter::FlowsRecorded, (recorded, 0));
    assert_eq!(moved, expected, "{what}");
}

fn flags(packet: &Packet, flags: u8) -> Packet {
    packet.with(|p| {
        p.tcp_mut().flags = flags;
        p.tcp_mut().seq = 1000 + u32::from(flags & SYN == 0);
    })
}

#[test]
fn a_slot_that_moves_keeps_its_flows() {
    for v6 in [false, true] {
        let mut rig = Rig::new();
        let (a, b) = two(&rig);
        let flow = |rig: &Rig, n| flags(&rig.world.packet(SERVICE, v6, n), ACK);
        let (old, new, other, unknown) = (flow(&rig, 1), flow(&rig, 2), flow(&rig, 3), flow(&rig, 4));

        slots(&mut rig, a, a, SlotState::Plain);
        goes_to(&mut rig, "plain: nothing is recorded", &old, a, 0);
        slots(&mut rig, b, a, SlotState::Moving);
        goes_to(&mut rig, "an old flow stays and is recorded", &old, a, 1);
        goes_to(&mut rig, "once", &old, a, 0);
        goes_to(&mut rig, "a SYN goes to the new owner", &flags(&new, SYN), b, 0);
        goes_to(&mut rig, "and again", &flags(&new, SYN), b, 0);
        goes_to(&mut rig, "and all that follows", &new, b, 1);
        goes_to(&mut rig, "a SYN for the old flow says nothing", &flags(&old, SYN), a, 0);
        goes_to(&mut rig, "a stray RST is recorded as closing", &flags(&other, RST), a, 1);

        slots(&mut rig, b, b, SlotState::Tracked);
        goes_to(&mut rig, "tracked: the old flow stays", &old, a, 0);
        goes_to(&mut rig, "what is unknown goes home and is not recorded", &unknown, b, 0);
        goes_to(&mut rig, "a FIN goes where the flow is", &flags(&old, FIN | ACK), a, 0);
        goes_to(&mut rig, "the last ACK too", &old, a, 0);
        goes_to(&mut rig, "a FIN again", &flags(&old, FIN | ACK), a, 0);
        goes_to(&mut rig, "a SYN after it begins anew", &flags(&old, SYN), b, 0);
        goes_to(&mut rig, "and stays there", &old, b, 0);

        slots(&mut rig, a, a, SlotState::Plain);
        goes_to(&mut rig, "plain again: the table is not asked", &new, a, 0);
        let flows = rig.balancer.flows();
        assert_eq!((flows.v4.len(), flows.v6.len()), if v6 { (0, 3) } else { (3, 0) });
    }
}

/// Entries of a backend that is dead, or lives another life, count for nothing.
#[test]
fn entries_of_the_dead_are_misses() {
    let mut rig = Rig::new();
    let (a, b) = two(&rig);
    let flow = rig.world.packet(SERVICE, false, 1);
    slots(&mut rig, b, a, SlotState::Moving);
    goes_to(&mut rig, "recorded with A", &flow, a, 1);
    rig.world.image.backends.get_mut(&a).unwrap().entry.flags |= BackendEntry::DEAD;
    slots(&mut rig, b, b, SlotState::Tracked);
    goes_to(&mut rig, "A is dead", &flow, b, 0);
    rig.world.image.backends.get_mut(&a).unwrap().entry.flags = 0;
    rig.world.image.backends.get_mut(&b).unwrap().entry.incarnation += 1;
    slots(&mut rig, a, a, SlotState::Tracked);
    goes_to(&mut rig, "B died and came back", &flow, a, 0);
}
