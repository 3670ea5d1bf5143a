//! `lbctl import`.

use super::parse;
use crate::import::{self, Kind, Options};
use clap::ValueEnum;
use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Write},
    net::IpAddr,
    path::{Path, PathBuf},
};

/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 64 << 20;

pub const EXAMPLES: &str = "\
Examples:
  lbctl import keepalived /etc/keepalived/keepalived.conf --interface eth0 -O /etc/lbd/lbd.toml
  lbctl import haproxy /etc/haproxy/haproxy.cfg --address 192.0.2.10 > lbd.toml
  ipvsadm-save -n | lbctl import ipvsadm - --interface eth0

What differs and what was left out is told on standard error and at the head of the new file, each with its line and
the reason. Read it, then check the file with `lbd --config FILE --check`.";

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
    /// The configuration; - is standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
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
    #[error("{path}: larger than 64 MiB: check that it is the right file", path = .path.display())]
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
    let (name, text) = read(&options.file)?;
    let asked = Options {
        interfaces: options.interface.clone(),
        addresses: options.address.clone(),
        snat_addresses: options.snat_address.clone(),
        id: options.id.clone(),
    };
    let made = import::import(kind, &name, &text, &asked);
    let mut told = String::new();
    for remark in &made.remarks {
        told += &format!("{name}: {remark}\n");
    }
    told += &format!(
        "{name}: {} services with {} backends and {} virtual routers; {} remarks\n",
        made.services,
        made.backends,
        made.vrrp,
        made.remarks.len()
    );
    // A closed standard error is no reason not to write the file.
    let _ = writeln!(err, "{}", super::table::printable_lines(&told));
    match &options.out {
        None => Ok(made.toml),
        Some(path) => write(path, &made.toml, options.force).map(|()| String::new()),
    }
}

fn read(path: &Path) -> Result<(String, String), ImportError> {
    let failed = |source| ImportError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let name = if path == Path::new("-") {
        io::stdin().lock().take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
        "standard input".to_owned()
    } else {
        File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes)).map_err(failed)?;
        path.display().to_string()
    };
    if bytes.len() as u64 > MAX_FILE {
        return Err(ImportError::TooLarge { path: path.to_owned() });
    }
    // Comments of old files are in any encoding.
    Ok((name, String::from_utf8_lossy(&bytes).into_owned()))
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
