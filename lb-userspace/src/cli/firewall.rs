//! `lbctl deny`, `lbctl allow` and `lbctl limit`.

use super::{
    gradual::Careful,
    parse,
    table::{
        Align::{Left, Right},
        table,
    },
};
use crate::{
    config::format_duration,
    control::{
        api::ChangeView,
        client::{Client, ClientError},
        firewall::{LimitsView, PrefixView},
    },
    model::{LimitPatch, MAX_BURST_MS, MAX_RATE, ServiceName, Verdict, parse_prefix},
};
use clap::Subcommand;
use ipnet::IpNet;
use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::Duration,
};

#[derive(Debug, Subcommand)]
pub enum ListCommand {
    /// Adds prefixes to the list
    Add {
        #[command(flatten)]
        prefixes: PrefixArgs,
        #[command(flatten)]
        careful: Careful,
    },
    /// Removes prefixes from the list, those of the configuration file too
    Remove {
        #[command(flatten)]
        prefixes: PrefixArgs,
        #[command(flatten)]
        careful: Careful,
    },
    /// The prefixes in force, and where they come from
    List,
}

#[derive(Debug, clap::Args)]
pub struct PrefixArgs {
    /// Addresses or prefixes: 203.0.113.7, 203.0.113.0/24, 2001:db8:bad::/48
    #[arg(value_name = "PREFIX", required_unless_present = "file", value_parser = prefix)]
    prefixes: Vec<IpNet>,
    /// Also those in FILE, one a line, `#` begins a comment; `-` is the standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum LimitCommand {
    /// The limits in force, per second
    Show {
        /// Name of the service; all of them without one
        #[arg(value_name = "SERVICE", value_parser = parse::service)]
        service: Option<ServiceName>,
    },
    /// Sets limits of a service; those not named stay as they are
    #[command(after_help = LIMIT_EXAMPLES)]
    Set {
        /// Name of the service, as in `lbctl service list`
        #[arg(value_name = "SERVICE", value_parser = parse::service)]
        service: ServiceName,
        /// packets_per_second, connections_per_second, source_packets_per_second, source_connections_per_second (0 = no
        /// limit) or burst (like 500ms)
        #[arg(value_name = "KEY=VALUE", required = true, value_parser = limit)]
        limits: Vec<(String, u32)>,
        #[command(flatten)]
        careful: Careful,
    },
    /// Forgets what was set at run time: the configuration's limits count again
    Clear {
        /// Name of the service, as in `lbctl service list`
        #[arg(value_name = "SERVICE", value_parser = parse::service)]
        service: ServiceName,
        #[command(flatten)]
        careful: Careful,
    },
}

pub const LIST_EXAMPLES: &str = "\
Examples:
  lbctl deny add 203.0.113.0/24 2001:db8:bad::/48
  lbctl deny add --file /etc/lbd/blocklist.txt
  lbctl allow add 203.0.113.7            an exception inside a denied prefix
  lbctl deny remove 203.0.113.0/24

The longest prefix decides. Only packets to virtual addresses are judged. Changes are kept across
restarts of lbd until `lbctl reset`.";

pub const LIMIT_EXAMPLES: &str = "\
Examples:
  lbctl limit set www source_connections_per_second=50 burst=2s
  lbctl limit set dns packets_per_second=200000 source_packets_per_second=1000
  lbctl limit set www connections_per_second=0
  lbctl limit clear www";

fn prefix(text: &str) -> Result<IpNet, String> {
    parse_prefix(text).map_err(|error| error.to_string())
}

fn limit(text: &str) -> Result<(String, u32), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    if !LimitPatch::default().set(key, 0) {
        return Err(format!(
            "there is no limit '{key}'; expected packets_per_second, connections_per_second, \
             source_packets_per_second, source_connections_per_second or burst"
        ));
    }
    let value = if key == "burst" {
        let duration = crate::config::parse_duration(value).ok_or("expected a duration like 500ms or 2s")?;
        u32::try_from(duration.as_millis()).ok().filter(|ms| (1..=MAX_BURST_MS).contains(ms))
    } else {
        value.parse().ok().filter(|rate| *rate <= MAX_RATE)
    };
    let value = value.ok_or(format!("expected 0 to {MAX_RATE}, or a burst from 1ms to {MAX_BURST_MS}ms"))?;
    Ok((key.to_owned(), value))
}

/// Why prefixes could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}:{line}: '{found}': {why}", path.display())]
    Line { path: PathBuf, line: usize, found: String, why: String },
}

impl PrefixArgs {
    /// Those of the command line and of the file.
    pub fn read(&self) -> Result<Vec<IpNet>, FileError> {
        let mut prefixes = self.prefixes.clone();
        if let Some(path) = &self.file {
            let mut text = String::new();
            let read = if path == Path::new("-") {
                io::stdin().read_to_string(&mut text).map(|_| ())
            } else {
                fs::read_to_string(path).map(|read| text = read)
            };
            read.map_err(|source| FileError::Io { path: path.clone(), source })?;
            for (number, line) in text.lines().enumerate() {
                let entry = line.split('#').next().unwrap_or_default().trim();
                if !entry.is_empty() {
                    prefixes.push(prefix(entry).map_err(|why| FileError::Line {
                        path: path.clone(),
                        line: number + 1,
                        found: entry.chars().take(80).collect(),
                        why,
                    })?);
                }
            }
        }
        Ok(prefixes)
    }
}

/// Sets or clears limits.
pub async fn change_limits(client: &Client, command: &LimitCommand) -> Result<ChangeView, ClientError> {
    match command {
        LimitCommand::Set { service, limits, .. } => {
            let mut patch = LimitPatch::default();
            for (key, value) in limits {
                patch.set(key, *value);
            }
            client.set_limits(service, &patch).await
        }
        LimitCommand::Clear { service, .. } => client.clear_limits(service).await,
        LimitCommand::Show { .. } => unreachable!("shown by the caller"),
    }
}

pub fn render_prefixes(list: Verdict, views: &[PrefixView]) -> String {
    if views.is_empty() {
        return format!("no prefix is on the {list} list\n");
    }
    // Lines and no table: there may be 100,000.
    let width = views.iter().map(|view| view.prefix.to_string().len()).max().unwrap_or(0);
    let line = |view: &PrefixView| format!("{:width$}  {}\n", view.prefix.to_string(), view.origin);
    views.iter().map(line).collect()
}

pub fn render_limits(views: &[LimitsView]) -> String {
    let rate = |rate: u32| if rate == 0 { "-".to_owned() } else { rate.to_string() };
    table(
        [
            ("SERVICE", Left),
            ("PACKETS/S", Right),
            ("CONNECTIONS/S", Right),
            ("PACKETS/S/SOURCE", Right),
            ("CONNECTIONS/S/SOURCE", Right),
            ("BURST", Right),
            ("ORIGIN", Left),
            ("ALLOWED", Left),
        ],
        views.iter().map(|view| {
            let limits = &view.limits;
            let allowed = match view.allow.as_slice() {
                [] => "all".to_owned(),
                [one] => one.to_string(),
                [first, rest @ ..] => format!("{first} and {} more", rest.len()),
            };
            [
                view.service.clone(),
                rate(limits.packets_per_second),
                rate(limits.connections_per_second),
                rate(limits.source_packets_per_second),
                rate(limits.source_connections_per_second),
                format_duration(Duration::from_millis(limits.burst_ms.into())),
                view.origin.clone(),
                allowed,
            ]
        }),
    )
}
