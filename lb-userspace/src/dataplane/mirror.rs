//! The flow tables as the mirror reads and writes them, beside the daemon's own handles.

use super::{DataplaneError, batch};
use crate::flowsync::{Key, Table, Value};
use aya::{Pod, maps::MapData};
use lb_common::abi::{FlowEntry, FlowKey4, FlowKey6, HalfOpen, SessionBack, SessionOut};
use std::{collections::BTreeMap, io, os::fd::AsFd, path::Path};

/// The six tables.
#[derive(Debug)]
pub struct FlowMaps(BTreeMap<Table, MapData>);

const fn name(table: Table) -> &'static str {
    match table {
        Table::Flows4 => "FLOWS4",
        Table::Flows6 => "FLOWS6",
        Table::HalfOpen4 => "HALF_OPEN4",
        Table::HalfOpen6 => "HALF_OPEN6",
        Table::SessionsOut => "SESSIONS_OUT",
        Table::SessionsBack => "SESSIONS_BACK",
    }
}

impl FlowMaps {
    /// Those pinned in this directory.
    pub fn open(maps_dir: &Path) -> Result<Self, DataplaneError> {
        let open = |table| {
            let map =
                MapData::from_pin(maps_dir.join(name(table))).map_err(DataplaneError::map(name(table)))?;
            Ok((table, map))
        };
        Ok(Self(Table::ALL.into_iter().map(open).collect::<Result<_, DataplaneError>>()?))
    }

    /// Entries that each table holds at most.
    pub fn limits(&self) -> Result<BTreeMap<Table, usize>, DataplaneError> {
        let limit = |(table, map): (&Table, &MapData)| {
            let info = map.info().map_err(DataplaneError::map(name(*table)))?;
            Ok((*table, info.max_entries() as usize))
        };
        self.0.iter().map(limit).collect()
    }

    /// Shows every entry of a table.
    pub fn read(&self, table: Table, mut visit: impl FnMut(Key, Value)) -> Result<(), DataplaneError> {
        let fd = self.0[&table].fd().as_fd();
        match table {
            Table::Flows4 => batch::for_each::<FlowKey4, u64>(fd, |key, word| {
                visit(Key::v4(table, key), Value::flow(FlowEntry(*word)));
            }),
            Table::Flows6 => batch::for_each::<FlowKey6, u64>(fd, |key, word| {
                visit(Key::v6(table, key), Value::flow(FlowEntry(*word)));
            }),
            Table::HalfOpen4 => batch::for_each::<FlowKey4, HalfOpen>(fd, |key, half| {
                visit(Key::v4(table, key), Value::half_open(*half));
            }),
            Table::HalfOpen6 => batch::for_each::<FlowKey6, HalfOpen>(fd, |key, half| {
                visit(Key::v6(table, key), Value::half_open(*half));
            }),
            Table::SessionsOut => batch::for_each::<FlowKey6, SessionOut>(fd, |key, out| {
                visit(Key::v6(table, key), Value::out(out));
            }),
            Table::SessionsBack => batch::for_each::<FlowKey6, SessionBack>(fd, |key, back| {
                visit(Key::v6(table, key), Value::back(back));
            }),
        }
        .map_err(failed(table))
    }

    /// The entry of a key. Of NAT sessions none is given.
    pub fn get(&self, key: &Key) -> Result<Option<Value>, DataplaneError> {
        let fd = self.0[&key.table].fd().as_fd();
        let flow = |word: Option<u64>| word.map(|word| Value::flow(FlowEntry(word)));
        let half = |half: Option<HalfOpen>| half.map(Value::half_open);
        match key.table {
            Table::Flows4 => batch::get(fd, &key.to_v4()).map(flow),
            Table::Flows6 => batch::get(fd, &key.to_v6()).map(flow),
            Table::HalfOpen4 => batch::get(fd, &key.to_v4()).map(half),
            Table::HalfOpen6 => batch::get(fd, &key.to_v6()).map(half),
            Table::SessionsOut | Table::SessionsBack => Ok(None),
        }
        .map_err(failed(key.table))
    }

    /// Inserts entries of a table; where there is one by now, it stays. Of NAT sessions nothing is written.
    pub fn put_new(&self, table: Table, entries: &[(Key, Value)]) -> Result<(), DataplaneError> {
        let fd = self.0[&table].fd().as_fd();
        let v4 = || entries.iter().map(|(key, _)| key.to_v4()).collect::<Vec<_>>();
        let v6 = || entries.iter().map(|(key, _)| key.to_v6()).collect::<Vec<_>>();
        let words = || entries.iter().map(|(_, value)| value.entry.0).collect::<Vec<_>>();
        let halves = || entries.iter().map(|(_, value)| value.to_half_open()).collect::<Vec<_>>();
        match table {
            Table::Flows4 => batch::insert_new(fd, &v4(), &words()),
            Table::Flows6 => batch::insert_new(fd, &v6(), &words()),
            Table::HalfOpen4 => batch::insert_new(fd, &v4(), &halves()),
            Table::HalfOpen6 => batch::insert_new(fd, &v6(), &halves()),
            Table::SessionsOut | Table::SessionsBack => Ok(()),
        }
        .map_err(failed(table))
    }

    /// Inserts or replaces entries of a table; the number is the id of their service.
    pub fn put(&self, table: Table, entries: &[(Key, Value, u32)]) -> Result<(), DataplaneError> {
        let v4 = || entries.iter().map(|(key, ..)| key.to_v4()).collect::<Vec<_>>();
        let v6 = || entries.iter().map(|(key, ..)| key.to_v6()).collect::<Vec<_>>();
        let words = || entries.iter().map(|(_, value, _)| value.entry.0).collect::<Vec<_>>();
        let halves = || entries.iter().map(|(_, value, _)| value.to_half_open()).collect::<Vec<_>>();
        match table {
            Table::Flows4 => self.insert(table, &v4(), &words()),
            Table::Flows6 => self.insert(table, &v6(), &words()),
            Table::HalfOpen4 => self.insert(table, &v4(), &halves()),
            Table::HalfOpen6 => self.insert(table, &v6(), &halves()),
            Table::SessionsOut => {
                let out: Vec<_> = entries.iter().map(|(_, value, _)| value.to_out()).collect();
                self.insert(table, &v6(), &out)
            }
            Table::SessionsBack => {
                let back: Vec<_> = entries.iter().map(|(_, value, id)| value.to_back(*id)).collect();
                self.insert(table, &v6(), &back)
            }
        }
        .map_err(failed(table))
    }

    fn insert<K: Pod, V: Pod>(&self, table: Table, keys: &[K], values: &[V]) -> io::Result<()> {
        batch::insert(self.0[&table].fd().as_fd(), keys, values)
    }

    /// Removes entries of a table; those that are not there are fine.
    pub fn remove(&self, table: Table, keys: &[Key]) -> Result<(), DataplaneError> {
        let fd = self.0[&table].fd().as_fd();
        if table.is_v4() {
            batch::remove(fd, &keys.iter().map(|key| key.to_v4()).collect::<Vec<_>>())
        } else {
            batch::remove(fd, &keys.iter().map(|key| key.to_v6()).collect::<Vec<_>>())
        }
        .map_err(failed(table))
    }
}

fn failed(table: Table) -> impl Fn(io::Error) -> DataplaneError {
    move |source| DataplaneError::Read { map: name(table), source }
}
