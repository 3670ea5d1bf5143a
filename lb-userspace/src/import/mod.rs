//! Configurations of other balancers made into one of lbd. Pure: text in, text and remarks out.
//!
//! A reader of each kind ([`keepalived`], [`haproxy`], [`ipvsadm`]) takes the text apart and fills a [`draft`]; what has
//! no equal, or another one than expected, becomes a remark with its lines. What is made is read by [`crate::config`]
//! before it is given out: what lbd would refuse is left out and remarked.

mod draft;
mod haproxy;
mod ipvsadm;
mod keepalived;
mod ledger;
#[cfg(test)]
mod tests;
mod texts;
mod write;

pub use ledger::{Fate, Remark};
pub use texts::Texts;

use ledger::Ledger;
use std::net::IpAddr;

/// Whose configuration it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Keepalived,
    Haproxy,
    /// What `ipvsadm-save -n` prints.
    Ipvsadm,
}

impl Kind {
    /// As on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Keepalived => "keepalived",
            Self::Haproxy => "haproxy",
            Self::Ipvsadm => "ipvsadm",
        }
    }
}

/// What the text does not say and lbd wants to know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Interfaces that packets come in on; where none is given, those of the text, else `eth0`.
    pub interfaces: Vec<String>,
    /// The virtual addresses of what listens on every address.
    pub addresses: Vec<IpAddr>,
    /// Source addresses for backends, as a proxy has them: `forward = "snat"` in place of `"nat"`.
    pub snat_addresses: Vec<IpAddr>,
    /// keepalived's `-i`: lines behind `@id` count for this one only.
    pub id: Option<String>,
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// A configuration that lbd accepts, which names the remarks in comments at its head.
    pub toml: String,
    /// In the order of the lines.
    pub remarks: Vec<Remark>,
    /// Lines that were taken over, from 1, in order; every other line is blank, a comment, or in a remark.
    pub mapped: Vec<usize>,
    pub services: usize,
    pub backends: usize,
    pub vrrp: usize,
}

/// Makes a configuration of lbd of one file. `name` is its name for messages.
#[must_use]
pub fn import(kind: Kind, name: &str, text: &str, options: &Options) -> Imported {
    import_all(kind, &Texts::one(name, text), options)
}

/// Makes a configuration of lbd of several files. Lines of remarks are those of the whole: see [`Texts::tell`].
#[must_use]
pub fn import_all(kind: Kind, texts: &Texts, options: &Options) -> Imported {
    let mut ledger = Ledger::default();
    let text = texts.text();
    texts.note_refused(&mut ledger);
    let mut draft = match kind {
        Kind::Keepalived => keepalived::read(text, options, &mut ledger),
        Kind::Haproxy => haproxy::read(text, options, &mut ledger),
        Kind::Ipvsadm => ipvsadm::read(text, &mut ledger),
    };
    draft.settle(options, &mut ledger);
    draft.refuse_what_lbd_refuses(&mut ledger);
    ledger.sweep(kind, text);
    let (remarks, mapped) = ledger.finish();
    Imported {
        toml: write::toml(kind, texts, &draft, &remarks),
        services: draft.services.len(),
        backends: draft.services.iter().map(|service| service.backends.len()).sum(),
        vrrp: draft.vrrp.len(),
        remarks,
        mapped,
    }
}
