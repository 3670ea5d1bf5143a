//! What `vrrp_instance`s refer to: `vrrp_sync_group`, `vrrp_script`, `vrrp_track_process`, `vrrp_track_file`,
//! `bfd_instance`; and how an instance names it.

use super::{
    super::{
        draft::{Draft, Part, name},
        ledger::Ledger,
        write::{texts, time},
    },
    seconds,
    syntax::Directive,
};
use std::{net::IpAddr, time::Duration};
use toml_edit::Value;

/// What an instance tracks, ready to be written, and what a positive weight adds to its priority as long as it is up.
#[derive(Default)]
pub(super) struct Tracked {
    interfaces: Vec<(String, i16)>,
    scripts: Vec<(String, i16)>,
    files: Vec<(String, i16)>,
    bfd: Vec<String>,
    pub(super) bonus: i16,
}

/// A section of its own.
pub(super) fn define(section: &Directive, draft: &mut Draft, ledger: &mut Ledger) {
    let part = match section.name() {
        "vrrp_sync_group" => group(section, ledger),
        "vrrp_script" => script(section, ledger),
        "vrrp_track_process" => process(section, ledger),
        "vrrp_track_file" | "track_file" => file(section, ledger),
        _ => bfd(section, ledger),
    };
    match part {
        Ok(part) => {
            ledger.mapped(section.line);
            draft.parts.push(part);
        }
        Err(why) => ledger.left(section.lines(), &section.head(), why),
    }
}

fn part(section: &Directive, kind: &'static str, keys: Vec<(&'static str, Value)>, weight: i16) -> Part {
    Part { kind, name: name(section.word(1)), lines: section.lines(), keys, weight }
}

fn group(section: &Directive, ledger: &mut Ledger) -> Result<Part, &'static str> {
    let list = section.child("group").ok_or("it has no group { }")?;
    let lines = list.children.iter().flat_map(|line| &line.words);
    let members: Vec<String> = list.words[1..].iter().chain(lines).map(|member| name(member)).collect();
    for line in &list.children {
        ledger.mapped(line.line);
    }
    ledger.mapped(list.line);
    for other in section.children.iter().filter(|child| child.name() != "group") {
        let why = match other.name() {
            "global_tracking"
            | "sync_group_tracking_weight"
            | "track_interface"
            | "track_script"
            | "track_file" => {
                "write it into one member: what counts for one member of a group counts for all"
            }
            "notify" | "notify_master" | "notify_backup" | "notify_fault" | "notify_stop" => {
                "write the command as a [[notify]], which is told of every change of every instance"
            }
            _ => "lbd has no equal",
        };
        ledger.left(other.lines(), &other.head(), why);
    }
    Ok(part(section, "vrrp_group", vec![("members", texts(members))], 0))
}

fn whole(directive: &Directive) -> Option<i64> {
    directive.word(1).parse().ok()
}

fn script(section: &Directive, ledger: &mut Ledger) -> Result<Part, &'static str> {
    let text = section.child("script").map(|script| script.words[1..].join(" "));
    let text = text.filter(|text| !text.trim().is_empty()).ok_or("it has no script")?;
    let plain = text.starts_with('/') && !text.contains(|c: char| "|&;<>()$`\\\"'*?[]#~".contains(c));
    let command = match plain {
        true => texts(text.split_whitespace()),
        false => texts(["/bin/sh", "-c", text.as_str()]),
    };
    // keepalived's where nothing is said.
    let (mut interval, mut timeout, mut rise, mut fall) = (Duration::from_secs(1), None, 1, 1);
    let (mut weight, mut user, mut starts_down) = (0, None, false);
    for directive in &section.children {
        let (lines, head) = (directive.lines(), directive.head());
        match directive.name() {
            "script" => {}
            "interval" => interval = seconds(directive.word(1)).unwrap_or(interval),
            "timeout" => timeout = seconds(directive.word(1)),
            "rise" => rise = whole(directive).unwrap_or(1).clamp(1, 255),
            "fall" => fall = whole(directive).unwrap_or(1).clamp(1, 255),
            "user" => user = Some(directive.word(1).to_owned()).filter(|user| user != "root"),
            "init_fail" => starts_down = true,
            "weight" => match (directive.word(1).parse::<i16>(), directive.word(2)) {
                (Ok(found @ -253..=253), "") => weight = found,
                _ => {
                    ledger.left(lines, &head, "lbd has no weight that is reversed, or beyond 253");
                    continue;
                }
            },
            _ => {
                ledger.left(lines, &head, "lbd has no equal");
                continue;
            }
        }
        ledger.mapped(directive.line);
    }
    if user.is_none() {
        ledger.differs(
            section.lines(),
            &section.head(),
            "it runs as nobody: set user to have it run as another, but root",
        );
    }
    let mut keys = vec![("command", command), ("interval", time(interval))];
    keys.extend(timeout.map(|timeout| ("timeout", time(timeout))));
    keys.extend([("rise", rise.into()), ("fall", fall.into())]);
    keys.extend(user.map(|user| ("user", user.into())));
    keys.extend(starts_down.then(|| ("initial", "down".into())));
    Ok(part(section, "vrrp_script", keys, weight))
}

fn process(section: &Directive, ledger: &mut Ledger) -> Result<Part, &'static str> {
    let program = section.child("process").map(|process| process.word(1).to_owned()).unwrap_or_default();
    // The kernel's name of a process has 15 characters.
    let short: String = program.rsplit('/').next().unwrap_or_default().chars().take(15).collect();
    if short.is_empty() || !short.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
        return Err("it has no process whose name is plain");
    }
    let mut weight = 0;
    for directive in &section.children {
        match (directive.name(), directive.word(1).parse::<i16>(), directive.word(2)) {
            ("process", ..) => {}
            ("weight", Ok(found @ -253..=253), "") => weight = found,
            _ => {
                ledger.left(
                    directive.lines(),
                    &directive.head(),
                    "lbd asks whether one process has this name, no more",
                );
                continue;
            }
        }
        ledger.mapped(directive.line);
    }
    ledger.differs(
        section.lines(),
        &section.head(),
        "pgrep asks every second, where the kernel told keepalived at once",
    );
    let keys = vec![
        ("command", texts(["/usr/bin/pgrep", "-x", short.as_str()])),
        ("interval", time(Duration::from_secs(1))),
        ("rise", 1.into()),
        ("fall", 1.into()),
    ];
    Ok(part(section, "vrrp_script", keys, weight))
}

fn file(section: &Directive, ledger: &mut Ledger) -> Result<Part, &'static str> {
    let path = section.child("file").map(|file| file.word(1).to_owned()).filter(|path| path.starts_with('/'));
    let path = path.ok_or("it has no file with an absolute path")?;
    let mut weight = 1;
    for directive in &section.children {
        match (directive.name(), directive.word(1).parse::<i16>(), directive.word(2)) {
            ("file", ..) => {}
            ("weight", Ok(found @ -254..=254), "") => weight = found,
            ("weight", Ok(found @ -254..=254), "reverse") => weight = -found,
            _ => {
                ledger.left(directive.lines(), &directive.head(), "lbd has no equal");
                continue;
            }
        }
        ledger.mapped(directive.line);
    }
    Ok(part(section, "vrrp_file", vec![("file", path.into())], weight))
}

fn bfd(section: &Directive, ledger: &mut Ledger) -> Result<Part, &'static str> {
    let address = |key: &str| section.child(key).and_then(|d| d.word(1).parse::<IpAddr>().ok());
    let peer = address("neighbor_ip").ok_or("it has no neighbor_ip")?;
    let local = address("source_ip").ok_or("it has no source_ip, which lbd wants as local")?;
    // keepalived's where nothing is said; lbd has one interval for both ways.
    let (mut interval, mut multiplier) = (Duration::from_millis(10), 5);
    let ms = |directive: &Directive| {
        whole(directive).and_then(|ms| u64::try_from(ms).ok()).map(Duration::from_millis)
    };
    for directive in &section.children {
        match directive.name() {
            "neighbor_ip" | "source_ip" => {}
            "min_rx" | "min_tx" => interval = ms(directive).unwrap_or(interval).max(interval),
            "multiplier" => multiplier = whole(directive).unwrap_or(5).clamp(1, 255),
            _ => {
                ledger.left(directive.lines(), &directive.head(), "lbd has no equal");
                continue;
            }
        }
        ledger.mapped(directive.line);
    }
    let keys = vec![
        ("peer", peer.to_string().into()),
        ("local", local.to_string().into()),
        ("interval", time(interval.min(Duration::from_secs(60)))),
        ("multiplier", multiplier.into()),
    ];
    Ok(part(section, "bfd", keys, 0))
}

impl Tracked {
    /// `track_interface`, `track_script`, `track_process`, `track_file` or `track_bfd` of an instance.
    pub(super) fn read(&mut self, section: &Directive, parts: &[Part], ledger: &mut Ledger) {
        ledger.mapped(section.line);
        for directive in &section.children {
            match self.one(section.name(), directive, parts) {
                Ok(()) => ledger.mapped(directive.line),
                Err(why) => ledger.left(directive.lines(), &directive.head(), why),
            }
        }
    }

    fn one(&mut self, list: &str, directive: &Directive, parts: &[Part]) -> Result<(), &'static str> {
        let given = match (directive.word(1), directive.word(2).parse::<i16>(), directive.word(3)) {
            ("", ..) => None,
            ("weight", Ok(weight @ -254..=254), "") => Some(weight),
            ("weight", Ok(weight @ -254..=254), "reverse") if list == "track_file" => Some(-weight),
            _ => return Err("lbd has no equal"),
        };
        let wanted = name(directive.name());
        let part = |kind: &str| {
            let part = parts.iter().find(|part| part.kind == kind && part.name == wanted);
            part.ok_or("nothing of that name was taken over")
        };
        let is_file = list == "track_file";
        let (list, name, default) = match list {
            "track_interface" => (&mut self.interfaces, directive.name().to_owned(), 0),
            "track_file" => (&mut self.files, wanted.clone(), part("vrrp_file")?.weight),
            "track_bfd" => {
                part("bfd")?;
                if given.is_some_and(|weight| weight != 0) {
                    return Err(
                        "a BFD session that goes down makes a backup master at once; it has no weight",
                    );
                }
                self.bfd.push(wanted);
                return Ok(());
            }
            _ => (&mut self.scripts, wanted.clone(), part("vrrp_script")?.weight),
        };
        if list.iter().any(|(other, _)| *other == name) {
            return Err("it stands there twice");
        }
        let mut weight = given.unwrap_or(default);
        if !is_file {
            // Added while it is up is taken off while it is down, from a higher priority.
            self.bonus += weight.max(0);
            weight = -weight.abs().min(253);
        }
        list.push((name, weight));
        Ok(())
    }

    /// The keys of the `[[vrrp]]`.
    pub(super) fn keys(self) -> Vec<(&'static str, Value)> {
        let shown = |list: Vec<(String, i16)>, always: bool| {
            texts(list.into_iter().map(|(name, weight)| match weight {
                0 if !always => name,
                weight => format!("{name} weight {weight}"),
            }))
        };
        let mut keys = Vec::new();
        if !self.interfaces.is_empty() {
            keys.push(("track_interfaces", shown(self.interfaces, false)));
        }
        if !self.scripts.is_empty() {
            keys.push(("track_scripts", shown(self.scripts, false)));
        }
        if !self.files.is_empty() {
            keys.push(("track_files", shown(self.files, true)));
        }
        if !self.bfd.is_empty() {
            keys.push(("track_bfd", texts(self.bfd)));
        }
        keys
    }
}
