//! What `lbctl top` shows, and what keys do to it. Pure.

use super::reading::{Rate, Rates, Reading};
use crate::{
    control::api::{BackendView, ServiceView},
    model::{Admin, Health},
};
use ratatui::crossterm::event::{KeyCode, KeyModifiers};
use std::cmp::Ordering;

/// Whether it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Goes,
    Ends,
}

/// What the table is of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum View {
    #[default]
    Services,
    /// Of one service, or of all.
    Backends(Option<String>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Sort {
    /// As in the configuration.
    #[default]
    Configured,
    Name,
    Packets,
    Bits,
    /// The worst first.
    Trouble,
}

impl Sort {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Configured => "configured",
            Self::Name => "name",
            Self::Packets => "packets",
            Self::Bits => "bits",
            Self::Trouble => "trouble",
        }
    }

    const fn next(self) -> Self {
        match self {
            Self::Configured => Self::Name,
            Self::Name => Self::Packets,
            Self::Packets => Self::Bits,
            Self::Bits => Self::Trouble,
            Self::Trouble => Self::Configured,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct App {
    pub reading: Option<Reading>,
    pub rates: Rates,
    /// Why the picture is old.
    pub trouble: Option<String>,
    pub view: View,
    pub sort: Sort,
    pub reversed: bool,
    pub filter: String,
    /// Keys go into the filter.
    pub typing: bool,
    pub held: bool,
    pub help: bool,
    /// Details of the selected backend are shown.
    pub details: bool,
    pub selected: usize,
    /// Rows of the table at the last drawing.
    pub page: usize,
    /// Where the list of services was left.
    left_at: usize,
}

/// A row: a service, or a backend of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Item<'a> {
    pub service: &'a ServiceView,
    pub backend: Option<&'a BackendView>,
    pub rate: Option<Rate>,
}

/// A backend that takes new flows.
pub(super) fn is_usable(backend: &BackendView) -> bool {
    backend.admin == Admin::Enabled && backend.health != Health::Down && backend.reachable
}

impl Item<'_> {
    fn name(&self) -> (&str, &str) {
        (&self.service.name, self.backend.map_or("", |backend| &backend.name))
    }

    /// Greater is worse.
    fn badness(&self) -> (u32, u32) {
        match self.backend {
            Some(backend) => {
                let down = backend.health == Health::Down || !backend.reachable;
                (u32::from(down), u32::from(!is_usable(backend)))
            }
            None => {
                let bad = self.service.backends.iter().filter(|b| !is_usable(b)).count() as u32;
                (u32::from(self.service.backends.iter().all(|b| b.slots == 0)), bad)
            }
        }
    }
}

impl App {
    /// Takes news in, unless the picture is held; gives back the rates between this reading and the one before.
    pub(super) fn take(&mut self, reading: Result<Reading, String>) -> Rates {
        match reading {
            Err(error) => self.trouble = Some(error),
            Ok(_) if self.held => {}
            Ok(reading) => {
                if let Some(before) = &self.reading {
                    self.rates = Rates::between(before, &reading);
                }
                self.reading = Some(reading);
                self.trouble = None;
                self.select(self.selected);
            }
        }
        self.rates.clone()
    }

    /// The rows, filtered and sorted.
    pub(super) fn items(&self) -> Vec<Item<'_>> {
        let wanted = self.filter.to_lowercase();
        let fits = |name: &str| wanted.is_empty() || name.to_lowercase().contains(&wanted);
        let services = self.reading.iter().flat_map(|reading| &reading.services);
        let mut items: Vec<Item<'_>> = match &self.view {
            View::Services => services
                .filter(|service| fits(&service.name))
                .map(|service| Item { service, backend: None, rate: self.rates.of(&service.name, None) })
                .collect(),
            View::Backends(only) => services
                .filter(|service| only.as_ref().is_none_or(|only| *only == service.name))
                .flat_map(|service| service.backends.iter().map(move |backend| (service, backend)))
                .filter(|(service, backend)| fits(&backend.name) || (only.is_none() && fits(&service.name)))
                .map(|(service, backend)| {
                    let rate = self.rates.of(&service.name, Some(&backend.name));
                    Item { service, backend: Some(backend), rate }
                })
                .collect(),
        };
        let by = |value: fn(Rate) -> f64| {
            move |a: &Item<'_>, b: &Item<'_>| {
                let value = |item: &Item<'_>| item.rate.map_or(0.0, value);
                value(b).total_cmp(&value(a))
            }
        };
        // Stable: equals stay as configured.
        match self.sort {
            Sort::Configured => {}
            Sort::Name => items.sort_by(|a, b| a.name().cmp(&b.name())),
            Sort::Packets => items.sort_by(by(|rate| rate.packets)),
            Sort::Bits => items.sort_by(by(|rate| rate.bits)),
            Sort::Trouble => items.sort_by(|a, b| b.badness().cmp(&a.badness()).then(Ordering::Equal)),
        }
        if self.reversed {
            items.reverse();
        }
        items
    }

    fn select(&mut self, at: usize) {
        let count = self.items().len();
        self.selected = at.min(count.saturating_sub(1));
    }

    /// A key was pressed.
    pub(super) fn key(&mut self, key: KeyCode, with: KeyModifiers) -> Outcome {
        if with.contains(KeyModifiers::CONTROL) && key == KeyCode::Char('c') {
            return Outcome::Ends;
        }
        if self.typing {
            self.type_filter(key);
            return Outcome::Goes;
        }
        if self.help {
            self.help = false;
            return Outcome::Goes;
        }
        let page = self.page.max(1);
        match key {
            KeyCode::Char('q') => return Outcome::Ends,
            KeyCode::Down | KeyCode::Char('j') => self.select(self.selected + 1),
            KeyCode::Up | KeyCode::Char('k') => self.select(self.selected.saturating_sub(1)),
            KeyCode::PageDown => self.select(self.selected + page),
            KeyCode::PageUp => self.select(self.selected.saturating_sub(page)),
            KeyCode::Home | KeyCode::Char('g') => self.select(0),
            KeyCode::End | KeyCode::Char('G') => self.select(usize::MAX),
            KeyCode::Enter => self.enter(),
            KeyCode::Esc => self.back(),
            KeyCode::Char('b') => {
                self.view = match self.view {
                    View::Services => View::Backends(None),
                    View::Backends(_) => View::Services,
                };
                self.details = false;
                self.select(0);
            }
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Char('S') => self.reversed = !self.reversed,
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Char('p') => self.held = !self.held,
            KeyCode::Char('?' | 'h') => self.help = true,
            _ => {}
        }
        Outcome::Goes
    }

    fn type_filter(&mut self, key: KeyCode) {
        match key {
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc => {
                self.typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Char(c) if self.filter.len() < 64 => self.filter.push(c),
            _ => {}
        }
        self.select(self.selected);
    }

    fn enter(&mut self) {
        let name = self.items().get(self.selected).map(|item| item.service.name.clone());
        match (&self.view, name) {
            (View::Services, Some(name)) => {
                self.left_at = self.selected;
                self.filter.clear();
                self.view = View::Backends(Some(name));
                self.select(0);
            }
            (View::Backends(_), Some(_)) => self.details = !self.details,
            (_, None) => {}
        }
    }

    fn back(&mut self) {
        if self.details {
            self.details = false;
        } else if !self.filter.is_empty() {
            self.filter.clear();
        } else if let View::Backends(only) = &self.view {
            let at = if only.is_some() { self.left_at } else { 0 };
            self.view = View::Services;
            self.select(at);
        }
    }
}
