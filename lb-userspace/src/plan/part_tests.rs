//! Random histories of small changes: a part is what the whole would be.

use super::*;
use crate::{
    model::{Admin, Health, PortSpec, Verdict},
    plan::{
        build,
        tests::{backend, service, tunnel},
    },
};
use proptest::prelude::*;

/// One change of one backend of one service.
#[derive(Debug, Clone)]
enum Change {
    Weight(u16),
    Admin(Admin),
    Health(Health),
    Hop(bool),
    /// Adds it, or removes it where it is.
    Toggle,
}

fn any_change() -> impl Strategy<Value = (usize, u8, Change)> {
    let change = prop_oneof![
        (0..4u16).prop_map(Change::Weight),
        prop_oneof![Just(Admin::Enabled), Just(Admin::Draining), Just(Admin::Disabled)]
            .prop_map(Change::Admin),
        prop_oneof![Just(Health::Up), Just(Health::Down), Just(Health::Unknown)].prop_map(Change::Health),
        any::<bool>().prop_map(Change::Hop),
        Just(Change::Toggle),
        Just(Change::Toggle),
    ];
    (0..8usize, 1..9u8, change)
}

fn carry_out(service: &mut WantedService, number: u8, change: &Change) {
    let name = format!("web{number}");
    let at = service.backends.iter().position(|b| b.spec.name.as_str() == name);
    let fresh = || backend(number, Admin::Enabled, Health::Up, 1, true);
    match (at, change) {
        (None, Change::Toggle) => service.backends.push(fresh()),
        (Some(at), Change::Toggle) => _ = service.backends.remove(at),
        (Some(at), Change::Weight(weight)) => service.backends[at].spec.weight = *weight,
        (Some(at), Change::Admin(admin)) => service.backends[at].admin = *admin,
        (Some(at), Change::Health(health)) => service.backends[at].health = *health,
        (Some(at), Change::Hop(there)) => {
            service.backends[at].next_hop = fresh().next_hop.filter(|_| *there);
        }
        (None, _) => {}
    }
}

/// Four services with every scheduler and two modes of NAT, some with several ports.
fn first() -> Vec<WantedService> {
    let backends: Vec<_> = (1..=3).map(|n| backend(n, Admin::Enabled, Health::Up, 1, true)).collect();
    let many = [PortSpec::Exact(80), PortSpec::Exact(443), PortSpec::Range(8000, 8009)];
    (1..=4u8).flat_map(|n| service(n, &many[..usize::from(n) % 3 + 1], 29, &backends)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_part_is_what_the_whole_would_be(
        history in proptest::collection::vec((proptest::collection::vec(any_change(), 1..4), 0..6u8), 1..12),
    ) {
        let mut rings = maglev::Cache::default();
        let mut wanted = first();
        let mut denied = Arc::new(Prefixes::new());
        let empty = Image::empty(4096, 64);
        let mut image = build(&wanted, &empty, &tunnel(), &BTreeSet::new(), &mut rings).unwrap();
        install(&mut image, &denied);
        let mut parts = 0;
        let mut index = Index::of(&image);
        for (changes, more) in history {
            let mut touched = BTreeSet::new();
            for (at, number, change) in &changes {
                let at = at % wanted.len();
                carry_out(&mut wanted[at], *number, change);
                touched.insert(at);
            }
            if more == 0 {
                denied = Arc::new(match denied.is_empty() {
                    true => [("198.51.100.0/24".parse().unwrap(), Verdict::Deny)].into_iter().collect(),
                    false => Prefixes::new(),
                });
            }
            // Ids and places that were freed a moment ago.
            let avoid: BTreeSet<u32> = if more == 1 { (20..24).collect() } else { BTreeSet::new() };
            image.resting = if more == 2 { vec![(100, 50)] } else { Vec::new() };
            let mut whole = build(&wanted, &image, &tunnel(), &avoid, &mut rings).unwrap();
            install(&mut whole, &denied);

            let part: Vec<_> = touched.iter().map(|at| wanted[*at].clone()).collect();
            match Part::build(&part, &image, &index, &denied, &tunnel(), &avoid, &mut rings) {
                Some(part) => {
                    parts += 1;
                    let actions = part.actions();
                    prop_assert_eq!(&actions, &diff(&image, &whole));
                    image.resting.clear();
                    for action in &actions {
                        image.apply(action);
                        index.apply(action);
                    }
                    index.backends.retain(|_, backends| !backends.is_empty());
                    prop_assert_eq!(&index, &Index::of(&image));
                    prop_assert_eq!(&image, &whole);
                }
                // Only changes of the listeners that NAT answers for are not a part's.
                None => {
                    let rewrites = |at: &usize| wanted[*at].spec.forward.rewrites();
                    prop_assert!(touched.iter().any(rewrites));
                    let toggled = |(_, _, change): &(usize, u8, Change)| matches!(change, Change::Toggle);
                    prop_assert!(changes.iter().any(toggled));
                    image = whole;
                    index = Index::of(&image);
                }
            }
        }
        // Nothing was proved if no part was built; histories of one step may have none.
        prop_assume!(parts > 0);
    }
}

#[test]
fn a_service_that_is_not_there_is_not_a_parts() {
    let wanted = first();
    let empty = Image::empty(4096, 64);
    let mut rings = maglev::Cache::default();
    let image = build(&wanted[1..], &empty, &tunnel(), &BTreeSet::new(), &mut rings).unwrap();
    let part = |wanted: &[WantedService], image: &Image| {
        Part::build(
            wanted,
            image,
            &Index::of(image),
            &Arc::default(),
            &tunnel(),
            &BTreeSet::new(),
            &mut maglev::Cache::default(),
        )
    };
    assert!(part(&wanted[..1], &image).is_none());
    assert!(part(&wanted[1..2], &image).is_some());
    let mut larger = wanted[1..2].to_vec();
    larger[0].ring_size = 31;
    assert!(part(&larger, &image).is_none(), "another ring is another service");
    let mut full = image.clone();
    full.backend_capacity = image.backends.len() as u32 + 1;
    let mut more = wanted[3..4].to_vec();
    more[0].backends.push(backend(9, Admin::Enabled, Health::Up, 1, true));
    assert!(part(&more, &full).is_none(), "the maps must grow");
}
