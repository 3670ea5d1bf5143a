//! The promise of connection affinity as a property of random histories, through the real program in the kernel, with
//! the daemon's own plan and care on the real maps: small ones that proptest shrinks to a readable story, and large ones
//! of a hundred thousand flows, under a flood of SYNs and with packets of one flow on two CPUs. Needs root.
//!
//! Other histories: `LBD_SEED=7 cargo test -p lb-tests --test affinity_property`.

mod big;
mod model;
mod steps;
mod world;

use lb_tests::{
    daemon::{Fault, send},
    packets::ACK,
};
use model::{Model, Who};
use steps::{hold, try_histories};
use world::{Size, What, World};

const SMALL: Size = Size { ring: 7, room: 1024, backends: 3 };

#[test]
fn no_packet_of_a_living_flow_reaches_another_backend() {
    hold(SMALL, 300);
}

#[test]
fn a_full_table_delays_changes_and_breaks_nothing() {
    hold(Size { room: 2, ..SMALL }, 300);
}

/// The property is worth what it finds: each mistake a daemon could make, as a story that is short enough to read.
#[test]
fn a_daemon_that_errs_is_found_out() {
    let faults = [
        (Fault::SettlesAtOnce, 1024),
        (Fault::ClearsBlindly, 1024),
        (Fault::ForgetsLiving, 1024),
        (Fault::IgnoresRefused, 2),
        (Fault::PlacesAnew, 2),
    ];
    for (fault, room) in faults {
        let verdict = try_histories(Size { room, ..SMALL }, fault, 1_000);
        let (steps, story) = verdict.broken.unwrap_or_else(|| panic!("{fault:?} was not found"));
        eprintln!("{fault:?}, {steps} steps:\n{story}\n");
        assert!(steps <= 20, "{fault:?} takes {steps} steps to show:\n{story}");
    }
}

const LARGE: Size = Size { ring: 251, room: 1 << 17, backends: 4 };

#[test]
fn a_hundred_thousand_flows_keep_their_backends() {
    big::many_flows(LARGE, 100_000, 8, 1);
}

#[test]
fn a_hundred_thousand_flows_and_room_for_a_few_thousand() {
    big::many_flows(Size { room: 5_000, ..LARGE }, 100_000, 6, 2);
}

#[test]
fn five_million_syns_of_other_sources_change_nothing() {
    big::under_a_flood(LARGE, 20_000, 6, 5_000_000, 3);
}

#[test]
fn packets_of_a_flow_on_two_cpus_at_once() {
    big::on_two_cpus(3_000, 4);
}

/// Its entries are of a former life, even where nobody has looked at them since.
#[test]
fn a_backend_that_comes_back_takes_up_no_former_flow() {
    let mut world = World::new(SMALL);
    let model = Model::new(24);
    // Schedulers have no home to go to: a flow of theirs may well come back.
    for who in (0..24).map(Who::number).filter(|who| who.service < 3) {
        world.begin();
        let frame = model.frames.of(who, ACK, 5, true);
        let first = send(&mut world.kernel, &frame).expect("a backend");
        world.change_backend(first, What::Drain, &mut |_| {});
        assert_eq!(send(&mut world.kernel, &frame), Some(first), "{who} is recorded");
        assert_eq!(world.kernel.entries().len(), 1);
        for what in [What::Down, What::Up, What::Enable] {
            world.change_backend(first, what, &mut |_| {});
        }
        let then = send(&mut world.kernel, &frame);
        assert!(
            then.is_some() && then != Some(first),
            "{who} of backend {first}, by its old entry: {then:?}"
        );
    }
}
