//! `[control]`: who may use the control API.

use super::{
    Config, ConfigError, Problem, address,
    error::printable,
    reader::{Notes, Refusal, Section, Setting, text},
    schema,
    settings::Origin,
};
use serde_json::{Value, json};
use std::{net::SocketAddr, path::PathBuf};
use toml::de::DeTable;

const FILE: &str = "the absolute path of a file in PEM";
const GROUP: &str = "the name of a group";
const NAMES: &str = "an array of names in client certificates such as [\"ops.example.com\"]";

/// `[control]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ControlConfig {
    /// Group of lbd.sock; the daemon's own where absent.
    pub admin_group: Option<String>,
    /// Group of lbd-ro.sock; no such socket where absent.
    pub read_group: Option<String>,
    /// The API over TCP, if anybody is to have it.
    pub tls: Option<ControlTls>,
}

/// The API over TCP with mutual TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlTls {
    pub listen: SocketAddr,
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
    /// Authorities of the clients' certificates.
    pub client_ca_file: PathBuf,
    /// Names in the certificates of those who may do anything.
    pub admins: Vec<String>,
    /// Names in the certificates of those who may only look.
    pub readers: Vec<String>,
}

fn file(text: &str) -> Result<PathBuf, Refusal> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err(Refusal::expected(FILE)) }
}

fn group(text: &str) -> Result<Option<String>, Refusal> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let fits = !text.is_empty() && text.len() <= 32 && text.chars().all(plain);
    if fits { Ok(Some(text.to_owned())) } else { Err(Refusal::expected(GROUP)) }
}

pub(super) fn read<'a>(notes: &'a Notes<'a>, table: &'a DeTable<'a>, at: usize) -> ControlConfig {
    let control = Section::open(notes, table, at, "[control]", vec!["control".to_owned()], &schema::CONTROL);
    let group = |key| control.pick(key, &control.text(key, GROUP, group), None);
    let (admin_group, read_group) = (group("admin_group"), group("read_group"));
    let listen = control.text("listen", address::LISTEN, address::listen);
    let path = |key| control.text(key, FILE, file);
    let files = ["cert_file", "key_file", "client_ca_file"].map(|key| (key, path(key)));
    let names = ["admins", "readers"].map(|key| (key, names(&control, key)));
    let tls = match control.pick("listen", &listen, None) {
        Some(listen) => {
            for (key, _) in files.iter().filter(|(_, file)| matches!(file, Setting::Absent)) {
                control.missing(key, FILE);
            }
            let [certificate, private_key, authorities] =
                files.map(|(key, file)| control.pick(key, &file, PathBuf::new()));
            if names.iter().all(|(_, names)| matches!(names, Setting::Absent)) {
                control.missing("admins", NAMES);
            }
            let [admins, readers] = names.map(|(key, names)| control.pick(key, &names, Vec::new()));
            if let Some(both) = admins.iter().find(|name| readers.contains(name)) {
                let found = format!("\"{}\" is among the admins and the readers", printable(both));
                control.refuse(control.at, "readers", found, Refusal::expected("each name once"));
            }
            let (cert_file, key_file, client_ca_file) = (certificate, private_key, authorities);
            Some(ControlTls { listen, cert_file, key_file, client_ca_file, admins, readers })
        }
        // What is wrong with it is said; else nobody would use what is set.
        None if matches!(listen, Setting::Refused) => None,
        None => {
            let set = files.iter().map(|(key, file)| (*key, file.at()));
            for (key, at) in set.chain(names.iter().map(|(key, names)| (*key, names.at()))) {
                if let Some(at) = at {
                    let why = Refusal::advice("it is for the API over TCP: set listen, or remove it");
                    control.refuse(at, key, format!("{key} without listen"), why);
                }
            }
            None
        }
    };
    ControlConfig { admin_group, read_group, tls }
}

fn names(control: &Section<'_>, key: &'static str) -> Setting<Vec<String>> {
    let parsed = control.list(key, NAMES, |value| {
        let name = text(value, NAMES)?;
        if name.is_empty() {
            Err(Refusal::expected("a name, not an empty text"))
        } else {
            Ok(name.to_owned())
        }
    });
    parsed.map(|names| names.into_iter().map(|(name, _)| name).collect())
}

impl ControlConfig {
    /// Key and value of what is set.
    pub(super) fn entries(&self) -> Vec<(Vec<String>, Value)> {
        let mut entries = Vec::new();
        let mut push =
            |key: &str, value: Value| entries.push((vec!["control".to_owned(), key.to_owned()], value));
        for (key, group) in [("admin_group", &self.admin_group), ("read_group", &self.read_group)] {
            if let Some(group) = group {
                push(key, json!(group));
            }
        }
        if let Some(tls) = &self.tls {
            push("listen", json!(tls.listen));
            push("cert_file", json!(tls.cert_file));
            push("key_file", json!(tls.key_file));
            push("client_ca_file", json!(tls.client_ca_file));
            for (key, names) in [("admins", &tls.admins), ("readers", &tls.readers)] {
                if !names.is_empty() {
                    push(key, json!(names));
                }
            }
        }
        entries
    }
}

/// That the groups exist.
pub(super) fn check(config: &Config) -> Result<(), ConfigError> {
    let control = &config.control;
    let groups = [("admin_group", &control.admin_group), ("read_group", &control.read_group)];
    let mut problems = Vec::new();
    for (key, name) in groups.into_iter().filter_map(|(key, name)| Some((key, name.as_ref()?))) {
        let found = match nix::unistd::Group::from_name(name) {
            Ok(Some(_)) => continue,
            Ok(None) => format!("{key} = \"{}\" is no group of this host", printable(name)),
            Err(error) => format!("{key} = \"{}\" cannot be looked up ({error})", printable(name)),
        };
        let (file, line) = match config.origins.of(&["control".to_owned(), key.to_owned()]) {
            Origin::File { file, line } => (config.files[file].clone(), line),
            Origin::Default => (config.file.clone(), 0),
        };
        problems.push(Problem {
            file,
            line,
            column: usize::from(line > 0),
            key: format!("control.{key}"),
            place: "[control]".to_owned(),
            found,
            expected: Some(GROUP.to_owned()),
            advice: Some(format!("make it with: groupadd --system {name}")),
        });
    }
    if problems.is_empty() { Ok(()) } else { Err(ConfigError { problems }) }
}
