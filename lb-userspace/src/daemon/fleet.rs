//! The part of the configuration that all nodes share, and who has the word in the fleet.

use super::{StartError, engine::Engine, error::EngineError};
use crate::{
    config::{self, Config, SourceFile},
    control::{
        command::{CommandError, Reply},
        fleet::{
            FleetAuthority, FleetCommand, FleetDocument, FleetNode, FleetPut, FleetRefusal, FleetView,
            PutAnswer, PutDocument, RingView,
        },
        gradual::ChangeOptions,
    },
    events::{Kind, News},
    fleet::{Authority, Document, FleetError, FleetHandle, NodeRecord, PutRecord, RefusedRecord, Request},
    state::{LastGood, LoadedCopy, StateDir},
};
use sha2::{Digest as _, Sha256};
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::sync::{Notify, oneshot};

/// Largest document, in bytes: etcd takes requests of 1.5 MiB.
const MAX_DOCUMENT: usize = 1_400_000;
/// Rings told one by one to the other nodes; of more only whether they are the same.
const TOLD_RINGS: usize = 256;
/// How long the end of the daemon waits for the lease to be given back.
const FAREWELL: Duration = Duration::from_secs(1);

/// What is known of the fleet; nothing as long as no configuration has one.
#[derive(Default)]
pub(super) struct Fleet {
    handle: Option<FleetHandle>,
    /// The fleet's thread has something.
    pub(super) told: Arc<Notify>,
    /// The node's own part of the configuration, as in force.
    files: Vec<SourceFile>,
    /// In force.
    document: Option<LastGood>,
    /// It is the copy on disk, and etcd has not said the same yet.
    from_copy: bool,
    /// The latest one, if it was refused, and why.
    refused: Option<(Document, String)>,
    applied: u64,
    refusals: u64,
    authority: Authority,
    /// Of this start.
    boot: String,
}

/// As messages show it.
fn source(copy: &LastGood) -> SourceFile {
    SourceFile { name: format!("etcd:{}@{}", copy.key, copy.generation), text: copy.text.clone() }
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The configuration that a start begins with: the node's files, and the last good copy of the fleet's document.
pub(super) fn begin(file: &Path) -> Result<(Config, Fleet), StartError> {
    let files = config::read_files(file)?;
    let config = config::load_from(&files)?;
    let mut fleet = Fleet { files, ..Fleet::default() };
    let Some(of_fleet) = &config.fleet else { return Ok((config, Fleet::default())) };
    let key = of_fleet.key();
    match last_good(&config.node.state_dir)? {
        Some(copy) if copy.key == key => {
            let config = config::load_with(&fleet.files, Some(&source(&copy)))?;
            tracing::warn!(
                generation = copy.generation,
                key,
                "starting with the last good copy of the fleet's document; etcd is asked meanwhile"
            );
            (fleet.document, fleet.from_copy) = (Some(copy), true);
            Ok((config, fleet))
        }
        other => {
            let copy = other.map_or("none on this node".to_owned(), |copy| format!("only of {}", copy.key));
            tracing::error!(
                key,
                copy,
                services = config.services.len(),
                "no last good copy of the fleet's document: only the services of the node's own files are served until etcd answers"
            );
            Ok((config, fleet))
        }
    }
}

fn last_good(state_dir: &Path) -> Result<Option<LastGood>, StartError> {
    if !state_dir.exists() {
        return Ok(None);
    }
    let state_dir = StateDir::open(state_dir).map_err(EngineError::from)?;
    match state_dir.load_fleet(SystemTime::now()).map_err(EngineError::from)? {
        LoadedCopy::None => Ok(None),
        LoadedCopy::Read(copy) => Ok(Some(copy)),
        LoadedCopy::SetAside { file, moved_to, why } => {
            tracing::error!(
                file = %file.display(),
                moved_to = %moved_to.display(),
                why,
                "the last good copy of the fleet's document is damaged and was moved aside"
            );
            Ok(None)
        }
    }
}

/// What a configuration is read from.
#[derive(Clone, Copy)]
pub(super) enum Texts<'a> {
    /// The node's files as they are now, with the document in force.
    Files,
    /// The node's files as they are in force, with this document.
    Document(&'a Document),
}

impl Engine {
    /// The texts, and whether the last of them is the fleet's.
    pub(super) fn sources(
        &self,
        from: Texts<'_>,
    ) -> Result<(Vec<SourceFile>, Option<SourceFile>), EngineError> {
        Ok(match from {
            Texts::Files => {
                (config::read_files(&self.config_file)?, self.fleet.document.as_ref().map(source))
            }
            Texts::Document(document) => (self.fleet.files.clone(), Some(source(&copy_of(document)))),
        })
    }

    /// These texts of the node's own are in force.
    pub(super) fn note_files(&mut self, files: Vec<SourceFile>) {
        self.fleet.files = if self.config.fleet.is_some() { files } else { Vec::new() };
    }

    /// Asks etcd, or another one, or none any more, as the configuration says.
    pub(super) fn configure_fleet(&mut self) -> Result<(), EngineError> {
        let node = &self.config.node.name;
        let settings = self.config.fleet.as_ref().map(|config| (config, node.as_str()));
        if self.fleet.handle.as_ref().map(FleetHandle::settings) == settings {
            return Ok(());
        }
        let settings = settings.map(|(config, node)| (config.clone(), node.to_owned()));
        if let Some(old) = self.fleet.handle.take() {
            old.stop();
            tokio::spawn(old.ended(FAREWELL));
            self.authority_changed(Authority { epoch: self.fleet.authority.epoch, ..Authority::default() });
        }
        let Some((config, node)) = settings else {
            self.fleet = Fleet { told: Arc::clone(&self.fleet.told), ..Fleet::default() };
            return Ok(());
        };
        let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), unix_seconds());
        self.fleet.boot = format!("{random:016x}");
        let told = Arc::clone(&self.fleet.told);
        let handle = FleetHandle::spawn(config, node, told).map_err(EngineError::Fleet)?;
        // Where slots are shared, one that lacks those of the others does not stand.
        handle.stand(self.config.sync.is_none());
        self.fleet.handle = Some(handle);
        self.tend_fleet();
        Ok(())
    }

    /// Tells the other nodes what is in force here, if that is something else than before.
    pub(super) fn tend_fleet(&mut self) {
        if self.fleet.handle.is_none() {
            return;
        }
        let services_hash = self.hashes().services;
        let rings = self.rings_in_force();
        let fleet = &self.fleet;
        let record = NodeRecord {
            boot: fleet.boot.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            generation: fleet.document.as_ref().map_or(0, |document| document.generation),
            services_hash,
            rings_hash: rings_hash(&rings),
            rings: if rings.len() > TOLD_RINGS { BTreeMap::new() } else { rings },
            refused: fleet.refused.as_ref().map(|(document, reason)| RefusedRecord {
                generation: document.generation,
                reason: reason.clone(),
            }),
        };
        if let Some(handle) = &fleet.handle {
            handle.register(record);
        }
    }

    /// Seed and slots of every service's ring.
    fn rings_in_force(&self) -> BTreeMap<String, (u64, u32)> {
        let services = self.effective.services.iter().map(|service| &service.spec);
        let rings = services.filter_map(|spec| {
            let size = spec.ring_size.or_else(|| self.changes.ring_size(&spec.name))?;
            Some((spec.name.to_string(), (spec.seed, size)))
        });
        rings.collect()
    }

    /// The fleet's thread has something.
    pub(super) fn fleet_news(&mut self) {
        let Some(news) = self.fleet.handle.as_ref().map(FleetHandle::take) else { return };
        if let Some(authority) = news.authority {
            self.authority_changed(authority);
        }
        match news.document {
            Some(document) => self.take_document(document),
            None if news.deleted => {
                let generation = self.fleet.document.as_ref().map_or(0, |document| document.generation);
                tracing::warn!(
                    generation,
                    "the fleet's document was deleted from etcd; it stays in force here"
                );
                self.tell_fleet(&generation.to_string(), "deleted", "it stays in force".to_owned());
            }
            None => {}
        }
    }

    /// Another node is the authority, or this one, or nobody is known to be it.
    pub(super) fn authority_changed(&mut self, authority: Authority) {
        let before = std::mem::replace(&mut self.fleet.authority, authority);
        let now = &self.fleet.authority;
        if before == *now {
            return;
        }
        let name = |of: &Authority| of.holder.clone().unwrap_or_else(|| "nobody".to_owned());
        let (from, to, epoch) = (name(&before), name(now), now.epoch);
        tracing::info!(from, to, epoch, mine = now.mine, "the fleet's authority");
        self.tell_fleet(&format!("authority {from}"), &to, format!("epoch {epoch}"));
        self.follow_authority(self.fleet.authority.clone());
    }

    /// Who has the word, as this node knows it.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.fleet.authority
    }

    /// The nodes that etcd knows to live, this one among them; none if it does not answer.
    pub(super) fn fleet_nodes(&self) -> Option<usize> {
        let view = self.fleet.handle.as_ref()?.view();
        view.endpoint.is_some().then_some(view.nodes.len())
    }

    /// Whether this node stands for election.
    pub(super) fn stand(&self, stands: bool) {
        if let Some(handle) = &self.fleet.handle {
            handle.stand(stands);
        }
    }

    fn tell_fleet(&self, from: &str, to: &str, reason: String) {
        let (from, to) = (from.to_owned(), to.to_owned());
        self.events.publish(News {
            kind: Kind::Fleet,
            service: String::new(),
            backend: None,
            from,
            to,
            reason,
        });
    }

    /// etcd has this one. What is in force already, or refused already, is no news.
    fn take_document(&mut self, document: Document) {
        let same = |key: &str, generation| key == document.key && generation == document.generation;
        if let Some(running) = self.fleet.document.as_ref().filter(|it| same(&it.key, it.generation)) {
            if std::mem::take(&mut self.fleet.from_copy) {
                let generation = running.generation;
                tracing::info!(generation, "etcd has the generation of the last good copy");
            }
            self.fleet.refused = None;
            self.tend_fleet();
            return;
        }
        if self.fleet.refused.as_ref().is_some_and(|(it, _)| same(&it.key, it.generation)) {
            return;
        }
        let older = |it: &&LastGood| it.key == document.key && it.generation > document.generation;
        if let Some(running) = self.fleet.document.as_ref().filter(older) {
            tracing::warn!(
                running = running.generation,
                found = document.generation,
                "etcd has an older generation than this node: was it restored from a backup? etcd counts"
            );
        }
        self.apply_document(document, false);
    }

    /// As a reload, with another document.
    fn apply_document(&mut self, document: Document, force: bool) {
        let forced = document.put.as_ref().is_some_and(|put| put.force);
        let asked = ChangeOptions { plan: false, force: force || forced };
        let before = std::mem::replace(&mut self.asked, asked);
        let result = self.try_reload(false, Texts::Document(&document));
        self.asked = before;
        let running = self.fleet.document.as_ref().map_or(0, |document| document.generation);
        let by = document.put.as_ref().map_or("not through lbd", |put| put.by.as_str());
        let generation = document.generation;
        match result {
            Ok(view) => {
                tracing::info!(generation, before = running, by, "{}", view.message);
                self.tell_fleet(&running.to_string(), &generation.to_string(), view.message);
                let copy = copy_of(&document);
                if let Err(error) = self.state_dir.store_fleet(&copy) {
                    tracing::error!(%error, "the fleet's document could not be kept for the next start");
                }
                self.fleet.document = Some(copy);
                (self.fleet.from_copy, self.fleet.refused) = (false, None);
                self.fleet.applied += 1;
            }
            Err(error) => {
                let reason = error.to_string();
                tracing::error!(
                    generation,
                    running,
                    by,
                    error = reason,
                    "the fleet's document is refused; the running configuration stays"
                );
                self.tell_fleet(&running.to_string(), &format!("{generation} refused"), reason.clone());
                self.fleet.refused = Some((document, reason));
                self.fleet.refusals += 1;
            }
        }
        self.tend_fleet();
    }

    /// After a reload: what was wrong with the document may have been this node's fault. Says what came of it.
    pub(super) fn retry_document(&mut self, force: bool) -> Option<String> {
        let (document, _) = self.fleet.refused.take()?;
        let generation = document.generation;
        self.apply_document(document, force);
        Some(match &self.fleet.refused {
            None => format!("generation {generation} of the fleet's document is in force now"),
            Some((_, why)) => {
                format!("generation {generation} of the fleet's document is still refused: {why}")
            }
        })
    }

    /// Gives the lease back; see [`Engine::fleet_ended`].
    pub(super) fn stop_fleet(&mut self) {
        if let Some(handle) = &self.fleet.handle {
            handle.stop();
        }
    }

    /// Waits until the lease is given back, not for long.
    pub(super) async fn fleet_ended(&mut self) {
        if let Some(handle) = self.fleet.handle.take() {
            handle.ended(FAREWELL).await;
        }
    }

    pub(super) fn answer_fleet(&mut self, command: FleetCommand) {
        match command {
            FleetCommand::Status(reply) => _ = reply.send(Ok(self.fleet_view())),
            FleetCommand::Get(reply) => self.get_document(reply),
            FleetCommand::Put { put, by, reply } => self.put_document(put, by, reply),
        }
    }

    fn get_document(&self, reply: Reply<FleetDocument>) {
        let (sender, answer) = oneshot::channel();
        let Some(handle) = &self.fleet.handle else {
            let _ = reply.send(Err(no_fleet()));
            return;
        };
        let key = handle.settings().0.key();
        if handle.ask(Request::Get(sender)).is_err() {
            let _ = reply.send(Err(busy()));
            return;
        }
        tokio::spawn(async move {
            let found = answer.await.unwrap_or_else(|_| Err(ended()));
            let view = found.map(|found| match found {
                Some(Document { key, generation, text, .. }) => FleetDocument { key, generation, text },
                None => FleetDocument { key, ..FleetDocument::default() },
            });
            let _ = reply.send(view.map_err(|error| failed(&error)));
        });
    }

    fn put_document(&mut self, put: PutDocument, by: String, reply: Reply<PutAnswer>) {
        let warnings = match self.check_document(&put) {
            Ok(warnings) => warnings,
            Err(error) => {
                let _ = reply.send(Err(error));
                return;
            }
        };
        let Some(handle) = &self.fleet.handle else {
            let _ = reply.send(Err(no_fleet()));
            return;
        };
        let expected = put.if_generation.unwrap_or_else(|| handle.view().stored.unwrap_or(0));
        let key = handle.settings().0.key();
        let record = PutRecord {
            by: by.clone(),
            node: self.config.node.name.clone(),
            at: unix_seconds(),
            force: put.force,
        };
        let (sender, answer) = oneshot::channel();
        if handle.ask(Request::Put { text: put.text, expected, record, reply: sender }).is_err() {
            let _ = reply.send(Err(busy()));
            return;
        }
        tokio::spawn(async move {
            let written = answer.await.unwrap_or_else(|_| Err(ended()));
            if let Ok(generation) = &written {
                tracing::info!(by, key, generation, "the fleet's document was written");
            }
            let _ = reply.send(written.map_err(|error| failed(&error)).map(|generation| PutAnswer {
                message: format!(
                    "{key}: generation {generation} is in etcd; `lbctl fleet` shows which nodes have taken it"
                ),
                generation,
                warnings,
            }));
        });
    }

    /// As if it had come from etcd. What may not be meant.
    fn check_document(&mut self, put: &PutDocument) -> Result<Vec<String>, CommandError> {
        if self.config.fleet.is_none() {
            return Err(no_fleet());
        }
        if put.text.len() > MAX_DOCUMENT {
            let found = put.text.len();
            let error = format!("the document has {found} bytes: etcd takes at most {MAX_DOCUMENT}");
            return Err(CommandError::Invalid(error));
        }
        let name = put.name.clone().unwrap_or_else(|| "the document".to_owned());
        let source = SourceFile { name, text: put.text.clone() };
        let mut new = config::load_with(&self.fleet.files, Some(&source)).map_err(EngineError::from)?;
        self.names.answers.fill(&mut new);
        let asked = ChangeOptions { plan: false, force: put.force };
        let before = std::mem::replace(&mut self.asked, asked);
        let changes = self.changes.clone();
        let foreseen = self.foresee(Some(&new), &changes);
        self.asked = before;
        foreseen?;
        let document = new.fleet_file;
        let of_fleet = |name: &str| {
            let path = ["service", name, "name"].map(str::to_owned);
            matches!(new.origins.of(&path), config::Origin::File { file, .. } if Some(file) == document)
        };
        let services = new.services.iter().filter(|spec| of_fleet(spec.name.as_str()));
        let unsized_ones: Vec<&str> =
            services.filter(|spec| spec.ring_size.is_none()).map(|spec| spec.name.as_str()).collect();
        let mut warnings = Vec::new();
        if !unsized_ones.is_empty() {
            let (first, more) = (unsized_ones[0], unsized_ones.len() - 1);
            let whose = if more == 0 { first.to_owned() } else { format!("{first} and {more} more") };
            warnings.push(format!(
                "no ring_size is set for {whose}: a node that joins once there are more backends may choose a larger ring than \
                 the others have; set it in [defaults] or in the service"
            ));
        }
        Ok(warnings)
    }

    pub(super) fn fleet_view(&mut self) -> FleetView {
        let services_hash = self.hashes().services;
        let rings = self.rings_in_force();
        let rings_digest = rings_hash(&rings);
        let fleet = &self.fleet;
        let known = fleet.handle.as_ref().map(FleetHandle::view).unwrap_or_default();
        let refusal =
            |record: RefusedRecord| FleetRefusal { generation: record.generation, reason: record.reason };
        let nodes: Vec<_> = known
            .nodes
            .into_iter()
            .map(|(name, node)| {
                let differ = |(service, ring): (&String, &(u64, u32))| {
                    rings.get(service).is_some_and(|own| own != ring).then(|| service.clone())
                };
                FleetNode {
                    name,
                    same_services: node.services_hash == services_hash,
                    same_rings: node.rings_hash == rings_digest,
                    different_rings: node.rings.iter().filter_map(differ).collect(),
                    version: node.version,
                    generation: node.generation,
                    services_hash: node.services_hash,
                    refused: node.refused.map(refusal),
                }
            })
            .collect();
        FleetView {
            configured: fleet.handle.is_some(),
            key: fleet.handle.as_ref().map(|handle| handle.settings().0.key()),
            endpoint: known.endpoint,
            error: known.error,
            generation: fleet.document.as_ref().map(|document| document.generation),
            from_copy: fleet.from_copy,
            stored_generation: known.stored,
            put_by: known.put.map(|put| FleetPut {
                by: put.by,
                node: put.node,
                at: put.at,
                force: put.force,
            }),
            refused: fleet.refused.as_ref().map(|(document, reason)| FleetRefusal {
                generation: document.generation,
                reason: reason.clone(),
            }),
            applied: fleet.applied,
            refusals: fleet.refusals,
            services_hash,
            authority: FleetAuthority {
                mine: fleet.authority.mine,
                holder: fleet.authority.holder.clone(),
                epoch: fleet.authority.epoch,
            },
            namesake: known.namesake,
            nodes,
            rings: rings
                .into_iter()
                .map(|(service, (seed, size))| RingView { service, seed, size })
                .collect(),
        }
    }
}

fn copy_of(document: &Document) -> LastGood {
    let Document { key, generation, text, put: _ } = document.clone();
    LastGood { key, generation, text }
}

fn rings_hash(rings: &BTreeMap<String, (u64, u32)>) -> String {
    let mut hash = Sha256::new();
    for (service, (seed, size)) in rings {
        hash.update(format!("{service} {seed} {size}\n"));
    }
    hash.finalize().iter().take(8).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn no_fleet() -> CommandError {
    CommandError::Conflict("there is no [fleet] in the configuration of this node".to_owned())
}

fn busy() -> CommandError {
    CommandError::Busy("too many requests wait for etcd: try again".to_owned())
}

fn ended() -> FleetError {
    FleetError::Unreachable("the connection was just given up".to_owned())
}

fn failed(error: &FleetError) -> CommandError {
    let text = error.to_string();
    match error {
        FleetError::Moved { .. } => CommandError::Conflict(text),
        FleetError::Refused(_) | FleetError::Unreachable(_) | FleetError::Unknown(_) => {
            CommandError::Failed(text)
        }
    }
}
