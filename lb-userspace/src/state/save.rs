//! The operator's files with the runtime changes in them. Pure.

use super::{
    apply::{EffectiveService, apply},
    changes::{BackendChanges, Membership, RuntimeChanges},
};
use crate::{
    config::{Config, Origin, SourceFile, format_duration},
    model::{BackendName, BackendSpec, LimitPatch, ServiceName, parse_prefix},
};
use ipnet::IpNet;
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use toml_edit::{Array, ArrayOfTables, DocumentMut, InlineTable, Item, Table, TableLike, Value};

/// What is to be written, and what cannot be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// The files that change, with their new texts.
    pub files: Vec<SourceFile>,
    /// The changes that are left when they are written.
    pub remaining: RuntimeChanges,
    /// Why each of those is left, a line each.
    pub kept: Vec<String>,
    /// How many changes the files say then.
    pub count: usize,
}

/// Why the files cannot be edited.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SaveError {
    #[error("{file}: {why}")]
    Text { file: String, why: String },
    #[error("service '{service}' was not found in {file}")]
    NoService { service: ServiceName, file: String },
}

struct Editor<'a> {
    files: &'a [SourceFile],
    documents: Vec<DocumentMut>,
}

/// Lays the changes into the texts that the configuration was read from. Comments and layout stay.
pub fn save(files: &[SourceFile], config: &Config, changes: &RuntimeChanges) -> Result<Saved, SaveError> {
    let mut documents = Vec::with_capacity(files.len());
    for file in files {
        let failed = |error: toml_edit::TomlError| {
            let why = error.message().to_owned();
            SaveError::Text { file: file.name.clone(), why }
        };
        documents.push(file.text.parse::<DocumentMut>().map_err(failed)?);
    }
    let mut editor = Editor { files, documents };
    let mut remaining = changes.clone();
    let mut kept = Vec::new();
    let effective = apply(&config.services, changes);
    for stale in &effective.stale {
        kept.push(stale.to_string());
    }
    for service in &effective.services {
        let name = &service.spec.name;
        let Some(of_service) = changes.services.get(name) else { continue };
        for (backend, changed) in of_service {
            let stale =
                effective.stale.iter().any(|s| s.change.service == *name && s.change.backend == *backend);
            if stale {
                continue;
            }
            let left = editor.backend(config, service, backend, changed)?;
            if left.weight.is_some() || left.membership.is_some() {
                kept.push(format!(
                    "service '{name}', backend '{backend}': it is of a name, and has no section"
                ));
            } else if let Some(admin) = &left.admin {
                kept.push(format!(
                    "service '{name}', backend '{backend}': {} (no setting of a file says that)",
                    admin.value
                ));
            }
            remaining.set(name, backend, left);
        }
    }
    for (name, patch) in &changes.limits {
        if config.services.iter().any(|service| service.name == *name) {
            set_limits(editor.service(config, name)?, &patch.value);
            remaining.limits.remove(name);
        } else {
            kept.push(format!("limits of service '{name}': the configuration no longer has it"));
        }
    }
    editor.lists(config, &mut remaining, &mut kept);
    let count = changes.count() - remaining.count().min(changes.count());
    let changed = files.iter().zip(&editor.documents).filter_map(|(file, document)| {
        let text = document.to_string();
        (text != file.text).then(|| SourceFile { name: file.name.clone(), text })
    });
    Ok(Saved { files: changed.collect(), remaining, kept, count })
}

impl Editor<'_> {
    /// The service's section.
    fn service(&mut self, config: &Config, name: &ServiceName) -> Result<&mut dyn TableLike, SaveError> {
        let path = ["service", name.as_str(), "name"].map(str::to_owned);
        let file = match config.origins.of(&path) {
            Origin::File { file, .. } => file,
            Origin::Default => 0,
        };
        let missing = || SaveError::NoService {
            service: name.clone(),
            file: self.files.get(file).map_or_else(String::new, |f| f.name.clone()),
        };
        let error = missing();
        let document = self.documents.get_mut(file).ok_or_else(missing)?;
        let sections = document.get_mut("service").and_then(|item| find(item, name.as_str()));
        sections.ok_or(error)
    }

    /// Writes the changes of a backend, and gives back those that cannot be.
    fn backend(
        &mut self,
        config: &Config,
        service: &EffectiveService,
        name: &BackendName,
        changed: &BackendChanges,
    ) -> Result<BackendChanges, SaveError> {
        let section = self.service(config, &service.spec.name)?;
        let added = matches!(changed.membership.as_ref().map(|m| &m.value), Some(Membership::Added { .. }));
        if !added && section.get_mut("backend").and_then(|item| find(item, name.as_str())).is_none() {
            // Made of a name: no section is its own.
            return Ok(changed.clone());
        }
        let in_force = service.backend(name).map(|backend| &backend.spec);
        match (changed.membership.as_ref().map(|membership| &membership.value), in_force) {
            (Some(Membership::Removed), _) => remove_backend(section, name),
            (Some(Membership::Added { .. }), Some(spec)) => add_backend(section, spec),
            (_, Some(spec)) if changed.weight.is_some() => {
                let backend = section.get_mut("backend").and_then(|item| find(item, name.as_str()));
                if let Some(backend) = backend {
                    set(backend, "weight", i64::from(spec.weight).into());
                }
            }
            _ => {}
        }
        Ok(BackendChanges { admin: changed.admin.clone(), ..BackendChanges::default() })
    }

    /// Writes the lists of the firewall.
    fn lists(&mut self, config: &Config, remaining: &mut RuntimeChanges, kept: &mut Vec<String>) {
        let lists = remaining.lists.clone();
        if lists.count() == 0 {
            return;
        }
        let from_files = &config.firewall.from_files;
        let index = self.documents.iter().position(|document| document.contains_key("firewall")).unwrap_or(0);
        let document = &mut self.documents[index];
        let mut made = Table::new();
        made.set_implicit(false);
        let item = document.entry("firewall").or_insert(Item::Table(made));
        let Some(firewall) = item.as_table_like_mut() else { return };
        for (key, more) in [("deny", &lists.denied), ("allow", &lists.allowed)] {
            let add: Vec<IpNet> = more.iter().filter(|net| !from_files.contains(net)).copied().collect();
            // What is on one list now is not on the other any more.
            let other = if key == "deny" { &lists.allowed } else { &lists.denied };
            edit_list(firewall, key, &add, |net| lists.removed.contains(net) || other.contains(net));
        }
        let stays = |net: &&IpNet| from_files.contains(*net);
        let left = Arc::make_mut(&mut remaining.lists);
        left.denied = lists.denied.iter().filter(stays).copied().collect();
        left.allowed = lists.allowed.iter().filter(stays).copied().collect();
        left.removed = lists.removed.iter().filter(stays).copied().collect();
        let all: BTreeSet<&IpNet> = left.denied.iter().chain(&left.allowed).chain(&left.removed).collect();
        kept.extend(
            all.into_iter().map(|net| format!("{net}: a file of deny_files says otherwise: edit that one")),
        );
    }
}

/// The section of that name among several, written as `[[...]]` or in one line.
fn find<'d>(item: &'d mut Item, name: &str) -> Option<&'d mut dyn TableLike> {
    fn named(table: &dyn TableLike, name: &str) -> bool {
        table.get("name").and_then(Item::as_str) == Some(name)
    }
    match item {
        Item::ArrayOfTables(tables) => {
            tables.iter_mut().find(|table| named(*table, name)).map(|table| table as &mut dyn TableLike)
        }
        Item::Value(Value::Array(array)) => array
            .iter_mut()
            .filter_map(Value::as_inline_table_mut)
            .find(|table| named(*table, name))
            .map(|table| table as &mut dyn TableLike),
        _ => None,
    }
}

/// Sets a value; what surrounds it stays.
fn set(table: &mut dyn TableLike, key: &str, mut value: Value) {
    match table.get_mut(key) {
        Some(Item::Value(old)) => {
            *value.decor_mut() = old.decor().clone();
            *old = value;
        }
        _ => {
            table.insert(key, Item::Value(value));
        }
    }
}

fn remove_backend(service: &mut dyn TableLike, name: &BackendName) {
    let is = |item: Option<&Item>| item.and_then(Item::as_str) == Some(name.as_str());
    match service.get_mut("backend") {
        Some(Item::ArrayOfTables(tables)) => tables.retain(|table| !is(table.get("name"))),
        Some(Item::Value(Value::Array(array))) => take_out(array, |value| {
            let own = value.as_inline_table().and_then(|table| table.get("name")).and_then(Value::as_str);
            own == Some(name.as_str())
        }),
        _ => {}
    }
}

/// Removes elements of an array. What stands before one is most often the comment behind the one before it, and stays.
fn take_out(array: &mut Array, gone: impl Fn(&Value) -> bool) {
    let mut at = 0;
    while at < array.len() {
        if !array.get(at).is_some_and(&gone) {
            at += 1;
            continue;
        }
        let value = array.remove(at);
        let before = value.decor().prefix().and_then(|raw| raw.as_str()).unwrap_or_default();
        let Some((comment, _)) = before.rsplit_once('\n').filter(|(comment, _)| comment.contains('#')) else {
            continue;
        };
        if let Some(next) = array.get_mut(at) {
            let own = next.decor().prefix().and_then(|raw| raw.as_str()).unwrap_or_default();
            let both = format!("{comment}{own}");
            next.decor_mut().set_prefix(both);
        } else {
            let both = format!("{comment}{}", array.trailing().as_str().unwrap_or("\n"));
            array.set_trailing(both);
        }
    }
}

fn add_backend(service: &mut dyn TableLike, spec: &BackendSpec) {
    let mut values: Vec<(&str, Value)> =
        vec![("name", spec.name.as_str().into()), ("address", spec.address.to_string().into())];
    values.extend(spec.port.map(|port| ("port", i64::from(port).into())));
    values.push(("weight", i64::from(spec.weight).into()));
    values.extend(spec.backup.then(|| ("backup", true.into())));
    if let Some(Item::Value(Value::Array(array))) = service.get_mut("backend")
        && !array.is_empty()
    {
        let mut value = Value::InlineTable(values.into_iter().collect::<InlineTable>());
        if let Some(last) = array.iter().last() {
            *value.decor_mut() = last.decor().clone();
        }
        array.push_formatted(value);
        return;
    }
    let mut table = Table::new();
    for (key, value) in values {
        table.insert(key, Item::Value(value));
    }
    if let Some(Item::ArrayOfTables(tables)) = service.get_mut("backend") {
        tables.push(table);
    } else {
        let mut tables = ArrayOfTables::new();
        tables.push(table);
        service.insert("backend", Item::ArrayOfTables(tables));
    }
}

fn set_limits(service: &mut dyn TableLike, patch: &LimitPatch) {
    if service.get("limits").is_none_or(|item| !item.is_table_like()) {
        service.insert("limits", Item::Table(Table::new()));
    }
    let Some(limits) = service.get_mut("limits").and_then(Item::as_table_like_mut) else { return };
    for (key, rate) in patch.rates() {
        if let Some(rate) = rate {
            set(limits, key, i64::from(rate).into());
        }
    }
    if let Some(burst) = patch.burst_ms {
        set(limits, "burst", format_duration(Duration::from_millis(burst.into())).into());
    }
}

/// Adds prefixes to a list and takes others out; a list of nothing goes.
fn edit_list(firewall: &mut dyn TableLike, key: &str, add: &[IpNet], gone: impl Fn(&IpNet) -> bool) {
    let empty = Item::Value(Value::Array(Array::new()));
    if firewall.get(key).is_none() {
        if add.is_empty() {
            return;
        }
        firewall.insert(key, empty);
    }
    let Some(array) = firewall.get_mut(key).and_then(Item::as_array_mut) else { return };
    take_out(array, |value| {
        let net = value.as_str().and_then(|text| parse_prefix(text).ok());
        net.is_some_and(|net| gone(&net) && !add.contains(&net))
    });
    for net in add {
        let own = array.iter().filter_map(Value::as_str).filter_map(|text| parse_prefix(text).ok());
        if own.into_iter().all(|other| other != *net) {
            array.push(net.to_string());
        }
    }
    if array.is_empty() {
        firewall.remove(key);
    }
}
