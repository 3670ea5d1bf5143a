//! `[service.quic]`, and the server ids of backends.

use super::{
    reader::{Refusal, Section, Setting},
    schema,
    service::{BackendDraft, ServiceDraft},
};
use crate::model::{
    DEFAULT_SERVER_ID_LENGTH, MAX_CONFIG_ID, MAX_SERVER_ID_LENGTH, Protocol, QuicSpec, ServerId,
};
use std::collections::BTreeMap;

/// `[service.quic]` as far as it could be read.
pub(super) struct QuicDraft<'a> {
    section: Option<Section<'a>>,
    server_id_length: Setting<u8>,
    config_id: Setting<u8>,
}

const SERVER_ID: &str = "2 hexadecimal digits for each byte of the server id, such as \"0a01\"";

pub(super) fn read<'a>(service: &Section<'a>) -> QuicDraft<'a> {
    let Some((table, at)) = service.table("quic") else {
        return QuicDraft { section: None, server_id_length: Setting::Absent, config_id: Setting::Absent };
    };
    let place = format!("{}, quic", service.place);
    let path = [service.path.as_slice(), &["quic".to_owned()]].concat();
    let section = Section::open(service.notes, table, at, place, path, &schema::SERVICE_QUIC);
    QuicDraft {
        server_id_length: section.integer("server_id_length", 1, MAX_SERVER_ID_LENGTH.into()),
        config_id: section.integer("config_id", 0, MAX_CONFIG_ID.into()),
        section: Some(section),
    }
}

pub(super) fn read_server_id(backend: &Section<'_>) -> Setting<ServerId> {
    backend.text("server_id", SERVER_ID, |text| text.parse().map_err(|_| Refusal::expected(SERVER_ID)))
}

impl QuicDraft<'_> {
    /// What holds where the length was refused is not known: no server id is judged by it.
    fn length(&self) -> Option<u8> {
        match self.server_id_length {
            Setting::Is(length, _) => Some(length),
            Setting::Absent => Some(DEFAULT_SERVER_ID_LENGTH),
            Setting::Refused => None,
        }
    }

    /// The settings of a QUIC service; `None` for another protocol.
    pub(super) fn build(&self, protocol: Protocol, backends: &[BackendDraft<'_>]) -> Option<QuicSpec> {
        if protocol != Protocol::Quic {
            return None;
        }
        let pick = |key, setting, default| match &self.section {
            Some(section) => section.pick(key, setting, default),
            None => default,
        };
        let server_id_length = pick("server_id_length", &self.server_id_length, DEFAULT_SERVER_ID_LENGTH);
        let config_id = pick("config_id", &self.config_id, 0);
        let server_ids = backends.iter().filter_map(|backend| {
            let derived = ServerId::of_address(*backend.address.value()?, server_id_length);
            let server_id = backend.section.pick("server_id", &backend.server_id, derived);
            Some((backend.name.value()?.clone(), server_id))
        });
        Some(QuicSpec { server_id_length, config_id, server_ids: server_ids.collect() })
    }
}

/// Notes settings of QUIC where there is none, and server ids that are too long, too short or somebody else's.
pub(super) fn check(service: &ServiceDraft<'_>) {
    match &service.protocol {
        Setting::Is(Protocol::Quic, _) => check_ids(service),
        Setting::Is(..) | Setting::Absent => {
            let why = || Refusal::expected("protocol = \"quic\" in its service").but("or remove it");
            if let Some(section) = &service.quic.section {
                service.section.refuse(section.at, "quic", "section 'quic' is of no use".to_owned(), why());
            }
            for backend in &service.backends {
                if let Some((id, at)) = backend.server_id.get() {
                    backend.section.refuse(at, "server_id", format!("server_id = \"{id}\""), why());
                }
            }
        }
        Setting::Refused => {}
    }
}

fn check_ids(service: &ServiceDraft<'_>) {
    let Some(length) = service.quic.length() else { return };
    let mut seen: BTreeMap<ServerId, usize> = BTreeMap::new();
    for backend in &service.backends {
        let section = &backend.section;
        let (id, found, at) = match (&backend.server_id, backend.address.get()) {
            (Setting::Is(id, at), _) => {
                let at = *at;
                let found = format!("server_id = \"{id}\"");
                if id.bytes().len() != usize::from(length) {
                    let why = Refusal::expected(format!(
                        "{} hexadecimal digits: server_id_length is {length}",
                        2 * length
                    ));
                    section.refuse(at, "server_id", found, why);
                    continue;
                }
                (id.clone(), found, at)
            }
            (Setting::Absent, Some((address, at))) => {
                let id = ServerId::of_address(*address, length);
                let found = format!("address = \"{address}\", which makes the server id {id}");
                (id, found, at)
            }
            _ => continue,
        };
        if let Some(first) = seen.get(&id) {
            let why = Refusal::expected("a server id that no other backend of the service has").but(format!(
                "the backend on line {first} has it; set server_id of one of them, or a larger server_id_length"
            ));
            section.refuse(at, "server_id", found, why);
        } else {
            seen.insert(id, section.notes.line(section.at));
        }
    }
}
