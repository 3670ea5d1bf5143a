//! `[fleet]`: where the configuration is that all nodes share; and the document itself, as far as it differs from a file.

use super::{
    Config, ConfigError, Problem,
    duration::format_duration,
    error::printable,
    files::{read_certificates, read_password},
    health::duration,
    reader::{Notes, Refusal, Section, Setting, text},
    schema,
    settings::Origin,
};
use crate::model::{HealthCheck, ServiceSpec};
use rustls::pki_types::{PrivateKeyDer, pem::PemObject as _};
use serde_json::{Value, json};
use std::{path::PathBuf, time::Duration};
use toml::de::{DeTable, DeValue};

const ENDPOINTS: &str = "an array of etcd's URLs such as [\"http://10.9.0.5:2379\"]";
const ENDPOINT: &str = "a URL such as \"http://10.9.0.5:2379\"";
const PREFIX: &str = "a path such as \"/lbd/prod\"";
const CERTIFICATES: &str = "the absolute path of a file of certificates in PEM";
const KEY: &str = "the absolute path of a file with a private key in PEM";
const PASSWORD: &str = "the absolute path of a file with a password on its first line";
const USER: &str = "the name of a user of etcd";
/// Longest prefix: keys are sent with every request.
const MAX_PREFIX: usize = 200;
const MAX_ENDPOINTS: usize = 16;
const LEASE: Duration = Duration::from_secs(5);
/// What etcd grants at least with its default election timeout is 2 s.
const LEASES: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(600));

/// `[fleet]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetConfig {
    /// URLs of etcd's members, at least one, all `http` or all `https`.
    pub endpoints: Vec<String>,
    /// Of every key, with a slash in front and none behind.
    pub prefix: String,
    /// Authorities of etcd's certificates; the system's where absent.
    pub ca_file: Option<PathBuf>,
    /// Certificate and key that this node shows to etcd.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// User and the file of the password.
    pub login: Option<(String, PathBuf)>,
    /// Time to live of the node's lease, in whole seconds.
    pub lease: Duration,
    /// The document may name commands to run on this node.
    pub commands: bool,
}

impl FleetConfig {
    /// The key of the document.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}/config", self.prefix)
    }
}

fn endpoint(text: &str) -> Result<String, Refusal> {
    let why = || Refusal::expected(ENDPOINT);
    let uri: http::Uri = text.parse().map_err(|_| why())?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(why().but("write http:// or https:// in front"));
    }
    let authority = uri.authority().ok_or_else(why)?;
    if authority.as_str().contains('@') {
        return Err(why().but("user and password_file say who logs in"));
    }
    if authority.port_u16().is_none_or(|port| port == 0) {
        return Err(why().but("the port is missing; etcd's is 2379"));
    }
    if uri.query().is_some() || !matches!(uri.path(), "" | "/") {
        return Err(why().but("nothing follows the port; keys begin with prefix"));
    }
    Ok(text.trim_end_matches('/').to_owned())
}

fn prefix(text: &str) -> Result<String, Refusal> {
    let why = || Refusal::expected(PREFIX);
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let parts = text.strip_prefix('/').ok_or_else(|| why().but("it begins with a slash"))?;
    if parts.split('/').any(|part| part.is_empty() || !part.chars().all(plain)) {
        return Err(why().but("names of letters, digits and -_. with a slash between them"));
    }
    if text.len() > MAX_PREFIX {
        return Err(why().but(format!("of at most {MAX_PREFIX} characters")));
    }
    Ok(text.to_owned())
}

fn path(text: &str, expected: &str) -> Result<Option<PathBuf>, Refusal> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(Some(path)) } else { Err(Refusal::expected(expected)) }
}

/// Reads the section.
pub(super) fn read<'a>(notes: &'a Notes<'a>, table: &'a DeTable<'a>, at: usize) -> Option<FleetConfig> {
    let fleet = Section::open(notes, table, at, "[fleet]", vec!["fleet".to_owned()], &schema::FLEET);
    let endpoints = fleet.list("endpoints", ENDPOINTS, |value| endpoint(text(value, ENDPOINT)?));
    let prefix = fleet.text("prefix", PREFIX, prefix);
    let file = |key, expected| fleet.text(key, expected, |text| path(text, expected));
    let (ca_file, cert_file) = (file("ca_file", CERTIFICATES), file("cert_file", CERTIFICATES));
    let (key_file, password_file) = (file("key_file", KEY), file("password_file", PASSWORD));
    let user = fleet.text("user", USER, |text| match text {
        "" => Err(Refusal::expected(USER)),
        name => Ok(Some(name.to_owned())),
    });
    let lease = duration(&fleet, "lease", LEASES.0, LEASES.1);
    if let Some((time, at)) = lease.get()
        && time.subsec_nanos() != 0
    {
        let found = format!("lease = \"{}\"", format_duration(*time));
        fleet.refuse(at, "lease", found, Refusal::expected("whole seconds"));
    }
    for (key, absent, expected) in [
        ("endpoints", matches!(endpoints, Setting::Absent), ENDPOINTS),
        ("prefix", matches!(prefix, Setting::Absent), PREFIX),
    ] {
        if absent {
            fleet.missing(key, expected);
        }
    }
    check_endpoints(&fleet, &endpoints, [("ca_file", &ca_file), ("cert_file", &cert_file)]);
    let absent = |setting: &Setting<Option<PathBuf>>| matches!(setting, Setting::Absent);
    let no_user = matches!(user, Setting::Absent);
    for (key, missing, expected) in [
        ("key_file", !absent(&cert_file) && absent(&key_file), KEY),
        ("cert_file", absent(&cert_file) && !absent(&key_file), CERTIFICATES),
        ("password_file", !no_user && absent(&password_file), PASSWORD),
        ("user", no_user && !absent(&password_file), USER),
    ] {
        if missing {
            fleet.missing(key, expected);
        }
    }
    let pair = |first: Option<PathBuf>, second: Option<PathBuf>| first.zip(second);
    let plain = endpoints.map(|list| list.into_iter().map(|(endpoint, _)| endpoint).collect::<Vec<_>>());
    let login = (fleet.pick("user", &user, None), fleet.pick("password_file", &password_file, None));
    Some(FleetConfig {
        endpoints: fleet.pick("endpoints", &plain, plain.value()?.clone()),
        prefix: fleet.pick("prefix", &prefix, prefix.value()?.clone()),
        ca_file: fleet.pick("ca_file", &ca_file, None),
        identity: pair(fleet.pick("cert_file", &cert_file, None), fleet.pick("key_file", &key_file, None)),
        login: login.0.zip(login.1),
        lease: fleet.pick("lease", &lease, LEASE),
        commands: fleet.pick("commands", &fleet.switch("commands"), false),
    })
}

/// All alike, none twice, and no certificates where nobody asks for them.
fn check_endpoints(
    fleet: &Section<'_>,
    endpoints: &Setting<Vec<(String, usize)>>,
    files: [(&str, &Setting<Option<PathBuf>>); 2],
) {
    let Some((list, at)) = endpoints.get() else { return };
    if list.len() > MAX_ENDPOINTS {
        let found = format!("{} endpoints", list.len());
        fleet.refuse(at, "endpoints", found, Refusal::expected(format!("at most {MAX_ENDPOINTS}")));
    }
    let secure = |endpoint: &str| endpoint.starts_with("https");
    for (number, (endpoint, at)) in list.iter().enumerate() {
        let found = || format!("endpoints has \"{}\"", printable(endpoint));
        if list[..number].iter().any(|(other, _)| other == endpoint) {
            fleet.refuse(*at, "endpoints", found(), Refusal::expected("each URL once"));
        } else if secure(endpoint) != secure(&list[0].0) {
            let why = Refusal::expected("https for all or for none");
            fleet.refuse(*at, "endpoints", found(), why);
            return;
        }
    }
    if list.iter().any(|(endpoint, _)| secure(endpoint)) {
        return;
    }
    for (key, file) in files {
        if let Some(at) = file.at() {
            let why = Refusal::advice("it is for TLS: write https:// in endpoints, or remove it");
            fleet.refuse(at, key, format!("{key} without https"), why);
        }
    }
}

/// Notes what only a file of the node's own may say.
pub(super) fn check_document(root: &Section<'_>, document: &DeTable<'_>) {
    let Some(DeValue::Table(firewall)) = document.get("firewall").map(toml::Spanned::get_ref) else { return };
    if let Some(files) = firewall.get("deny_files") {
        let at = root.at + files.span().start;
        let why = Refusal::advice(
            "a file on each node may say something else on each: write the prefixes in deny, or the list in each node's lbd.toml",
        );
        root.notes.problem(
            Some(at),
            "firewall.deny_files".to_owned(),
            "[firewall]",
            "key 'deny_files'".to_owned(),
            why,
        );
    }
}

/// Key and value of what is set.
pub(super) fn entries(fleet: &FleetConfig) -> Vec<(Vec<String>, Value)> {
    let mut entries = vec![("endpoints", json!(fleet.endpoints)), ("prefix", json!(fleet.prefix))];
    entries.extend(fleet.ca_file.as_ref().map(|file| ("ca_file", json!(file))));
    if let Some((certificate, key)) = &fleet.identity {
        entries.extend([("cert_file", json!(certificate)), ("key_file", json!(key))]);
    }
    if let Some((user, password)) = &fleet.login {
        entries.extend([("user", json!(user)), ("password_file", json!(password))]);
    }
    entries.push(("lease", json!(format_duration(fleet.lease))));
    entries.push(("commands", json!(fleet.commands)));
    entries.into_iter().map(|(key, value)| (vec!["fleet".to_owned(), key.to_owned()], value)).collect()
}

/// True for a section that the document may have.
pub(super) fn is_shared(key: &str) -> bool {
    schema::DOCUMENT.keys.contains(&key)
}

/// The files that it names, and the commands that the document names.
pub(super) fn check(config: &Config) -> Result<(), ConfigError> {
    let Some(fleet) = &config.fleet else { return Ok(()) };
    let mut problems = Vec::new();
    let mut refuse =
        |path: &[&str], place: String, found: String, expected: Option<&str>, advice: Option<&str>| {
            let parts: Vec<String> = path.iter().map(|part| (*part).to_owned()).collect();
            // Of a section in a service that has several of them, the service is known.
            let places = [parts.as_slice(), &[parts[0].clone(), parts[1].clone(), "name".to_owned()]];
            let found_at = places.into_iter().find_map(|path| match config.origins.of(path) {
                Origin::File { file, line } => Some((config.files[file].clone(), line)),
                Origin::Default => None,
            });
            let (file, line) = found_at.unwrap_or_else(|| (config.file.clone(), 0));
            problems.push(Problem {
                file,
                line,
                column: usize::from(line > 0),
                key: path.join("."),
                place,
                found,
                expected: expected.map(str::to_owned),
                advice: advice.map(str::to_owned),
            });
        };
    let files = [
        ("ca_file", fleet.ca_file.as_ref(), CERTIFICATES),
        ("cert_file", fleet.identity.as_ref().map(|(file, _)| file), CERTIFICATES),
        ("key_file", fleet.identity.as_ref().map(|(_, file)| file), KEY),
        ("password_file", fleet.login.as_ref().map(|(_, file)| file), PASSWORD),
    ];
    for (key, file, expected) in files.into_iter().filter_map(|(key, file, why)| Some((key, file?, why))) {
        let result = match key {
            "key_file" => PrivateKeyDer::from_pem_file(file)
                .map(drop)
                .map_err(|error| format!("holds no private key that can be read ({error})")),
            "password_file" => read_password(file).map(drop),
            _ => read_certificates(file).map(drop),
        };
        if let Err(why) = result {
            let found = format!("{key} = \"{}\" {why}", printable(&file.display().to_string()));
            refuse(&["fleet", key], "[fleet]".to_owned(), found, Some(expected), None);
        }
    }
    if let Some(document) = config.fleet_file
        && !fleet.commands
    {
        for service in &config.services {
            let name = ["service", service.name.as_str(), "name"].map(str::to_owned);
            let is_of_fleet =
                matches!(config.origins.of(&name), Origin::File { file, .. } if file == document);
            if let Some((key, what)) = commands(service).filter(|_| is_of_fleet) {
                let advice =
                    "a node runs only commands of its own files, unless its [fleet] has commands = true";
                let path = ["service", service.name.as_str(), key, "command"];
                refuse(&path, format!("service '{}'", service.name), what.to_owned(), None, Some(advice));
            }
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(ConfigError { problems }) }
}

fn commands(service: &ServiceSpec) -> Option<(&'static str, &'static str)> {
    match service.health.check {
        HealthCheck::Exec(_) => Some(("health", "a health check of type \"exec\" in the fleet's document")),
        _ if !service.pool.notify.is_empty() => {
            Some(("notify", "a section [[service.notify]] in the fleet's document"))
        }
        _ => None,
    }
}
