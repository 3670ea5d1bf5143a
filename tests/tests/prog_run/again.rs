//! A program that served another test is as good as a new one.

use crate::rig::Rig;
use lb_common::abi::{Slot, SlotState};
use lb_tests::{
    kernel::{Balancer, Counters},
    packets::{ACK, SYN},
};
use lb_userspace::plan::Image;

#[test]
fn nothing_of_the_test_before_is_left() {
    // A room of this test's own, so that what is dropped here is what comes next.
    const FLOWS: u32 = 777;
    let mut rig = Rig::new();
    let image = rig.world.image.clone();
    rig.balancer = Balancer::with_room(&image, FLOWS);
    let id = rig.balancer.id();
    for (service, v6) in [("ipip4-tcp", false), ("ipip4-tcp", true), ("snat4-tcp", false)] {
        let Some(number) = image.service_id(service) else { continue };
        let mut moving = image.clone();
        moving.rings.get_mut(&number).unwrap().update(|words| {
            for slot in words {
                *slot = Slot::new(slot.owner(), slot.home(), SlotState::Moving, 1);
            }
        });
        rig.balancer.set_image(&moving);
        for n in 0..10 {
            for flags in [SYN, ACK] {
                let packet = rig.world.packet(service, v6, n).with(|p| p.tcp_mut().flags = flags);
                rig.balancer.run(&packet.build());
            }
        }
    }
    assert!(!rig.balancer.flows().v4.is_empty() && !rig.balancer.flows().v6.is_empty());
    assert_ne!(rig.balancer.counters(8), Counters::default());
    let empty = Image::empty(image.ring_capacity, image.backend_capacity);
    rig.balancer = Balancer::new(&empty);
    let again = Balancer::with_room(&empty, FLOWS);
    assert_eq!(again.id(), id, "the same program");
    assert_eq!(again.observe(), empty);
    assert_eq!(again.counters(4096), Counters::default());
    assert_eq!(again.entries(), []);
    assert_eq!(again.half_open(), []);
    assert_eq!(again.first_not_zero(), None);
}
