//! What virtual routers watch: `track_*` of `[[vrrp]]`, `[[vrrp_group]]`, `[[vrrp_script]]`, `[[vrrp_file]]` and `[[bfd]]`.

use super::{
    address,
    checks::{SYSTEM_USER, is_system_user},
    duration::format_duration,
    health::{COMMAND, command, duration},
    reader::{Notes, Refusal, Section, Setting, integer, text, wrong_type},
    schema,
};
use crate::model::{
    BfdSpec, FileSpec, GroupSpec, PairSpec, ScriptSpec, ServiceName, TrackSpec, Tracked, TrackedFile,
    VrrpName,
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};
use toml::de::{DeTable, DeValue};

const NAME: &str = "1 to 63 letters, digits, '-', '_' or '.', the first a letter or digit";
const LIST: &str = "an array of names, each with a weight if need be, such as [\"one\", \"two weight -20\"]";
const MEMBERS: &str = "an array of the names of at least two [[vrrp]]";
const SESSIONS: &str = "an array of names of [[bfd]]";
const FILE: &str = "an absolute path such as \"/run/lbd-load\"";
/// As keepalived's: a file's number times more is a fault.
const MAX_FILE_WEIGHT: i64 = 254;
const LONGEST: Duration = Duration::from_secs(3600);

fn name<N: FromStr<Err = crate::model::NameError>>(text: &str) -> Result<N, Refusal> {
    text.parse().map_err(|error: crate::model::NameError| Refusal::expected(NAME).but(error.why))
}

/// `name`, or `name weight -20` as in keepalived; weights from `lowest` to `highest`.
pub(super) fn weighed<N>(
    text: &str,
    parse: impl FnOnce(&str) -> Result<N, Refusal>,
    (lowest, highest): (i64, i64),
) -> Result<(N, Option<i16>), Refusal> {
    let words: Vec<&str> = text.split_whitespace().collect();
    match words.as_slice() {
        [only, "weight", weight] => {
            let weight = weight.parse::<i64>().ok().filter(|weight| (lowest..=highest).contains(weight));
            let weight = weight.and_then(|weight| i16::try_from(weight).ok());
            let mut why = Refusal::expected(format!("a weight from {lowest} to {highest}"));
            if highest == 0 {
                why = why.but("it is taken off the priority while that is missing; 0 is a fault");
            }
            Ok((parse(only)?, Some(weight.ok_or(why)?)))
        }
        _ => Ok((parse(text)?, None)),
    }
}

/// A weight that is taken off, as a positive number.
fn taken(weight: i16) -> u8 {
    u8::try_from(weight.unsigned_abs()).unwrap_or(u8::MAX)
}

/// What can be taken off: more than 253 no priority has.
const TAKEN: (i64, i64) = (-253, 0);

type Weighed<N> = Setting<Vec<((N, Option<i16>), usize)>>;

/// The `track_*` of one `[[vrrp]]`, but for the interfaces.
pub(super) struct TrackDraft {
    scripts: Weighed<VrrpName>,
    files: Weighed<VrrpName>,
    services: Weighed<ServiceName>,
    xdp: Setting<Option<u8>>,
    peer_config: Setting<Option<u8>>,
    bfd: Setting<Vec<(VrrpName, usize)>>,
}

/// A fault, a weight, or nothing.
fn grade(value: &DeValue<'_>, fault: bool) -> Result<Option<u8>, Refusal> {
    let expected = match fault {
        true => "true (a fault), false, or a weight from -253 to -1",
        false => "false or a weight from -253 to -1",
    };
    match value {
        DeValue::Boolean(false) => Ok(None),
        DeValue::Boolean(true) if fault => Ok(Some(0)),
        DeValue::Boolean(true) => Err(Refusal::expected(expected)
            .but("both nodes see that they differ: with a fault none of them would be master")),
        DeValue::Integer(_) => {
            let weight = integer(value, expected)?.filter(|weight| (TAKEN.0..0).contains(weight));
            let weight = weight.and_then(|weight| i16::try_from(weight).ok());
            weight.map(|weight| Some(taken(weight))).ok_or_else(|| Refusal::expected(expected))
        }
        _ => wrong_type(expected),
    }
}

impl TrackDraft {
    pub(super) fn read(section: &Section<'_>) -> Self {
        Self {
            scripts: section.list("track_scripts", LIST, |v| weighed(text(v, LIST)?, name, TAKEN)),
            files: section.list("track_files", LIST, |v| {
                weighed(text(v, LIST)?, name, (-MAX_FILE_WEIGHT, MAX_FILE_WEIGHT))
            }),
            services: section.list("track_services", LIST, |v| weighed(text(v, LIST)?, name, TAKEN)),
            xdp: section.read("track_xdp", |value| grade(value, true)),
            peer_config: section.read("track_peer_config", |value| grade(value, false)),
            bfd: section.list("track_bfd", SESSIONS, |v| name(text(v, SESSIONS)?)),
        }
    }

    /// Notes names that nothing has; of services only where it is known which there are.
    pub(super) fn check(
        &self,
        section: &Section<'_>,
        parts: &PairSpec,
        services: Option<&BTreeSet<&ServiceName>>,
    ) {
        let known = |key: &'static str, name: &str, at: usize, there: bool, header: &str| {
            if !there {
                let why = Refusal::expected(format!("the name of a {header} of this configuration"));
                section.refuse(at, key, format!("{key} has \"{name}\""), why);
            }
        };
        for ((name, _), at) in self.scripts.value().into_iter().flatten() {
            let there = parts.scripts.iter().any(|script| script.name == *name);
            known("track_scripts", name.as_str(), *at, there, "[[vrrp_script]]");
        }
        for ((name, _), at) in self.files.value().into_iter().flatten() {
            let there = parts.files.iter().any(|file| file.name == *name);
            known("track_files", name.as_str(), *at, there, "[[vrrp_file]]");
        }
        for ((name, _), at) in self.services.value().into_iter().flatten() {
            let there = services.is_none_or(|services| services.contains(name));
            known("track_services", name.as_str(), *at, there, "[[service]]");
        }
        for (name, at) in self.bfd.value().into_iter().flatten() {
            let there = parts.bfd.iter().any(|session| session.name == *name);
            known("track_bfd", name.as_str(), *at, there, "[[bfd]]");
        }
    }

    pub(super) fn build(&self, section: &Section<'_>, parts: &PairSpec) -> TrackSpec {
        let default = TrackSpec::default();
        let script = |name: &VrrpName| parts.scripts.iter().find(|script| script.name == *name);
        let file = |name: &VrrpName| parts.files.iter().find(|file| file.name == *name);
        let scripts = self.scripts.clone().map(|list| {
            let each = list.into_iter().map(|((name, weight), _)| {
                let weight = weight.map_or_else(|| script(&name).map_or(0, |script| script.weight), taken);
                Tracked { name, weight }
            });
            each.collect()
        });
        let files = self.files.clone().map(|list| {
            let each = list.into_iter().map(|((name, weight), _)| {
                let weight = weight.unwrap_or_else(|| file(&name).map_or(0, |file| file.weight));
                TrackedFile { name, weight }
            });
            each.collect()
        });
        let services = self.services.clone().map(|list| {
            let each =
                list.into_iter().map(|((name, weight), _)| Tracked { name, weight: weight.map_or(0, taken) });
            each.collect()
        });
        let bfd = self.bfd.clone().map(|list| list.into_iter().map(|(name, _)| name).collect());
        TrackSpec {
            scripts: section.pick("track_scripts", &scripts, default.scripts),
            files: section.pick("track_files", &files, default.files),
            services: section.pick("track_services", &services, default.services),
            xdp: section.pick("track_xdp", &self.xdp, default.xdp),
            peer_config: section.pick("track_peer_config", &self.peer_config, default.peer_config),
            bfd: section.pick("track_bfd", &bfd, default.bfd),
        }
    }
}

/// With its weight, as in the file.
pub(super) fn shown(name: &dyn std::fmt::Display, weight: i16) -> String {
    format!("{name} weight {weight}")
}

/// Keys and values of a virtual router's `track_*`.
pub(super) fn entries(track: &TrackSpec) -> Vec<(&'static str, Value)> {
    let off = |weight: u8| -i16::from(weight);
    let grade = |grade: Option<u8>| match grade {
        None => json!(false),
        Some(0) => json!(true),
        Some(weight) => json!(off(weight)),
    };
    let mut entries = vec![("track_xdp", grade(track.xdp)), ("track_peer_config", grade(track.peer_config))];
    let mut list = |key, names: Vec<String>| {
        if !names.is_empty() {
            entries.push((key, json!(names)));
        }
    };
    list("track_scripts", track.scripts.iter().map(|t| shown(&t.name, off(t.weight))).collect());
    list("track_files", track.files.iter().map(|t| shown(&t.name, t.weight)).collect());
    list("track_services", track.services.iter().map(|t| shown(&t.name, off(t.weight))).collect());
    list("track_bfd", track.bfd.iter().map(ToString::to_string).collect());
    entries
}

/// A section with a name, opened.
fn open<'a>(
    notes: &'a Notes<'a>,
    ((table, at), number): ((&'a DeTable<'a>, usize), usize),
    kind: &'static str,
    schema: &'static schema::Schema,
    names: &mut HashMap<String, usize>,
) -> (Section<'a>, Option<VrrpName>) {
    let shown = Section::peek(table, "name");
    let place = shown.as_ref().map_or(format!("{kind} {number}"), |name| format!("{kind} '{name}'"));
    let path = vec![kind.to_owned(), shown.unwrap_or_else(|| number.to_string())];
    let section = Section::open(notes, table, at, place, path, schema);
    let found = section.text("name", NAME, name::<VrrpName>);
    if section.position("name").is_none() {
        section.missing("name", NAME);
    }
    if let Some((name, at)) = found.get()
        && let Some(first) = names.insert(name.to_string(), at)
    {
        let first = notes.place(first, at);
        let why = Refusal::expected(format!("a name that no other [[{kind}]] has"))
            .but(format!("the one on {first} has it"));
        section.refuse(at, "name", format!("name = \"{name}\""), why);
    }
    let name = found.value().map(|name| section.pick("name", &found, name.clone()));
    (section, name)
}

/// Every `[[...]]` of one key.
pub(super) type Tables<'a> = Vec<((&'a DeTable<'a>, usize), usize)>;

pub(super) fn read_scripts<'a>(notes: &'a Notes<'a>, tables: Tables<'a>) -> Vec<ScriptSpec> {
    let mut names = HashMap::new();
    let read = |table| {
        let (section, name) = open(notes, table, "vrrp_script", &schema::VRRP_SCRIPT, &mut names);
        let command = command(&section);
        if section.position("command").is_none() {
            section.missing("command", COMMAND);
        }
        let interval = duration(&section, "interval", Duration::from_millis(10), LONGEST);
        let timeout = duration(&section, "timeout", Duration::from_millis(10), LONGEST);
        let user = section.text("user", SYSTEM_USER, |text| match is_system_user(text) {
            true => Ok(text.to_owned()),
            false => Err(Refusal::expected(SYSTEM_USER)),
        });
        let (rise, fall) = (section.integer("rise", 1, 255), section.integer("fall", 1, 255));
        let initial = section.word("initial", &[("up", true), ("down", false)], &[]);
        let weight = section.integer::<i16>("weight", TAKEN.0, TAKEN.1);
        let interval = section.pick("interval", &interval, Duration::from_secs(1));
        let words = command.value()?.clone();
        Some(ScriptSpec {
            name: name?,
            command: section.pick("command", &command, words),
            interval,
            timeout: section.pick("timeout", &timeout, interval),
            rise: section.pick("rise", &rise, 2),
            fall: section.pick("fall", &fall, 3),
            user: section.pick("user", &user, "nobody".to_owned()),
            initial_up: section.pick("initial", &initial, true),
            weight: taken(section.pick("weight", &weight, 0)),
        })
    };
    tables.into_iter().filter_map(read).collect()
}

pub(super) fn read_files<'a>(notes: &'a Notes<'a>, tables: Tables<'a>) -> Vec<FileSpec> {
    let mut names = HashMap::new();
    let read = |table| {
        let (section, name) = open(notes, table, "vrrp_file", &schema::VRRP_FILE, &mut names);
        let path = section.text("file", FILE, |text| {
            let path = Path::new(text);
            let fits = path.is_absolute() && path.file_name().is_some() && !text.contains(char::is_control);
            if fits { Ok(path.to_owned()) } else { Err(Refusal::expected(FILE)) }
        });
        if section.position("file").is_none() {
            section.missing("file", FILE);
        }
        let weight = section.integer::<i16>("weight", -MAX_FILE_WEIGHT, MAX_FILE_WEIGHT);
        let found = path.value()?.clone();
        let path: PathBuf = section.pick("file", &path, found);
        Some(FileSpec { name: name?, path, weight: section.pick("weight", &weight, 1) })
    };
    tables.into_iter().filter_map(read).collect()
}

pub(super) fn read_bfd<'a>(notes: &'a Notes<'a>, tables: Tables<'a>) -> Vec<BfdSpec> {
    let mut names = HashMap::new();
    let mut peers = HashMap::new();
    let expected = "an address such as \"10.0.0.3\"";
    let read = |table| {
        let (section, name) = open(notes, table, "bfd", &schema::BFD, &mut names);
        let unicast = |key| section.text(key, expected, address::unicast);
        let (peer, local): (Setting<IpAddr>, Setting<IpAddr>) = (unicast("peer"), unicast("local"));
        for key in ["peer", "local"] {
            if section.position(key).is_none() {
                section.missing(key, expected);
            }
        }
        let interval = duration(&section, "interval", Duration::from_millis(5), Duration::from_secs(60));
        let multiplier = section.integer("multiplier", 1, 255);
        let ((peer_found, at), (local_found, local_at)) = (peer.get()?, local.get()?);
        if peer_found.is_ipv4() != local_found.is_ipv4() || peer_found == local_found {
            let why = Refusal::expected("another address, of the same kind as the peer's");
            section.refuse(local_at, "local", format!("local = \"{local_found}\""), why);
        }
        let link_local = |address: &IpAddr| matches!(address, IpAddr::V6(a) if a.is_unicast_link_local());
        if link_local(peer_found) {
            let why = Refusal::expected("an address that needs no interface beside it")
                .but("sessions over link-local addresses are not available in this version");
            section.refuse(at, "peer", format!("peer = \"{peer_found}\""), why);
        }
        if let Some(first) = peers.insert(*peer_found, at) {
            let why = Refusal::expected("one session for each peer")
                .but(format!("{} has it", notes.place(first, at)));
            section.refuse(at, "peer", format!("peer = \"{peer_found}\""), why);
        }
        let (peer_found, local_found) = (*peer_found, *local_found);
        Some(BfdSpec {
            name: name?,
            peer: section.pick("peer", &peer, peer_found),
            local: section.pick("local", &local, local_found),
            interval: section.pick("interval", &interval, Duration::from_millis(100)),
            multiplier: section.pick("multiplier", &multiplier, 3),
        })
    };
    tables.into_iter().filter_map(read).collect()
}

/// The groups. `routers`: the names that there are.
pub(super) fn read_groups<'a>(
    notes: &'a Notes<'a>,
    tables: Tables<'a>,
    routers: &BTreeSet<VrrpName>,
) -> Vec<GroupSpec> {
    let mut names = HashMap::new();
    let mut taken: HashMap<VrrpName, usize> = HashMap::new();
    let read = |table| {
        let (section, group) = open(notes, table, "vrrp_group", &schema::VRRP_GROUP, &mut names);
        let members = section.list("members", MEMBERS, |v| name::<VrrpName>(text(v, MEMBERS)?));
        if section.position("members").is_none() {
            section.missing("members", MEMBERS);
        }
        let (found, at) = members.get()?;
        if found.len() < 2 {
            let why = Refusal::expected("at least two members: one alone needs no group");
            section.refuse(at, "members", format!("members has {}", found.len()), why);
        }
        for (member, at) in found {
            let refuse = |why| section.refuse(*at, "members", format!("members has \"{member}\""), why);
            if !routers.contains(member) {
                refuse(Refusal::expected("the name of a [[vrrp]] of this configuration"));
            }
            if let Some(first) = taken.insert(member.clone(), *at) {
                let place = notes.place(first, *at);
                refuse(Refusal::expected("each [[vrrp]] in one group, once").but(format!("{place} has it")));
            }
        }
        let list: Vec<VrrpName> = found.iter().map(|(member, _)| member.clone()).collect();
        let members = members.clone().map(|_| list.clone());
        Some(GroupSpec { name: group?, members: section.pick("members", &members, list) })
    };
    tables.into_iter().filter_map(read).collect()
}

/// Section, name, key and value of everything that belongs to the virtual routers.
pub(super) fn part_entries(parts: &PairSpec) -> Vec<([String; 2], &'static str, Value)> {
    let time = |duration| json!(format_duration(duration));
    let mut entries = Vec::new();
    let mut add = |section: &str, name: &VrrpName, own: Vec<(&'static str, Value)>| {
        let path = [section.to_owned(), name.to_string()];
        entries.push((path.clone(), "name", json!(name)));
        entries.extend(own.into_iter().map(|(key, value)| (path.clone(), key, value)));
    };
    for group in &parts.groups {
        add("vrrp_group", &group.name, vec![("members", json!(group.members))]);
    }
    for script in &parts.scripts {
        let own = vec![
            ("command", json!(script.command)),
            ("interval", time(script.interval)),
            ("timeout", time(script.timeout)),
            ("rise", json!(script.rise)),
            ("fall", json!(script.fall)),
            ("user", json!(script.user)),
            ("initial", json!(if script.initial_up { "up" } else { "down" })),
            ("weight", json!(-i16::from(script.weight))),
        ];
        add("vrrp_script", &script.name, own);
    }
    for file in &parts.files {
        add("vrrp_file", &file.name, vec![("file", json!(file.path)), ("weight", json!(file.weight))]);
    }
    for session in &parts.bfd {
        let own = vec![
            ("peer", json!(session.peer)),
            ("local", json!(session.local)),
            ("interval", time(session.interval)),
            ("multiplier", json!(session.multiplier)),
        ];
        add("bfd", &session.name, own);
    }
    entries
}
