//! Parts of services, and rings that follow another node.

use super::{
    tests::{backend, service, tunnel},
    *,
};
use crate::{
    config, maglev,
    model::{Admin, Health, PortSpec, SnatSpec},
};
use lb_common::abi::{Slot, SlotState};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

fn instances() -> Instances {
    let router = |name: &str, id: u8, addresses: &str| {
        format!(
            "[[vrrp]]\nname = \"{name}\"\ninterface = \"eth0\"\nrouter_id = {id}\naddresses = [{addresses}]\n"
        )
    };
    let text = format!(
        "[node]\ninterfaces = [\"eth0\"]\n{}{}",
        router("left", 51, "\"192.0.2.1/24\", \"192.0.2.11/24\""),
        router("right", 52, "\"192.0.2.2/24\""),
    );
    Instances::of(&config::parse_on("test.toml", &text, "node").unwrap().vrrp)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn wanted(addresses: &[&str]) -> WantedService {
    let backends = [1, 2, 3].map(|n| backend(n, Admin::Enabled, Health::Up, 1, true));
    let mut service = service(1, &[PortSpec::Exact(80)], 101, &backends).remove(0);
    service.spec.addresses = addresses.iter().map(|address| ip(address)).collect();
    service
}

fn made(wanted: &[WantedService], observed: &Image) -> Image {
    build(wanted, observed, &tunnel(), &BTreeSet::new(), &mut maglev::Cache::default()).unwrap()
}

#[test]
fn a_service_of_one_instance_stays_as_it_was() {
    for addresses in [&["192.0.2.1", "192.0.2.11"][..], &["192.0.2.2"], &["192.0.2.9", "192.0.2.8"]] {
        let service = wanted(addresses);
        assert_eq!(split(vec![service.clone()], &instances()), [service]);
    }
}

#[test]
fn a_service_of_several_instances_is_one_in_each() {
    let whole = wanted(&["192.0.2.2", "192.0.2.1", "192.0.2.9", "192.0.2.11"]);
    let parts = split(vec![whole.clone()], &instances());
    let addresses: Vec<_> = parts.iter().map(|part| part.spec.addresses.clone()).collect();
    assert_eq!(
        addresses,
        [vec![ip("192.0.2.2")], vec![ip("192.0.2.1"), ip("192.0.2.11")], vec![ip("192.0.2.9")]]
    );
    assert_eq!(parts[0].part, 0);
    assert_eq!(parts.iter().map(|part| part.part).collect::<BTreeSet<_>>().len(), 3);

    // Each with its own ring and its own backends, all rings alike at rest but for the ids.
    let empty = Image::empty(1 << 12, 64);
    let image = made(&parts, &empty);
    let ids = image.service_ids(whole.spec.name.as_str());
    assert_eq!((ids.len(), image.backends.len()), (3, 9));
    let owners = |id: &u32| -> Vec<String> {
        let name = |slot: &Slot| name_of(&image.backends[&slot.owner()].identity).to_owned();
        image.rings[id].iter().map(name).collect()
    };
    assert!(ids.iter().all(|id| owners(id) == owners(&ids[0])));
    // The same again is no change; and whoever was there before keeps its ring.
    assert_eq!(made(&parts, &image), image);
    let before = made(&[whole], &empty);
    let after = made(&parts, &before);
    let [id] = before.service_ids("s1-0")[..] else { panic!() };
    assert_eq!(after.rings[&id], before.rings[&id]);
}

#[test]
fn pool_addresses_go_with_their_instance() {
    let mut whole = wanted(&["192.0.2.1", "192.0.2.2"]);
    let pool = |service: &WantedService| service.spec.snat.as_ref().unwrap().addresses.clone();
    let addresses = [ip("192.0.2.11"), ip("10.0.0.9"), ip("192.0.2.2")];
    whole.spec.snat = Some(SnatSpec { addresses: addresses.to_vec(), ports: (1024, 2048) });
    let parts = split(vec![whole.clone()], &instances());
    assert_eq!(pool(&parts[0]), [ip("192.0.2.11"), ip("10.0.0.9")]);
    assert_eq!(pool(&parts[1]), [ip("10.0.0.9"), ip("192.0.2.2")]);
    // Better sources of another instance than none.
    whole.spec.snat = Some(SnatSpec { addresses: vec![ip("192.0.2.11")], ports: (1024, 2048) });
    assert_eq!(pool(&split(vec![whole], &instances())[1]), [ip("192.0.2.11")]);
}

/// The master's words in its own numbers: backends 71 to 74, the last of which this node does not have.
fn followed() -> Arc<Followed> {
    let names = [1u8, 2, 3, 4].map(|n| (70 + u32::from(n), (format!("web{n}"), IpAddr::from([10, 0, 0, n]))));
    let states = [SlotState::Plain, SlotState::Moving, SlotState::Tracked];
    let word = |i: u16| {
        let state = states[usize::from(i) % 3];
        let (owner, home) = (71 + u32::from(i) % 4, 71 + u32::from(i / 4) % 4);
        Slot::new(owner, if state == SlotState::Moving { home } else { owner }, state, i)
    };
    Arc::new(Followed { words: (0..101).map(word).collect(), names: BTreeMap::from(names), fleet: None })
}

#[test]
fn a_followed_ring_is_the_masters_and_no_rule_touches_it() {
    let mut service = wanted(&["192.0.2.1"]);
    let mut image = made(&[service.clone()], &Image::empty(1 << 12, 64));
    let id = image.service_id("s1-0").unwrap();
    let followed = followed();
    let action = image.follow(id, &followed).expect("of the same size");
    image.apply(&action);
    let name = |image: &Image, id: u32| image.backends.get(&id).map(|b| name_of(&b.identity).to_owned());
    let check = |image: &Image, missing: &[&str]| {
        for (mine, theirs) in image.rings[&id].iter().zip(&followed.words) {
            assert_eq!((mine.state(), mine.epoch()), (theirs.state(), theirs.epoch()));
            for (mine, theirs) in [(mine.owner(), theirs.owner()), (mine.home(), theirs.home())] {
                let theirs = Some(followed.names[&theirs].0.clone());
                assert_eq!(name(image, mine), theirs.filter(|name| !missing.contains(&name.as_str())));
            }
        }
    };
    check(&image, &["web4"]);

    // What differs here changes backends, not the ring.
    service.backends[0].health = Health::Down;
    service.backends[1].admin = Admin::Draining;
    let next = made(&[service.clone()], &image);
    assert_eq!(next.rings, image.rings);
    assert!(next.followed.contains_key(&id) && next.backends != image.backends);
    // Who comes is known at once, who goes is nobody.
    service.backends.push(backend(4, Admin::Enabled, Health::Up, 1, true));
    check(&made(&[service.clone()], &next), &[]);
    service.backends.truncate(2);
    check(&made(&[service.clone()], &next), &["web3", "web4"]);
    let service = {
        let mut all = service;
        all.backends = wanted(&["192.0.2.1"]).backends;
        all
    };

    // Nothing settles, nothing is cleared.
    let begun = Instant::now();
    let mut tracking = Tracking::new(begun);
    let long_after = begun + Duration::from_secs(1000);
    assert_eq!(tracking.settle(&next, long_after), []);
    assert_eq!(tracking.clear(&next, &Walk::default(), long_after), []);

    // At a takeover it begins anew, with the differences as changes: a living home is never left.
    let mut taken = next.clone();
    taken.followed.remove(&id);
    tracking.restart([id], &taken, long_after);
    assert_eq!(tracking.settle(&taken, long_after + Duration::from_secs(299)), []);
    assert_ne!(tracking.settle(&taken, long_after + Duration::from_secs(301)), []);
    let mut service = service;
    service.backends[0].health = Health::Down;
    let own = made(&[service], &taken);
    for (before, after) in taken.rings[&id].iter().zip(&own.rings[&id]) {
        let down = name(&taken, before.home()).as_deref() == Some("web1");
        if before.home() != 0 && !down {
            assert_eq!(after.home(), before.home(), "{before:?} {after:?}");
        }
        assert_ne!(name(&own, after.owner()).as_deref(), Some("web1"));
    }
}

#[test]
fn a_ring_of_another_size_is_not_followed() {
    let mut image = made(&[wanted(&["192.0.2.1"])], &Image::empty(1 << 12, 64));
    let id = image.service_id("s1-0").unwrap();
    let other = Followed { words: (0..103).map(|_| Slot(0)).collect(), names: BTreeMap::new(), fleet: None };
    assert_eq!(image.follow(id, &Arc::new(other)), None);
    assert!(image.followed.is_empty());
}

/// Who forwards by the words of a fleet's authority: new flows go home until the owner is there and lives here, too.
#[test]
fn a_follower_that_forwards_sends_new_flows_to_who_lives_here() {
    let service = wanted(&["192.0.2.9"]);
    let mut image = made(std::slice::from_ref(&service), &Image::empty(1 << 12, 64));
    let id = image.service_id("s1-0").unwrap();
    let followed = Arc::new(Followed { fleet: Some(3), ..(*followed()).clone() });
    let action = image.follow(id, &followed).expect("of the same size");
    image.apply(&action);
    let name = |image: &Image, id: u32| image.backends.get(&id).map(|b| name_of(&b.identity).to_owned());
    let check = |image: &Image, lives: &[&str]| {
        for (mine, theirs) in image.rings[&id].iter().zip(&followed.words) {
            assert_eq!((mine.state(), mine.epoch()), (theirs.state(), theirs.epoch()));
            let [owner, home] = [theirs.owner(), theirs.home()].map(|id| followed.names[&id].0.as_str());
            let known = |name: &str| (name != "web4").then(|| name.to_owned());
            assert_eq!(name(image, mine.home()), known(home));
            let late = owner != home && !lives.contains(&owner) && lives.contains(&home);
            assert_eq!(name(image, mine.owner()), known(if late { home } else { owner }), "{theirs:?}");
        }
    };
    check(&image, &["web1", "web2", "web3"]);
    let mut down = service.clone();
    down.backends[0].health = Health::Down;
    let next = made(&[down], &image);
    check(&next, &["web2", "web3"]);
    let back = made(&[service], &next);
    check(&back, &["web1", "web2", "web3"]);
    assert_eq!(back.rings, image.rings);

    // To decide no more is to follow oneself.
    let mut frozen = back.clone();
    frozen.followed.clear();
    assert!(frozen.freeze(id, 4) && !frozen.freeze(id + 100, 4));
    assert_eq!(frozen.followed[&id].fleet, Some(4));
    let mut down = wanted(&["192.0.2.9"]);
    down.backends[0].admin = Admin::Draining;
    assert_eq!(made(&[down], &frozen).rings, frozen.rings);
}

/// Others may have had the word later, or have flows that this node does not know of.
#[test]
fn shared_slots_settle_later() {
    let service = wanted(&["192.0.2.9"]);
    let image = made(std::slice::from_ref(&service), &Image::empty(1 << 12, 64));
    let id = image.service_id("s1-0").unwrap();
    let mut drained = service;
    drained.backends[0].admin = Admin::Draining;
    let moving = made(&[drained], &image);
    let begun = Instant::now();
    let at = |seconds: u64| begun + Duration::from_secs(seconds);
    let mut tracking = Tracking::new(begun);
    tracking.note_changes(&image, &moving, begun);
    // The idle timeout of the test's services is 300 s.
    assert_ne!(tracking.settle(&moving, at(301)), []);
    tracking.note_shared([id], begun);
    assert_eq!(tracking.settle(&moving, at(309)), []);
    assert_ne!(tracking.settle(&moving, at(311)), []);
    tracking.note_shared([id], at(100));
    assert_eq!(tracking.settle(&moving, at(409)), []);
    let settled = tracking.settle(&moving, at(411));
    let mut tracked = moving.clone();
    settled.iter().for_each(|action| tracked.apply(action));
    tracking.note_changes(&moving, &tracked, at(411));
    assert_eq!(tracking.clear(&tracked, &Walk::default(), at(421)), []);
    tracking.note_shared([id], at(420));
    assert_eq!(tracking.clear(&tracked, &Walk::default(), at(430)), [], "somebody was lost just now");
    assert_ne!(tracking.clear(&tracked, &Walk::default(), at(432)), []);
}
