//! `[firewall]`, the files it names, and of each service its allow list and limits.

use super::{
    address,
    error::{ConfigError, Problem, printable},
    health::duration,
    reader::{Notes, Refusal, Section, Setting, text},
    schema::{self, Schema},
};
use crate::model::{
    LimitSpec, MAX_BURST_MS, MAX_RATE, PrefixError, Prefixes, Protocol, Verdict, parse_prefix,
};
use ipnet::IpNet;
use lb_common::abi::PREFIX_CAPACITY;
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeSet, HashMap},
    fmt::Write as _,
    fs::File,
    io::Read,
    path::PathBuf,
    time::Duration,
};
use toml::de::{DeTable, DeValue};

/// Largest file of prefixes, in bytes.
const MAX_FILE: u64 = 64 << 20;
/// Problems told of one file.
const MAX_PROBLEMS: usize = 10;

/// `[firewall]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FirewallConfig {
    pub deny: BTreeSet<IpNet>,
    /// Exceptions inside denied prefixes.
    pub allow: BTreeSet<IpNet>,
    pub deny_files: Vec<PathBuf>,
    /// What stands in those files.
    pub from_files: BTreeSet<IpNet>,
    /// Over what stands in them (or over the list in force), for the configuration's hash; empty without files.
    pub digest: String,
}

impl FirewallConfig {
    /// What the configuration alone says of a prefix. Exceptions are stronger than files, which others write.
    #[must_use]
    pub fn verdict(&self, prefix: &IpNet) -> Option<Verdict> {
        if self.allow.contains(prefix) {
            Some(Verdict::Allow)
        } else if self.deny.contains(prefix) || self.from_files.contains(prefix) {
            Some(Verdict::Deny)
        } else {
            None
        }
    }

    /// Every prefix.
    #[must_use]
    pub fn prefixes(&self) -> Prefixes {
        let deny = self.from_files.iter().chain(&self.deny).map(|prefix| (*prefix, Verdict::Deny));
        deny.chain(self.allow.iter().map(|prefix| (*prefix, Verdict::Allow))).collect()
    }
}

/// The first 16 hexadecimal digits of a SHA-256 over prefixes.
#[must_use]
pub fn prefixes_digest(prefixes: &Prefixes) -> String {
    let mut hash = Sha256::new();
    let mut line = String::new();
    for (prefix, verdict) in prefixes {
        line.clear();
        let _ = writeln!(line, "{verdict} {prefix}");
        hash.update(line.as_bytes());
    }
    hash.finalize().iter().take(8).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

const PREFIX: &str = "an address or a prefix such as \"203.0.113.0/24\"";

fn prefix(value: &DeValue<'_>) -> Result<IpNet, Refusal> {
    parse_prefix(text(value, PREFIX)?).map_err(|error| match error {
        PrefixError::Syntax => Refusal::expected(PREFIX),
        PrefixError::HostBits(net) => {
            Refusal::expected("zero bits after the prefix").but(format!("write \"{net}\""))
        }
    })
}

/// An array of prefixes with their places; each once.
fn prefixes(section: &Section<'_>, key: &str, may_be_empty: bool) -> Setting<Vec<(IpNet, usize)>> {
    let expected = "an array of prefixes such as [\"203.0.113.0/24\"]";
    if may_be_empty && section.is_empty_array(key) {
        return Setting::Absent;
    }
    let list = section.list(key, expected, prefix);
    let mut seen = BTreeSet::new();
    for (net, at) in list.value().into_iter().flatten() {
        if !seen.insert(*net) {
            section.refuse(
                *at,
                key,
                format!("{key} has \"{net}\" twice"),
                Refusal::expected("each prefix once"),
            );
        }
    }
    list
}

fn set(setting: &Setting<Vec<(IpNet, usize)>>) -> Setting<BTreeSet<IpNet>> {
    match setting {
        Setting::Is(list, at) => Setting::Is(list.iter().map(|(net, _)| *net).collect(), *at),
        Setting::Absent => Setting::Absent,
        Setting::Refused => Setting::Refused,
    }
}

pub(super) fn read_firewall<'a>(notes: &'a Notes<'a>, table: &'a DeTable<'a>, at: usize) -> FirewallConfig {
    let path = vec!["firewall".to_owned()];
    let section = Section::open(notes, table, at, "[firewall]", path, &schema::FIREWALL);
    let (deny, allow) = (prefixes(&section, "deny", true), prefixes(&section, "allow", true));
    let lines: HashMap<IpNet, usize> =
        deny.value().into_iter().flatten().map(|(net, at)| (*net, notes.line(*at))).collect();
    for (net, at) in allow.value().into_iter().flatten() {
        if let Some(line) = lines.get(net) {
            let why = Refusal::expected("an exception inside a denied prefix, not one as long")
                .but(format!("line {line} denies the same prefix: remove one of the two"));
            section.refuse(*at, "allow", format!("allow has \"{net}\""), why);
        }
    }
    let what = "an array of absolute paths such as [\"/etc/lbd/deny.txt\"]";
    let files = if section.is_empty_array("deny_files") {
        Setting::Absent
    } else {
        section.list("deny_files", what, |value| address::directory(text(value, what)?))
    };
    let files = match files {
        Setting::Is(files, at) => Setting::Is(files.into_iter().map(|(file, _)| file).collect(), at),
        Setting::Absent => Setting::Absent,
        Setting::Refused => Setting::Refused,
    };
    let config = FirewallConfig {
        deny: section.pick("deny", &set(&deny), BTreeSet::new()),
        allow: section.pick("allow", &set(&allow), BTreeSet::new()),
        deny_files: section.pick("deny_files", &files, Vec::new()),
        ..FirewallConfig::default()
    };
    if let Some(problem) = too_many(&config.prefixes()) {
        section.refuse(
            at,
            "deny",
            problem,
            Refusal::expected(format!("at most {PREFIX_CAPACITY} of either IP version")),
        );
    }
    config
}

/// The tables of prefixes have a size.
fn too_many(prefixes: &Prefixes) -> Option<String> {
    let v6 = prefixes.keys().filter(|net| net.addr().is_ipv6()).count();
    let most = v6.max(prefixes.len() - v6);
    (most > PREFIX_CAPACITY as usize).then(|| format!("{most} prefixes of one IP version"))
}

/// Reads the files of denied prefixes: one a line, `#` begins a comment. The only part of the configuration that lies
/// elsewhere.
pub(super) fn read_files(config: &mut FirewallConfig) -> Result<(), ConfigError> {
    let mut problems = Vec::new();
    for path in &config.deny_files {
        let name = path.display().to_string();
        let mut text = String::new();
        let read = File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text));
        let failed = match read {
            Err(error) => Some((format!("cannot be read ({error})"), "a file of prefixes, one a line")),
            Ok(size) if size as u64 > MAX_FILE => Some(("is too large".to_owned(), "at most 64 MiB")),
            Ok(_) => None,
        };
        match failed {
            Some((found, expected)) => problems.push(problem(&name, 0, 0, found, expected.to_owned(), None)),
            None => read_lines(&name, &text, &mut config.from_files, &mut problems),
        }
    }
    if problems.is_empty() {
        let prefixes = config.prefixes();
        if let Some(found) = too_many(&prefixes) {
            let name = config.deny_files.first().map(|path| path.display().to_string()).unwrap_or_default();
            let expected =
                format!("at most {PREFIX_CAPACITY} of either IP version with all other denied prefixes");
            problems.push(problem(&name, 0, 0, found, expected, None));
        } else if !config.deny_files.is_empty() {
            config.digest = prefixes_digest(&prefixes);
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(ConfigError { problems }) }
}

fn read_lines(name: &str, text: &str, to: &mut BTreeSet<IpNet>, problems: &mut Vec<Problem>) {
    let first = problems.len();
    for (number, line) in text.lines().enumerate() {
        let entry = line.split('#').next().unwrap_or_default().trim();
        if entry.is_empty() {
            continue;
        }
        let error = match parse_prefix(entry) {
            Ok(net) => {
                to.insert(net);
                continue;
            }
            Err(error) => error,
        };
        if problems.len() - first == MAX_PROBLEMS {
            return;
        }
        let column = line.find(entry).map_or(1, |at| line[..at].chars().count() + 1);
        let (expected, advice) = match error {
            PrefixError::Syntax => ("an address or a prefix such as 203.0.113.0/24".to_owned(), None),
            PrefixError::HostBits(net) => {
                ("zero bits after the prefix".to_owned(), Some(format!("write {net}")))
            }
        };
        problems.push(problem(name, number + 1, column, format!("'{}'", printable(entry)), expected, advice));
    }
}

fn problem(
    file: &str,
    line: usize,
    column: usize,
    found: String,
    expected: String,
    advice: Option<String>,
) -> Problem {
    let (key, place) = ("firewall.deny_files".to_owned(), String::new());
    Problem { file: file.to_owned(), line, column, key, place, found, expected: Some(expected), advice }
}

/// `allow` of a service or of the defaults.
pub(super) fn read_allow(section: &Section<'_>) -> Setting<BTreeSet<IpNet>> {
    set(&prefixes(section, "allow", false))
}

/// `[service.limits]` or `[defaults.limits]`.
#[derive(Clone)]
pub(super) struct LimitSettings {
    rates: [Setting<u32>; RATES.len()],
    burst: Setting<Duration>,
}

const RATES: [&str; 4] = [
    "packets_per_second",
    "connections_per_second",
    "source_packets_per_second",
    "source_connections_per_second",
];

impl LimitSettings {
    /// What a section that is not there says.
    pub(super) const ABSENT: Self =
        Self { rates: [const { Setting::Absent }; RATES.len()], burst: Setting::Absent };

    fn read(section: &Section<'_>) -> Self {
        let longest = Duration::from_millis(MAX_BURST_MS.into());
        Self {
            rates: RATES.map(|key| section.integer(key, 0, i64::from(MAX_RATE))),
            burst: duration(section, "burst", Duration::from_millis(1), longest),
        }
    }

    pub(super) fn read_defaults(defaults: &Section<'_>) -> Self {
        match open(defaults, "[defaults.limits]".to_owned(), &schema::DEFAULTS_LIMITS) {
            Some(section) => Self::read(&section),
            None => Self::ABSENT,
        }
    }
}

fn open<'a>(parent: &Section<'a>, place: String, schema: &'static Schema) -> Option<Section<'a>> {
    let (table, at) = parent.table("limits")?;
    let path = [parent.path.as_slice(), &["limits".to_owned()]].concat();
    Some(Section::open(parent.notes, table, at, place, path, schema))
}

/// The limits of a service.
pub(super) fn read_limits(
    service: &Section<'_>,
    protocol: Option<Protocol>,
    defaults: &LimitSettings,
) -> LimitSpec {
    let place = format!("{}, limits", service.place);
    let nothing = DeTable::new();
    let path = [service.path.as_slice(), &["limits".to_owned()]].concat();
    let opened = open(service, place.clone(), &schema::SERVICE_LIMITS);
    let own = opened.as_ref().map_or(LimitSettings::ABSENT, LimitSettings::read);
    let absent;
    let section = match &opened {
        Some(section) => section,
        None => {
            absent = Section::open(service.notes, &nothing, service.at, place, path, &schema::SERVICE_LIMITS);
            &absent
        }
    };
    if protocol == Some(Protocol::Udp) {
        for (key, setting) in RATES.iter().zip(&own.rates).filter(|(key, _)| key.contains("connections")) {
            if let Some((rate, at)) = setting.get().filter(|(rate, _)| **rate > 0) {
                let why = Refusal::advice("UDP has no connections: limit its packets");
                section.refuse(at, key, format!("{key} = {rate}"), why);
            }
        }
    }
    let rate = |i: usize| {
        let rate = section.pick(RATES[i], own.rates[i].or(&defaults.rates[i]), 0);
        // A default for services in general is none for those without connections.
        if protocol == Some(Protocol::Udp) && RATES[i].contains("connections") { 0 } else { rate }
    };
    let default = LimitSpec::default();
    let burst = Duration::from_millis(default.burst_ms.into());
    let burst = section.pick("burst", own.burst.or(&defaults.burst), burst);
    LimitSpec {
        packets_per_second: rate(0),
        connections_per_second: rate(1),
        source_packets_per_second: rate(2),
        source_connections_per_second: rate(3),
        burst_ms: u32::try_from(burst.as_millis()).unwrap_or(default.burst_ms),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn files_of_prefixes() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "# a list\n203.0.113.0/24  # why\n\n 198.51.100.7\n2001:db8:bad::/48\n203.0.113.0/24")
            .unwrap();
        let deny_files = vec![file.path().to_owned()];
        let mut config = FirewallConfig { deny_files: deny_files.clone(), ..FirewallConfig::default() };
        read_files(&mut config).unwrap();
        let found: Vec<_> = config.from_files.iter().map(ToString::to_string).collect();
        assert_eq!(found, ["198.51.100.7/32", "203.0.113.0/24", "2001:db8:bad::/48"]);
        assert_eq!(config.digest.len(), 16);

        writeln!(file, "\texample.org # no\n10.0.0.1/8").unwrap();
        let mut config = FirewallConfig { deny_files, ..FirewallConfig::default() };
        let error = read_files(&mut config).unwrap_err().to_string();
        let name = file.path().display();
        assert_eq!(
            error,
            format!(
                "{name}:7:2: 'example.org': expected an address or a prefix such as 203.0.113.0/24\n\
                 {name}:8:1: '10.0.0.1/8': expected zero bits after the prefix; write 10.0.0.0/8"
            )
        );
        let mut config =
            FirewallConfig { deny_files: vec!["/nonexistent/deny".into()], ..FirewallConfig::default() };
        let error = read_files(&mut config).unwrap_err().to_string();
        assert!(error.starts_with("/nonexistent/deny: cannot be read (No such file"), "{error}");
    }

    #[test]
    fn an_exception_is_stronger_than_a_file() {
        let net: IpNet = "203.0.113.0/24".parse().unwrap();
        let mut config = FirewallConfig { from_files: [net].into(), ..FirewallConfig::default() };
        assert_eq!(config.verdict(&net), Some(Verdict::Deny));
        config.allow.insert(net);
        assert_eq!(config.verdict(&net), Some(Verdict::Allow));
        assert_eq!(config.prefixes(), Prefixes::from([(net, Verdict::Allow)]));
    }
}
