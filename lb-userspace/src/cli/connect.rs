//! Which daemon is asked, where it is not the one on this host.

use super::args::EVERYWHERE;
use crate::control::way::{Server, ServerError};
use std::path::PathBuf;

/// A daemon on another host.
#[derive(Debug, clap::Args)]
pub struct Remote {
    /// lbd on another host, by its [control] listen: https://HOST:PORT
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "LBCTL_SERVER",
        conflicts_with = "socket",
        hide_env_values = true,
        help_heading = EVERYWHERE
    )]
    pub server: Option<String>,
    /// Authorities of that lbd's certificate, PEM
    #[arg(long, global = true, value_name = "FILE", env = "LBCTL_CA", hide_env_values = true, help_heading = EVERYWHERE)]
    pub ca: Option<PathBuf>,
    /// Own certificate, PEM; its names decide what one may do
    #[arg(long, global = true, value_name = "FILE", env = "LBCTL_CERT", hide_env_values = true, help_heading = EVERYWHERE)]
    pub cert: Option<PathBuf>,
    /// Private key of the own certificate, PEM
    #[arg(long, global = true, value_name = "FILE", env = "LBCTL_KEY", hide_env_values = true, help_heading = EVERYWHERE)]
    pub key: Option<PathBuf>,
}

impl Remote {
    /// The daemon on another host, if one is named.
    pub(super) fn server(&self) -> Result<Option<Server>, ServerError> {
        let Some(url) = self.server.as_deref().filter(|url| !url.is_empty()) else { return Ok(None) };
        match (&self.ca, &self.cert, &self.key) {
            (Some(ca), Some(cert), Some(key)) => Server::new(url, ca, cert, key).map(Some),
            _ => Err(ServerError::Incomplete),
        }
    }
}
