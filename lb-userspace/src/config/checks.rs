//! The keys of `[service.health]` that only checks of certain types have.

use super::{
    address::directory,
    health::{Kind, some},
    reader::{Refusal, Section, Setting, integer, one_of, text},
};
use crate::model::{GrpcCheck, HealthCheck, HttpCheck, MysqlCheck, RedisCheck, Role, StatusRange, TlsSpec};
use std::path::PathBuf;
use toml::de::DeValue;

/// Longest regular expression, and the memory one may take when it is compiled, in bytes.
const MAX_PATTERN: usize = 512;
const MAX_COMPILED: usize = 256 * 1024;
/// Header fields of a request at most.
const MAX_HEADERS: usize = 32;

const HTTP: &[Kind] = &[Kind::Http, Kind::Https];
const TLS: &[Kind] = &[Kind::Https, Kind::Grpc];
const GRPC: &[Kind] = &[Kind::Grpc];
const USER_OF: &[Kind] = &[Kind::Mysql, Kind::Redis, Kind::Exec];
const DATABASES: &[Kind] = &[Kind::Mysql, Kind::Redis];

/// What one section says.
pub(super) struct CheckKeys {
    path: Setting<String>,
    host: Setting<String>,
    method: Setting<String>,
    headers: Setting<Vec<(String, String)>>,
    status: Setting<Vec<StatusRange>>,
    body: Setting<String>,
    server_name: Setting<String>,
    verify: Setting<bool>,
    ca_file: Setting<PathBuf>,
    tls: Setting<bool>,
    service: Setting<String>,
    user: Setting<String>,
    password_file: Setting<PathBuf>,
    role: Setting<Role>,
}

/// Whether an HTTP check is inside TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Http {
    Plain,
    Tls,
}

impl CheckKeys {
    /// What a section that is not there says.
    pub(super) const ABSENT: Self = Self {
        path: Setting::Absent,
        host: Setting::Absent,
        method: Setting::Absent,
        headers: Setting::Absent,
        status: Setting::Absent,
        body: Setting::Absent,
        server_name: Setting::Absent,
        verify: Setting::Absent,
        ca_file: Setting::Absent,
        tls: Setting::Absent,
        service: Setting::Absent,
        user: Setting::Absent,
        password_file: Setting::Absent,
        role: Setting::Absent,
    };

    pub(super) fn read(section: &Section<'_>) -> Self {
        Self {
            path: section.text("path", PATH, path),
            host: section.text("host", HOST, host),
            method: section.text("method", &one_of(&METHODS), method),
            headers: headers(section),
            status: section.read("status", status),
            body: section.text("body", BODY, body),
            server_name: section.text("server_name", SERVER_NAME, server_name),
            verify: section.switch("verify"),
            ca_file: section.text("ca_file", FILE, file),
            tls: section.switch("tls"),
            service: section.text("service", SERVICE, service),
            user: section.text("user", USER, user),
            password_file: section.text("password_file", FILE, file),
            role: section.word("role", &ROLES, &[]),
        }
    }

    /// Where each key stands, with the types that have it.
    pub(super) fn places(&self) -> Vec<(&'static [Kind], &'static str, Option<usize>)> {
        vec![
            (HTTP, "path", self.path.at()),
            (HTTP, "host", self.host.at()),
            (HTTP, "method", self.method.at()),
            (HTTP, "headers", self.headers.at()),
            (HTTP, "status", self.status.at()),
            (HTTP, "body", self.body.at()),
            (TLS, "server_name", self.server_name.at()),
            (TLS, "verify", self.verify.at()),
            (TLS, "ca_file", self.ca_file.at()),
            (GRPC, "tls", self.tls.at()),
            (GRPC, "service", self.service.at()),
            (USER_OF, "user", self.user.at()),
            (DATABASES, "password_file", self.password_file.at()),
            (DATABASES, "role", self.role.at()),
        ]
    }

    /// The check of type `http` or `https`.
    pub(super) fn http(&self, section: &Section<'_>, defaults: &Self, http: Http) -> HealthCheck {
        let built_in = HttpCheck::default();
        let method = section.pick("method", self.method.or(&defaults.method), built_in.method);
        let body = self.body.or(&defaults.body);
        if method == "HEAD" && body.value().is_some() {
            let at = self.body.at().or(self.method.at()).unwrap_or(section.at);
            let why = Refusal::advice("the answer to HEAD has no body: remove one of the two");
            section.refuse(at, "body", "body with method = \"HEAD\"".to_owned(), why);
        }
        HealthCheck::Http(HttpCheck {
            method,
            path: section.pick("path", self.path.or(&defaults.path), built_in.path),
            host: section.pick("host", &some(self.host.or(&defaults.host)), None),
            headers: section.pick("headers", self.headers.or(&defaults.headers), Vec::new()),
            status: section.pick("status", self.status.or(&defaults.status), built_in.status),
            body: section.pick("body", &some(body), None),
            tls: (http == Http::Tls).then(|| self.tls(section, defaults)),
        })
    }

    /// The check of type `grpc`.
    pub(super) fn grpc(&self, section: &Section<'_>, defaults: &Self) -> HealthCheck {
        let tls = section.pick("tls", self.tls.or(&defaults.tls), false);
        if !tls {
            let keys = [
                ("server_name", self.server_name.at()),
                ("verify", self.verify.at()),
                ("ca_file", self.ca_file.at()),
            ];
            for (key, at) in keys.into_iter().filter_map(|(key, at)| Some((key, at?))) {
                let why = Refusal::advice("only TLS uses that: set it, or remove the rest");
                section.refuse(at, key, format!("{key} without tls = true"), why);
            }
        }
        HealthCheck::Grpc(GrpcCheck {
            service: section.pick("service", self.service.or(&defaults.service), String::new()),
            tls: tls.then(|| self.tls(section, defaults)),
        })
    }

    /// The check of type `mysql`.
    pub(super) fn mysql(&self, section: &Section<'_>, defaults: &Self) -> HealthCheck {
        let (user, password_file, role) = self.login(section, defaults);
        if *self.user.or(&defaults.user) == Setting::Absent {
            let refused = if role != Role::Any {
                Some(("role", self.role.at(), format!("role = \"{role}\" without user")))
            } else {
                let file = password_file.as_ref();
                file.map(|_| {
                    ("password_file", self.password_file.at(), "password_file without user".to_owned())
                })
            };
            if let Some((key, at, found)) = refused {
                let why = Refusal::advice("only a user who may log in can ask: set user");
                section.refuse(at.unwrap_or(section.at), key, found, why);
            }
        }
        HealthCheck::Mysql(MysqlCheck { user, password_file, role })
    }

    /// The check of type `redis`.
    pub(super) fn redis(&self, section: &Section<'_>, defaults: &Self) -> HealthCheck {
        let (user, password_file, role) = self.login(section, defaults);
        if let (None, Some(at)) = (&password_file, self.user.at())
            && *self.password_file.or(&defaults.password_file) == Setting::Absent
        {
            let why = Refusal::advice("nobody logs in to Redis without a password: set password_file");
            section.refuse(at, "user", "user without password_file".to_owned(), why);
        }
        HealthCheck::Redis(RedisCheck { user, password_file, role })
    }

    fn login(&self, section: &Section<'_>, defaults: &Self) -> (Option<String>, Option<PathBuf>, Role) {
        let file = some(self.password_file.or(&defaults.password_file));
        (
            section.pick("user", &some(self.user.or(&defaults.user)), None),
            section.pick("password_file", &file, None),
            section.pick("role", self.role.or(&defaults.role), Role::Any),
        )
    }

    /// Who runs a command.
    pub(super) fn system_user(&self, section: &Section<'_>, defaults: &Self) -> String {
        let setting = self.user.or(&defaults.user);
        if let Some((user, at)) = setting.get()
            && !is_system_user(user)
        {
            section.refuse(at, "user", format!("user = \"{user}\""), Refusal::expected(SYSTEM_USER));
        }
        section.pick("user", setting, "nobody".to_owned())
    }

    fn tls(&self, section: &Section<'_>, defaults: &Self) -> TlsSpec {
        let verify = section.pick("verify", self.verify.or(&defaults.verify), true);
        if let (false, Some(at)) = (verify, self.ca_file.at()) {
            let why = Refusal::advice("nothing is verified then: remove one of the two");
            section.refuse(at, "ca_file", "ca_file with verify = false".to_owned(), why);
        }
        TlsSpec {
            server_name: section.pick("server_name", &some(self.server_name.or(&defaults.server_name)), None),
            verify,
            ca_file: section.pick("ca_file", &some(self.ca_file.or(&defaults.ca_file)), None),
        }
    }
}

const PATH: &str = "an absolute path such as \"/healthz\"";

fn path(text: &str) -> Result<String, Refusal> {
    if !text.starts_with('/') {
        return Err(Refusal::expected(PATH));
    }
    if text.len() > 1024 || !text.bytes().all(|b| b.is_ascii_graphic()) || text.contains('#') {
        return Err(Refusal::expected("at most 1024 visible ASCII characters, without '#'")
            .but("write others percent-encoded"));
    }
    Ok(text.to_owned())
}

const HOST: &str = "a host name such as \"www.example.com\"";

fn host(text: &str) -> Result<String, Refusal> {
    let valid = (1..=255).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b));
    if valid { Ok(text.to_owned()) } else { Err(Refusal::expected(HOST)) }
}

const METHODS: [&str; 4] = ["GET", "HEAD", "OPTIONS", "POST"];

fn method(text: &str) -> Result<String, Refusal> {
    if METHODS.contains(&text) { Ok(text.to_owned()) } else { Err(Refusal::expected(one_of(&METHODS))) }
}

const STATUS: &str = "status codes from 100 to 599, such as 200, \"200-299\" or [200, \"301-302\"]";

fn status(value: &DeValue<'_>) -> Result<Vec<StatusRange>, Refusal> {
    let refused = || Refusal::expected(STATUS);
    let range = |value: &DeValue<'_>| {
        let (lo, hi) = if value.is_integer() {
            let code = integer(value, STATUS)?;
            (code, code)
        } else {
            let text = text(value, STATUS)?;
            let code = |text: &str| text.trim().parse::<i64>().ok();
            match text.split_once('-') {
                Some((lo, hi)) => (code(lo), code(hi)),
                None => (code(text), code(text)),
            }
        };
        match (lo, hi) {
            (Some(lo @ 100..=599), Some(hi @ 100..=599)) if lo <= hi => {
                Ok(StatusRange { lo: lo as u16, hi: hi as u16 })
            }
            _ => Err(refused()),
        }
    };
    match value {
        DeValue::Array(array) if array.is_empty() => Err(refused()),
        DeValue::Array(array) => array.iter().map(|element| range(element.get_ref())).collect(),
        other => Ok(vec![range(other)?]),
    }
}

const HEADER: &str = "an array of header fields such as [\"X-Probe: lbd\"]";
/// What the request says by itself.
const OWN_FIELDS: [&str; 7] =
    ["host", "connection", "content-length", "transfer-encoding", "upgrade", "te", "trailer"];

fn headers(section: &Section<'_>) -> Setting<Vec<(String, String)>> {
    let fields = section.list("headers", HEADER, |value| field(text(value, HEADER)?));
    if let Some((fields, at)) = fields.get()
        && fields.len() > MAX_HEADERS
    {
        let found = format!("{} headers", fields.len());
        section.refuse(at, "headers", found, Refusal::expected(format!("at most {MAX_HEADERS}")));
    }
    fields.map(|fields| fields.into_iter().map(|(field, _)| field).collect())
}

/// A header field (RFC 9110 section 5) as curl's `-H` has it.
fn field(text: &str) -> Result<(String, String), Refusal> {
    let refused = || Refusal::expected("a header field such as \"X-Probe: lbd\", in visible ASCII");
    let (name, value) = text.split_once(':').ok_or_else(refused)?;
    let value = value.trim_matches([' ', '\t']);
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    let valid = (1..=64).contains(&name.len())
        && name.bytes().all(token)
        && value.len() <= 1024
        && value.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
    if !valid {
        return Err(refused());
    }
    if name.eq_ignore_ascii_case("host") {
        return Err(refused().but("the key host sets the Host header"));
    }
    if OWN_FIELDS.iter().any(|own| name.eq_ignore_ascii_case(own)) {
        return Err(refused().but("the request sets this field by itself"));
    }
    Ok((name.to_owned(), value.to_owned()))
}

const BODY: &str = "a regular expression of at most 512 characters, such as \"status: ok\"";

fn body(text: &str) -> Result<String, Refusal> {
    if text.len() > MAX_PATTERN {
        return Err(Refusal::expected(BODY));
    }
    let compiled = regex::bytes::RegexBuilder::new(text).size_limit(MAX_COMPILED).build();
    compiled.map(|_| text.to_owned()).map_err(|error| {
        let advice = match error {
            regex::Error::CompiledTooBig(_) => "it becomes too large: repeat less".to_owned(),
            // The last line is the reason; the lines before show where.
            error => {
                error.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
            }
        };
        Refusal::expected(BODY).but(advice)
    })
}

const SERVER_NAME: &str = "a host name or an IP address, such as \"www.example.com\"";

fn server_name(text: &str) -> Result<String, Refusal> {
    let address = text.parse::<std::net::IpAddr>().is_ok();
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let numeric = text.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    let name = text.len() <= 253 && !numeric && text.split('.').all(label);
    if address || name { Ok(text.to_owned()) } else { Err(Refusal::expected(SERVER_NAME)) }
}

const FILE: &str = "a file's absolute path";

fn file(text: &str) -> Result<PathBuf, Refusal> {
    directory(text).map_err(|_| Refusal::expected(FILE))
}

const ROLES: [(&str, Role); 4] = [
    ("any", Role::Any),
    ("primary", Role::Primary),
    ("replica", Role::Replica),
    ("prefer-replica", Role::PreferReplica),
];

const SERVICE: &str = "a gRPC service's name of at most 255 visible characters, such as \"shop.v1.Cart\"";

fn service(text: &str) -> Result<String, Refusal> {
    let valid = text.len() <= 255 && text.chars().all(|c| !c.is_control() && c != ' ');
    if valid { Ok(text.to_owned()) } else { Err(Refusal::expected(SERVICE)) }
}

const USER: &str = "a user's name of 1 to 80 visible characters";

fn user(text: &str) -> Result<String, Refusal> {
    let valid = (1..=80).contains(&text.chars().count()) && !text.contains(char::is_control);
    if valid { Ok(text.to_owned()) } else { Err(Refusal::expected(USER)) }
}

pub(super) const SYSTEM_USER: &str = "the name of a user without privileges, such as \"nobody\"";

pub(super) fn is_system_user(text: &str) -> bool {
    text.len() <= 32
        && text != "root"
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}
