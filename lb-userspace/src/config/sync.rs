//! `[sync]`: the link to the other node, and the file with its keys.

use super::{
    Config, ConfigError, Problem,
    duration::format_duration,
    error::printable,
    health::duration,
    reader::{Notes, Refusal, Section, Setting, text},
    schema,
    settings::Origin,
};
use crate::model::{
    DEFAULT_SYNC_HEARTBEAT, DEFAULT_TAKEOVER_WAIT, MAX_SYNC_KEYS, MAX_SYNC_PEERS, SyncKey, SyncSpec,
    not_unicast,
};
use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde_json::{Value, json};
use std::{
    fs::File,
    io::Read as _,
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};
use toml::de::DeTable;

const FILE: &str = "the absolute path of a file with keys";
const PEERS: &str = "an array of addresses with their ports such as [\"10.9.0.2:9760\"]";
const LISTEN: &str = "an address and port such as \"10.9.0.1:9760\"";
const BANDWIDTH: &str = "bytes a second from \"10kB\" to \"100GB\"";
const KEY: &str =
    "keys of 32 bytes in base64 or hexadecimal, one a line, as `openssl rand -base64 32` makes them";
/// Largest file of keys, in bytes.
const MAX_FILE: u64 = 1 << 16;

fn socket(text: &str, expected: &str) -> Result<SocketAddr, Refusal> {
    let why = || Refusal::expected(expected);
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() == 0 => Err(why().but("choose a port from 1 to 65535")),
        Ok(address) => Ok(address),
        Err(_) if text.parse::<IpAddr>().is_ok() => Err(why().but("the port is missing")),
        Err(_) => Err(why()),
    }
}

fn peer(text: &str) -> Result<SocketAddr, Refusal> {
    let address = socket(text, PEERS)?;
    match not_unicast(address.ip()) {
        None => Ok(address),
        Some(kind) => Err(Refusal::expected("a unicast address").but(format!("this is {kind}"))),
    }
}

const UNITS: [(&str, u64); 3] = [("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1000)];

fn bandwidth(text: &str) -> Result<Option<u64>, Refusal> {
    let why = || Refusal::expected(BANDWIDTH);
    let (number, unit) = UNITS
        .iter()
        .find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit)))
        .ok_or_else(|| why().but("write it with a unit, like \"10MB\""))?;
    let bytes = number.trim_end().parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    bytes.filter(|bytes| (10_000..=100 * UNITS[0].1).contains(bytes)).map(Some).ok_or_else(why)
}

fn show_bandwidth(bytes: u64) -> String {
    let exact = UNITS.iter().find(|(_, unit)| bytes.is_multiple_of(*unit));
    exact.map_or_else(|| format!("{}kB", bytes / 1000), |(name, unit)| format!("{}{name}", bytes / unit))
}

pub(super) fn read<'a>(notes: &'a Notes<'a>, table: &'a DeTable<'a>, at: usize) -> Option<SyncSpec> {
    let sync = Section::open(notes, table, at, "[sync]", vec!["sync".to_owned()], &schema::SYNC);
    let listen = sync.text("listen", LISTEN, |text| match socket(text, LISTEN) {
        Ok(address) if address.ip().is_multicast() => {
            Err(Refusal::expected(LISTEN).but("this is a multicast address"))
        }
        other => other,
    });
    let peers = sync.list("peers", PEERS, |value| peer(text(value, PEERS)?));
    let key_file = sync.text("key_file", FILE, |text| {
        let path = PathBuf::from(text);
        if path.is_absolute() { Ok(path) } else { Err(Refusal::expected(FILE)) }
    });
    // Three intervals of it are the silence of a dead node: less than a few milliseconds is what a busy one takes.
    let heartbeat = duration(&sync, "heartbeat", Duration::ZERO, Duration::from_secs(10));
    let max_bandwidth = sync.text("max_bandwidth", BANDWIDTH, bandwidth);
    let takeover_wait = duration(&sync, "takeover_wait", Duration::ZERO, Duration::from_secs(3600));
    for (key, absent, expected) in [
        ("listen", matches!(listen, Setting::Absent), LISTEN),
        ("peers", matches!(peers, Setting::Absent), PEERS),
        ("key_file", matches!(key_file, Setting::Absent), FILE),
    ] {
        if absent {
            sync.missing(key, expected);
        }
    }
    if let Some((time, at)) = heartbeat.get()
        && !time.is_zero()
        && *time < Duration::from_millis(5)
    {
        let found = format!("heartbeat = \"{}\"", format_duration(*time));
        sync.refuse(at, "heartbeat", found, Refusal::expected("\"5ms\" or more, or \"0s\" for none"));
    }
    if let Some((list, at)) = peers.get() {
        if list.len() > MAX_SYNC_PEERS {
            let found = format!("{} peers", list.len());
            sync.refuse(at, "peers", found, Refusal::expected(format!("at most {MAX_SYNC_PEERS}")));
        }
        for (number, (peer, at)) in list.iter().enumerate() {
            let found = || format!("peers has \"{peer}\"");
            if list[..number].iter().any(|(other, _)| other == peer) {
                sync.refuse(*at, "peers", found(), Refusal::expected("each address once"));
            } else if listen.value() == Some(peer) {
                sync.refuse(
                    *at,
                    "peers",
                    found(),
                    Refusal::expected("the other node's address").but("this is the node's own, as in listen"),
                );
            }
        }
    }
    let plain = peers.map(|peers| peers.into_iter().map(|(peer, _)| peer).collect::<Vec<_>>());
    Some(SyncSpec {
        listen: sync.pick("listen", &listen, *listen.value()?),
        peers: sync.pick("peers", &plain, Vec::new()),
        key_file: sync.pick("key_file", &key_file, PathBuf::new()),
        heartbeat: sync.pick("heartbeat", &heartbeat, DEFAULT_SYNC_HEARTBEAT),
        max_bandwidth: sync.pick("max_bandwidth", &max_bandwidth, None),
        takeover_wait: sync.pick("takeover_wait", &takeover_wait, DEFAULT_TAKEOVER_WAIT),
    })
}

/// Key and value of what is set.
pub(super) fn entries(spec: &SyncSpec) -> Vec<(Vec<String>, Value)> {
    let mut entries = vec![
        ("listen", json!(spec.listen)),
        ("peers", json!(spec.peers)),
        ("key_file", json!(spec.key_file)),
        ("heartbeat", json!(format_duration(spec.heartbeat))),
        ("takeover_wait", json!(format_duration(spec.takeover_wait))),
    ];
    entries.extend(spec.max_bandwidth.map(|bytes| ("max_bandwidth", json!(show_bandwidth(bytes)))));
    entries.into_iter().map(|(key, value)| (vec!["sync".to_owned(), key.to_owned()], value)).collect()
}

/// The keys of a file: the first one is for calls, all are for being called. Only its owner may read it.
pub fn read_sync_keys(path: &Path) -> Result<Vec<SyncKey>, String> {
    let cannot = |error: std::io::Error| format!("cannot be read ({error})");
    let file = File::open(path).map_err(cannot)?;
    let mode = file.metadata().map_err(cannot)?.mode();
    if mode & 0o077 != 0 {
        return Err(format!(
            "may be used by others than its owner (mode {:04o}); make it secret with: chmod 600",
            mode & 0o7777
        ));
    }
    let mut text = String::new();
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(cannot)?;
    if text.len() as u64 > MAX_FILE {
        return Err("is too large".to_owned());
    }
    parse_keys(&text)
}

fn parse_keys(text: &str) -> Result<Vec<SyncKey>, String> {
    let mut keys: Vec<SyncKey> = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        let line = line.split('#').next().unwrap_or_default().trim();
        // Never the line itself: it may be most of a key.
        let mut words = line.split_whitespace();
        let (id, key) = match (words.next(), words.next(), words.next()) {
            (None, ..) => continue,
            (Some(key), None, _) => (None, key),
            (Some(id), Some(key), None) => (Some(id), key),
            (Some(_), Some(_), Some(_)) => {
                return Err(format!("has more than a name and a key on line {number}"));
            }
        };
        let secret = secret(key).ok_or_else(|| format!("has no key of 32 bytes on line {number}"))?;
        let key = SyncKey::new(id, secret);
        if let Some(other) = keys.iter().find(|other| other.secret() == key.secret() || other.id == key.id) {
            return Err(format!("has key {} twice, the second time on line {number}", printable(&other.id)));
        }
        keys.push(key);
    }
    match keys.len() {
        0 => Err("has no key".to_owned()),
        1..=MAX_SYNC_KEYS => Ok(keys),
        n => Err(format!("has {n} keys, more than {MAX_SYNC_KEYS}")),
    }
}

fn secret(text: &str) -> Option<[u8; 32]> {
    if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        let mut secret = [0; 32];
        for (at, byte) in secret.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
        }
        return Some(secret);
    }
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    GeneralPurpose::new(&alphabet::STANDARD, config).decode(text).ok()?.try_into().ok()
}

/// That the keys can be read.
pub(super) fn check(config: &Config) -> Result<(), ConfigError> {
    let Some(sync) = &config.sync else { return Ok(()) };
    let Err(why) = read_sync_keys(&sync.key_file) else { return Ok(()) };
    let (file, line) = match config.origins.of(&["sync".to_owned(), "key_file".to_owned()]) {
        Origin::File { file, line } => (config.files[file].clone(), line),
        Origin::Default => (config.file.clone(), 0),
    };
    let problem = Problem {
        file,
        line,
        column: usize::from(line > 0),
        key: "sync.key_file".to_owned(),
        place: "[sync]".to_owned(),
        found: format!("key_file = \"{}\" {why}", printable(&sync.key_file.display().to_string())),
        expected: Some(KEY.to_owned()),
        advice: None,
    };
    Err(ConfigError { problems: vec![problem] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt as _};

    #[test]
    fn keys_one_a_line() {
        let hex = "00".repeat(31) + "0a";
        let base64 = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
        let keys = parse_keys(&format!("# of both nodes\n\nspring {hex}\n{base64} # the next\n")).unwrap();
        assert_eq!(keys[0].id, "spring");
        assert_eq!(keys[0].secret()[31], 10);
        assert_eq!((keys[1].id.len(), keys[1].secret()), (8, &[1; 32]));
        assert_eq!(parse_keys(base64.trim_end_matches('=')).unwrap()[0].secret(), &[1; 32]);
        let said = |text: &str| parse_keys(text).unwrap_err();
        assert_eq!(said("# none"), "has no key");
        assert_eq!(said("a\nabc"), "has no key of 32 bytes on line 1");
        assert_eq!(said("a b c"), "has more than a name and a key on line 1");
        assert_eq!(said(&format!("a {hex}\nb {hex}")), "has key a twice, the second time on line 2");
        assert_eq!(said(&format!("a {hex}\na {base64}")), "has key a twice, the second time on line 2");
        let many: String = (0..9).map(|n| format!("k{n} {}\n", format!("{n:02}").repeat(32))).collect();
        assert_eq!(said(&many), "has 9 keys, more than 8");
        assert!(!format!("{keys:?}").contains("10"), "secrets are not shown: {keys:?}");
    }

    #[test]
    fn others_may_not_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("keys");
        fs::write(&file, "11".repeat(32)).unwrap();
        let mode = |mode| {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            read_sync_keys(&file)
        };
        assert_eq!(mode(0o600).unwrap().len(), 1);
        assert_eq!(mode(0o400).unwrap().len(), 1);
        for open in [0o640, 0o604, 0o660, 0o601] {
            let said = mode(open).unwrap_err();
            assert_eq!(
                said,
                format!(
                    "may be used by others than its owner (mode {open:04o}); make it secret with: chmod 600"
                )
            );
        }
        // The whole message, with the place.
        let text = format!(
            "node.interfaces = [\"eth0\"]\n[sync]\nlisten = \"10.9.0.1:9760\"\npeers = [\"10.9.0.2:9760\"]\nkey_file = \"{}\"\n",
            file.display()
        );
        let main = dir.path().join("lbd.toml");
        fs::write(&main, text).unwrap();
        let said = super::super::load(&main).unwrap_err().to_string();
        let shown = dir.path().display();
        assert_eq!(
            said.trim_end(),
            format!(
                "{shown}/lbd.toml:5:1: [sync]: key_file = \"{shown}/keys\" may be used by others than its owner (mode 0601); make it secret with: chmod 600: expected {KEY}"
            )
        );
        mode(0o600).unwrap();
        assert!(super::super::load(&main).is_ok());
    }

    #[test]
    fn bandwidths() {
        for text in ["10kB", "1MB", "1500kB", "100GB"] {
            assert_eq!(bandwidth(text).ok().flatten().map(show_bandwidth).as_deref(), Some(text));
        }
        for text in ["9kB", "101GB", "1", "MB", "-1MB", "1.5MB", "99999999999999999999GB"] {
            assert!(bandwidth(text).is_err(), "{text}");
        }
    }
}
