//! `lbctl import`.

use super::{import_files, parse, table::count};
use crate::import::{self, Kind, Options};
use clap::ValueEnum;
use std::{
    fs::OpenOptions,
    io::{self, Write},
    net::IpAddr,
    path::{Path, PathBuf},
};

pub const EXAMPLES: &str = "\
Examples:
  lbctl import keepalived /etc/keepalived/keepalived.conf --interface eth0 -O /etc/lbd/lbd.toml
  lbctl import haproxy /etc/haproxy/haproxy.cfg /etc/haproxy/conf.d --address 192.0.2.10 > lbd.toml
  ipvsadm-save -n | lbctl import ipvsadm - --interface eth0

What differs and what was left out is told on standard error and at the head of the new file, each
with its line and the reason. Read it, then check the file with `lbd --config FILE --check`.";

/// Whose configuration it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Source {
    /// keepalived.conf: virtual servers and VRRP instances
    Keepalived,
    /// haproxy.cfg: what forwards connections; what looks into requests is told
    Haproxy,
    /// What `ipvsadm-save -n` prints
    Ipvsadm,
}

#[derive(Debug, clap::Args)]
pub struct ImportOptions {
    /// Whose configuration it is
    #[arg(value_enum, value_name = "KIND")]
    pub source: Source,
    /// The configuration, in the order they are read if it is several files; - is standard input, a directory all its .cfg files
    ///
    /// What keepalived's files include is read too.
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Writes there, and not to standard output
    #[arg(short = 'O', long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Replaces the file of --out if there is one
    #[arg(long, requires = "out")]
    pub force: bool,
    /// Interface that packets come in on; may be given several times. Default: those of VRRP instances, else eth0
    #[arg(long, value_name = "IFACE", value_parser = parse::interface)]
    pub interface: Vec<String>,
    /// haproxy: virtual address of what listens on every address; may be given several times
    #[arg(long, value_name = "ADDRESS")]
    pub address: Vec<IpAddr>,
    /// haproxy: source address for backends, as the proxy had one: forward = "snat"; may be given several times
    #[arg(long, value_name = "ADDRESS")]
    pub snat_address: Vec<IpAddr>,
    /// keepalived: takes the lines behind @ID, as keepalived -i does
    #[arg(long, value_name = "ID")]
    pub id: Option<String>,
}

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("{path}: {source}", path = .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{path}: more than 64 MiB or 4,096 files in all: check that it is the right file", path = .path.display())]
    TooLarge { path: PathBuf },
    #[error("{path} exists already: name another file, or replace it with --force", path = .path.display())]
    Exists { path: PathBuf },
    #[error("{path} was not written: {files} files of the configuration would change, not one; see lbctl save --print", path = .path.display())]
    NotOne { path: PathBuf, files: usize },
    #[error("{path}: cannot be written: {source}", path = .path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// Makes the configuration; gives back what goes to standard output.
pub fn run(options: &ImportOptions, err: &mut dyn Write) -> Result<String, ImportError> {
    let kind = match options.source {
        Source::Keepalived => Kind::Keepalived,
        Source::Haproxy => Kind::Haproxy,
        Source::Ipvsadm => Kind::Ipvsadm,
    };
    let texts = import_files::read(kind, &options.files)?;
    let asked = Options {
        interfaces: options.interface.clone(),
        addresses: options.address.clone(),
        snat_addresses: options.snat_address.clone(),
        id: options.id.clone(),
    };
    let made = import::import_all(kind, &texts, &asked);
    let mut told = String::new();
    for remark in &made.remarks {
        let (file, remark) = texts.tell(remark);
        told += &format!("{file}: {remark}\n");
    }
    told += &format!(
        "{} with {} and {}; {}\n",
        count(made.services, "service"),
        count(made.backends, "backend"),
        count(made.vrrp, "virtual router"),
        count(made.remarks.len(), "remark")
    );
    // A closed standard error is no reason not to write the file.
    let _ = writeln!(err, "{}", super::table::printable_lines(&told));
    match &options.out {
        None => Ok(made.toml),
        Some(path) => write(path, &made.toml, options.force).map(|()| String::new()),
    }
}

/// Writes a file that was not there, unless it is to be replaced.
pub(super) fn write(path: &Path, text: &str, force: bool) -> Result<(), ImportError> {
    let mut open = OpenOptions::new();
    open.write(true).create(true).truncate(true).create_new(!force);
    let written = open.open(path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|source| {
        if source.kind() == io::ErrorKind::AlreadyExists {
            ImportError::Exists { path: path.to_owned() }
        } else {
            ImportError::Write { path: path.to_owned(), source }
        }
    })
}
