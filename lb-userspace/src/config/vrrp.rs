//! `[[vrrp]]`: virtual routers.

use super::{
    address,
    duration::format_duration,
    health::duration,
    reader::{Notes, Refusal, Section, Setting, text},
    schema,
    track::{self, TrackDraft},
};
use crate::model::{
    DEFAULT_PRIORITY, Family, HeldBy, MAX_ADVERT_INTERVAL, MAX_VRRP_ADDRESSES, MIN_ADVERT_INTERVAL,
    OWNER_PRIORITY, PairSpec, ServiceName, Tracked, VrrpName, VrrpSpec, VrrpVersion, not_unicast,
};
use ipnet::IpNet;
use serde_json::{Value, json};
use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    time::Duration,
};
use toml::de::DeTable;

const NAME: &str = "1 to 63 letters, digits, '-', '_' or '.', the first a letter or digit";
const INTERFACE: &str = "the name of an interface such as \"eth0\"";
const ADDRESSES: &str = "an array of addresses with their prefix lengths such as [\"192.0.2.10/24\"]";
const PEERS: &str = "an array of addresses such as [\"10.0.0.3\"]";
const LONGEST: Duration = Duration::from_secs(86_400);
/// Version 2 counts whole seconds in one octet.
const V2_LONGEST: Duration = Duration::from_secs(255);
/// Missed advertisements, where nothing is said (RFC 9568 section 6.1).
const DOWN_ADVERTS: u8 = 3;
const ANNOUNCE_REPEAT: u8 = 5;

/// A name and its weight, if it has one of its own.
type Weighed = (String, Option<i16>);

/// What could be read of a section.
pub(super) struct VrrpDraft<'a> {
    section: Section<'a>,
    name: Setting<VrrpName>,
    interface: Setting<String>,
    router_id: Setting<u8>,
    version: Setting<VrrpVersion>,
    priority: Setting<u8>,
    advert_interval: Setting<Duration>,
    addresses: Setting<Vec<(IpNet, usize)>>,
    preempt: Setting<bool>,
    preempt_delay: Setting<Duration>,
    startup_delay: Setting<Duration>,
    down_adverts: Setting<u8>,
    unicast_peers: Setting<Vec<(IpAddr, usize)>>,
    min_ttl: Setting<u8>,
    checksum: Setting<bool>,
    announce_repeat: Setting<u8>,
    announce_refresh: Setting<Duration>,
    held_by: Setting<HeldBy>,
    accept: Setting<bool>,
    track_interfaces: Setting<Vec<(Weighed, usize)>>,
    track_weight: Setting<u8>,
    track: TrackDraft,
}

/// An address with a prefix length, all of it where there is none.
fn virtual_address(text: &str) -> Result<IpNet, Refusal> {
    let expected = "an address with its prefix length such as \"192.0.2.10/24\"";
    let net = match text.parse::<IpNet>() {
        Ok(net) => net,
        Err(_) => text.parse::<IpAddr>().map(IpNet::from).map_err(|_| Refusal::expected(expected))?,
    };
    if let Some(kind) = not_unicast(net.addr()) {
        return Err(Refusal::expected("a unicast address").but(format!("this is {kind}")));
    }
    let network =
        net.prefix_len() < if net.addr().is_ipv4() { 31 } else { 127 } && net.network() == net.addr();
    if network || net.prefix_len() == 0 {
        return Err(Refusal::expected("the address of a host").but("this is a network"));
    }
    Ok(net)
}

pub(super) fn read<'a>(
    notes: &'a Notes<'a>,
    table: &'a DeTable<'a>,
    at: usize,
    number: usize,
) -> VrrpDraft<'a> {
    let shown = Section::peek(table, "name");
    let place = shown.as_ref().map_or(format!("vrrp {number}"), |name| format!("vrrp '{name}'"));
    let path = vec!["vrrp".to_owned(), shown.unwrap_or_else(|| number.to_string())];
    let section = Section::open(notes, table, at, place, path, &schema::VRRP);
    let list = |key, expected| section.list(key, expected, |v| address::unicast(text(v, expected)?));
    let unicast_peers =
        if section.is_empty_array("unicast_peers") { Setting::Absent } else { list("unicast_peers", PEERS) };
    let versions = [(2, VrrpVersion::V2), (3, VrrpVersion::V3)];
    let version = match section.integer::<u8>("version", 2, 3) {
        Setting::Is(number, at) => {
            let found = versions.iter().find(|(known, _)| *known == number);
            found.map_or(Setting::Refused, |(_, version)| Setting::Is(*version, at))
        }
        Setting::Absent => Setting::Absent,
        Setting::Refused => Setting::Refused,
    };
    let draft = VrrpDraft {
        name: section.text("name", NAME, |text| {
            text.parse().map_err(|error: crate::model::NameError| Refusal::expected(NAME).but(error.why))
        }),
        interface: section.text("interface", INTERFACE, address::interface),
        router_id: section.integer("router_id", 1, 255),
        version,
        priority: section.integer("priority", 1, OWNER_PRIORITY.into()),
        advert_interval: duration(&section, "advert_interval", MIN_ADVERT_INTERVAL, V2_LONGEST),
        addresses: section.list("addresses", ADDRESSES, |v| virtual_address(text(v, ADDRESSES)?)),
        preempt: section.switch("preempt"),
        preempt_delay: duration(&section, "preempt_delay", Duration::ZERO, LONGEST),
        startup_delay: duration(&section, "startup_delay", Duration::ZERO, LONGEST),
        down_adverts: section.integer("down_adverts", 1, 100),
        unicast_peers,
        min_ttl: section.integer("min_ttl", 1, 255),
        checksum: section.word("checksum", &[("pseudo-header", true), ("plain", false)], &[]),
        announce_repeat: section.integer("announce_repeat", 1, 100),
        announce_refresh: duration(&section, "announce_refresh", Duration::ZERO, LONGEST),
        held_by: section.word(
            "held_by",
            &[("interface", HeldBy::Interface), ("dataplane", HeldBy::Dataplane)],
            &[],
        ),
        accept: section.switch("accept"),
        track_interfaces: section.list("track_interfaces", address::INTERFACES, |v| {
            track::weighed(text(v, address::INTERFACES)?, address::interface, (-253, 0))
        }),
        track_weight: section.integer("track_weight", 0, 253),
        track: TrackDraft::read(&section),
        section,
    };
    for (key, expected) in [("name", NAME), ("interface", INTERFACE), ("addresses", ADDRESSES)] {
        if draft.section.position(key).is_none() {
            draft.section.missing(key, expected);
        }
    }
    if draft.section.position("router_id").is_none() {
        draft.section.missing("router_id", "an integer from 1 to 255, the same on both nodes");
    }
    draft
}

/// The names that there are.
pub(super) fn names(drafts: &[VrrpDraft<'_>]) -> BTreeSet<VrrpName> {
    drafts.iter().filter_map(|draft| draft.name.value().cloned()).collect()
}

/// Notes what no setting shows by itself. Without `services` nobody knows yet which there will be.
pub(super) fn check(drafts: &[VrrpDraft<'_>], parts: &PairSpec, services: Option<&BTreeSet<&ServiceName>>) {
    let mut names = HashMap::new();
    let mut routers = HashMap::new();
    let mut addresses = HashMap::new();
    for draft in drafts {
        let section = &draft.section;
        if let Some((name, at)) = draft.name.get() {
            if let Some(first) = names.get(name) {
                let first = section.notes.place(*first, at);
                let why = Refusal::expected("a name that no other [[vrrp]] has")
                    .but(format!("the one on {first} has it"));
                section.refuse(at, "name", format!("name = \"{name}\""), why);
                // Probably a copy: the rest is no mistake of its own.
                continue;
            }
            names.insert(name.clone(), at);
        }
        draft.track.check(section, parts, services);
        draft.check_version();
        draft.check_peers();
        draft.check_accept();
        for (net, at) in draft.addresses.value().into_iter().flatten() {
            if let Some(first) = addresses.insert(net.addr(), *at) {
                let first = section.notes.place(first, *at);
                let why = Refusal::expected("each address in one place").but(format!("{first} has it"));
                section.refuse(*at, "addresses", format!("addresses has \"{net}\""), why);
            }
        }
        let (Some(interface), Some((router_id, at))) = (draft.interface.value(), draft.router_id.get())
        else {
            continue;
        };
        for family in [Family::V4, Family::V6] {
            let has = draft
                .addresses
                .value()
                .into_iter()
                .flatten()
                .any(|(net, _)| Family::of(net.addr()) == family);
            if has && let Some(first) = routers.insert((interface.clone(), *router_id, family), at) {
                let first = section.notes.place(first, at);
                let why = Refusal::expected("a router id that is free on its interface")
                    .but(format!("{first} has it for the same kind of addresses"));
                section.refuse(at, "router_id", format!("router_id = {router_id}"), why);
                break;
            }
        }
    }
}

impl VrrpDraft<'_> {
    fn check_version(&self) {
        let version = match &self.version {
            Setting::Is(version, _) => *version,
            Setting::Absent => VrrpVersion::V3,
            Setting::Refused => return,
        };
        if let Some((interval, at)) = self.advert_interval.get() {
            let (fits, expected) = match version {
                VrrpVersion::V2 => (
                    interval.subsec_nanos() == 0 && !interval.is_zero(),
                    "whole seconds from \"1s\" to \"4m15s\"",
                ),
                VrrpVersion::V3 => (
                    interval.as_millis() % 10 == 0 && *interval <= MAX_ADVERT_INTERVAL,
                    "hundredths of a second from \"10ms\" to \"40s950ms\"",
                ),
            };
            if !fits {
                let found = format!("advert_interval = \"{}\"", format_duration(*interval));
                let why =
                    Refusal::expected(format!("{expected}: version {} knows no other", version.number()));
                self.section.refuse(at, "advert_interval", found, why);
            }
        }
        let mut counts = [0; 2];
        for (net, at) in self.addresses.value().into_iter().flatten() {
            let six = net.addr().is_ipv6();
            counts[usize::from(six)] += 1;
            if six && version == VrrpVersion::V2 {
                let why =
                    Refusal::expected("IPv4 addresses: version 2 knows no others").but("use version = 3");
                self.section.refuse(*at, "addresses", format!("addresses has \"{net}\""), why);
                break;
            }
            if counts[usize::from(six)] > MAX_VRRP_ADDRESSES {
                let why = Refusal::expected(format!("at most {MAX_VRRP_ADDRESSES} of IPv4 and of IPv6"))
                    .but("put the others into another [[vrrp]]");
                self.section.refuse(*at, "addresses", format!("addresses has \"{net}\""), why);
                break;
            }
        }
    }

    fn check_accept(&self) {
        let Some((true, at)) = self.accept.get().map(|(accept, at)| (*accept, at)) else { return };
        if self.held_by.value() == Some(&HeldBy::Dataplane) {
            let why = Refusal::expected("accept = false, or held_by = \"interface\" with it").but(
                "an address that the dataplane holds is not the host's; pings are answered all the same",
            );
            self.section.refuse(at, "accept", "accept = true".to_owned(), why);
        }
    }

    fn check_peers(&self) {
        let peers = self.unicast_peers.value();
        if peers.is_none()
            && let (Some((ttl, at)), Setting::Absent) = (self.min_ttl.get(), &self.unicast_peers)
        {
            let why = Refusal::expected("unicast_peers with it")
                .but("multicast has a TTL of 255 always; remove it");
            self.section.refuse(at, "min_ttl", format!("min_ttl = {ttl}"), why);
        }
        let (Some(peers), Some((addresses, at))) = (peers, self.addresses.get()) else { return };
        for family in [Family::V4, Family::V6] {
            let has = addresses.iter().any(|(net, _)| Family::of(net.addr()) == family);
            let peer = peers.iter().any(|(peer, _)| Family::of(*peer) == family);
            if has && !peer {
                let kind = if family == Family::V4 { "IPv4" } else { "IPv6" };
                let why = Refusal::expected(format!("an {kind} address in unicast_peers"))
                    .but(format!("{kind} addresses are advertised over {kind}"));
                self.section.refuse(at, "addresses", format!("addresses has some of {kind}"), why);
            }
        }
    }

    /// The virtual router, if nothing that it needs was refused.
    pub(super) fn build(self, parts: &PairSpec) -> Option<VrrpSpec> {
        let s = &self.section;
        let plain = |list: &Setting<Vec<(IpNet, usize)>>| match list {
            Setting::Is(list, at) => Setting::Is(list.iter().map(|(net, _)| *net).collect(), *at),
            Setting::Absent => Setting::Absent,
            Setting::Refused => Setting::Refused,
        };
        let peers = match &self.unicast_peers {
            Setting::Is(list, at) => Setting::Is(list.iter().map(|(peer, _)| *peer).collect(), *at),
            Setting::Absent => Setting::Absent,
            Setting::Refused => Setting::Refused,
        };
        let weight = s.pick("track_weight", &self.track_weight, 0);
        let tracked = match &self.track_interfaces {
            Setting::Is(list, at) => {
                let own =
                    |own: Option<i16>| own.map(i16::unsigned_abs).and_then(|own| u8::try_from(own).ok());
                let each = list.iter().map(|((name, weight_of), _)| Tracked {
                    name: name.clone(),
                    weight: own(*weight_of).unwrap_or(weight),
                });
                Setting::Is(each.collect(), *at)
            }
            Setting::Absent => Setting::Absent,
            Setting::Refused => Setting::Refused,
        };
        let addresses: Vec<IpNet> = s.pick("addresses", &plain(&self.addresses), Vec::new());
        let held_by = s.pick("held_by", &self.held_by, HeldBy::Interface);
        self.name.value()?;
        Some(VrrpSpec {
            name: s.pick("name", &self.name, self.name.value()?.clone()),
            interface: s.pick("interface", &self.interface, String::new()),
            router_id: s.pick("router_id", &self.router_id, 0),
            version: s.pick("version", &self.version, VrrpVersion::V3),
            priority: s.pick("priority", &self.priority, DEFAULT_PRIORITY),
            advert_interval: s.pick("advert_interval", &self.advert_interval, Duration::from_secs(1)),
            addresses,
            preempt: s.pick("preempt", &self.preempt, true),
            preempt_delay: s.pick("preempt_delay", &self.preempt_delay, Duration::ZERO),
            startup_delay: s.pick("startup_delay", &self.startup_delay, Duration::ZERO),
            down_adverts: s.pick("down_adverts", &self.down_adverts, DOWN_ADVERTS),
            unicast_peers: s.pick("unicast_peers", &peers, Vec::new()),
            min_ttl: self.min_ttl.value().map(|ttl| s.pick("min_ttl", &self.min_ttl, *ttl)),
            pseudo_header: s.pick("checksum", &self.checksum, true),
            announce_repeat: s.pick("announce_repeat", &self.announce_repeat, ANNOUNCE_REPEAT),
            announce_refresh: s.pick("announce_refresh", &self.announce_refresh, Duration::ZERO),
            held_by,
            accept: s.pick("accept", &self.accept, held_by == HeldBy::Interface),
            track_interfaces: s.pick("track_interfaces", &tracked, Vec::new()),
            track: self.track.build(s, parts),
            group: parts
                .groups
                .iter()
                .find(|group| self.name.value().is_some_and(|name| group.members.contains(name)))
                .map(|group| group.name.clone()),
        })
    }
}

/// Every setting of a virtual router: key and value, as in the file.
pub(super) fn entries(spec: &VrrpSpec) -> Vec<(&'static str, Value)> {
    let time = |duration| json!(format_duration(duration));
    let addresses: Vec<String> = spec.addresses.iter().map(IpNet::to_string).collect();
    let mut entries = vec![
        ("name", json!(spec.name)),
        ("interface", json!(spec.interface)),
        ("router_id", json!(spec.router_id)),
        ("version", json!(spec.version.number())),
        ("priority", json!(spec.priority)),
        ("advert_interval", time(spec.advert_interval)),
        ("addresses", json!(addresses)),
        ("preempt", json!(spec.preempt)),
        ("preempt_delay", time(spec.preempt_delay)),
        ("startup_delay", time(spec.startup_delay)),
        ("down_adverts", json!(spec.down_adverts)),
        ("unicast_peers", json!(spec.unicast_peers)),
        ("checksum", json!(if spec.pseudo_header { "pseudo-header" } else { "plain" })),
        ("announce_repeat", json!(spec.announce_repeat)),
        ("announce_refresh", time(spec.announce_refresh)),
        ("held_by", json!(spec.held_by.name())),
        ("accept", json!(spec.accept)),
    ];
    entries.extend(spec.min_ttl.map(|ttl| ("min_ttl", json!(ttl))));
    if let [first, rest @ ..] = spec.track_interfaces.as_slice() {
        let alike = rest.iter().all(|tracked| tracked.weight == first.weight);
        let shown = |tracked: &Tracked| match alike {
            true => tracked.name.clone(),
            false => track::shown(&tracked.name, -i16::from(tracked.weight)),
        };
        let names: Vec<String> = spec.track_interfaces.iter().map(shown).collect();
        entries.push(("track_interfaces", json!(names)));
        if alike {
            entries.push(("track_weight", json!(first.weight)));
        }
    }
    entries.extend(track::entries(&spec.track));
    entries
}
