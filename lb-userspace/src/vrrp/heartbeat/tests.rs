use super::{
    super::{
        keeper::{Interface, Interfaces},
        packet::Advert,
    },
    judge::{Missing, effect, gated, mismatch, missing, together},
};
use crate::model::{Family, HeldBy, TrackSpec, Tracked, VrrpSpec, VrrpVersion};
use std::time::Duration;

fn spec() -> VrrpSpec {
    VrrpSpec {
        name: "public".parse().unwrap(),
        interface: "eth0".to_owned(),
        router_id: 51,
        version: VrrpVersion::V3,
        priority: 150,
        advert_interval: Duration::from_secs(1),
        addresses: vec!["192.0.2.10/24".parse().unwrap(), "2001:db8::10/64".parse().unwrap()],
        preempt: true,
        preempt_delay: Duration::ZERO,
        startup_delay: Duration::ZERO,
        down_adverts: 3,
        unicast_peers: Vec::new(),
        min_ttl: None,
        pseudo_header: true,
        announce_repeat: 5,
        announce_refresh: Duration::ZERO,
        held_by: HeldBy::Interface,
        accept: true,
        track_interfaces: vec![Tracked { name: "eth1".to_owned(), weight: 60 }],
        track: TrackSpec::default(),
        group: None,
    }
}

fn interface(running: bool, nets: &[&str]) -> Interface {
    let nets = nets.iter().map(|net| net.parse().unwrap()).collect();
    Interface { running, nets, port4: None, port6: None, trouble: None }
}

#[test]
fn what_is_missing_is_told_and_weighed() {
    let good = || interface(true, &["10.0.0.1/24", "fe80::1/64"]);
    let causes = |interfaces: &Interfaces, others: &[Missing]| {
        let found = missing(&spec(), interfaces, others);
        let (fault, weight) = effect(&found);
        (found.into_iter().map(|missing| missing.cause).collect::<Vec<_>>().join("; "), fault, weight)
    };
    let with = |eth0: Option<Interface>, eth1: Option<Interface>| -> Interfaces {
        [("eth0", eth0), ("eth1", eth1)].into_iter().filter_map(|(n, i)| Some((n.to_owned(), i?))).collect()
    };
    let both = with(Some(good()), Some(interface(true, &[])));
    assert_eq!(causes(&both, &[]), (String::new(), false, 0));
    let bonus = [Missing { cause: "file load says 5".to_owned(), weight: -5 }];
    assert_eq!(causes(&both, &bonus), ("file load says 5".to_owned(), false, 5));
    let no_track = with(Some(good()), Some(interface(false, &[])));
    assert_eq!(causes(&no_track, &[]), ("tracked interface eth1 is down".to_owned(), false, -60));
    let down = with(Some(interface(false, &["10.0.0.1/24"])), Some(good()));
    assert_eq!(causes(&down, &[]), ("interface eth0 is down or has no carrier".to_owned(), true, 0));
    let gone = with(None, Some(good()));
    assert_eq!(causes(&gone, &[]), ("interface eth0 does not exist".to_owned(), true, 0));
    let four_only = with(Some(interface(true, &["10.0.0.1/24"])), Some(good()));
    let expected = "interface eth0 has no IPv6 link-local address of its own";
    assert_eq!(causes(&four_only, &[]), (expected.to_owned(), true, 0));
    let others = [
        Missing { cause: "no backend of www is up".to_owned(), weight: 30 },
        Missing { cause: "detached".to_owned(), weight: 0 },
    ];
    assert_eq!(causes(&both, &others), ("no backend of www is up; detached".to_owned(), true, -30));
}

#[test]
fn a_group_shares_what_is_missing_once() {
    let missing = |cause: &str, weight| Missing { cause: cause.to_owned(), weight };
    let (one, two) = ([missing("a", 10), missing("b", 20)], [missing("b", 20), missing("c", 0)]);
    let all = together([&one[..], &two[..], &[]]);
    assert_eq!(all, [missing("a", 10), missing("b", 20), missing("c", 0)]);
    assert_eq!(effect(&all), (true, -30));
    // Nothing overflows, however much is tracked.
    assert_eq!(effect(&vec![missing("x", i16::MAX); 3]), (false, i16::MIN));
}

#[test]
fn a_gate_is_closed_for_a_whole_group() {
    let named = |name: &str, group: Option<&str>| VrrpSpec {
        name: name.parse().unwrap(),
        group: group.map(|group| group.parse().unwrap()),
        ..spec()
    };
    let specs = [named("a", Some("site")), named("b", Some("site")), named("c", None), named("d", None)];
    let closed = |names: &[&str]| {
        let names: Vec<_> = names.iter().map(|name| name.parse().unwrap()).collect();
        let closed = gated(specs.iter(), &names).into_iter().map(|name| name.to_string());
        closed.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(closed(&["a"]), "a b", "else one of them would be taken over and the other one refused");
    assert_eq!(closed(&["c"]), "c");
    assert_eq!(closed(&[]), "");
}

#[test]
fn differences_between_the_nodes_are_told() {
    let advert = |interval, addresses: &[&str]| Advert {
        version: VrrpVersion::V3,
        router_id: 51,
        priority: 100,
        interval: Duration::from_millis(interval),
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
    };
    assert_eq!(mismatch(&spec(), &advert(1000, &["192.0.2.10"]), Family::V4), None);
    assert_eq!(
        mismatch(&spec(), &advert(1000, &["192.0.2.11", "192.0.2.10"]), Family::V4).as_deref(),
        Some("it has the addresses 192.0.2.10, 192.0.2.11; here they are 192.0.2.10")
    );
    assert_eq!(
        mismatch(&spec(), &advert(100, &["2001:db8::10"]), Family::V6).as_deref(),
        Some("its interval is 100 ms; here it is 1000 ms")
    );
}
