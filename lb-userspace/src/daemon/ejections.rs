//! Ejections on disk: a daemon that restarts goes on with those of the one before.

use super::passive::Passive;
use crate::{
    config::Config,
    events::unix_ms,
    model::ServiceName,
    outlier::{Detector, Ejection, Kept, Moment},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fs, io, path::Path, time::Instant};

const FILE: &str = "ejections.json";
const VERSION: u32 = 1;
/// Largest file, in bytes: each backend takes some 250.
const MAX_FILE: u64 = 64 << 20;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    services: BTreeMap<ServiceName, Kept>,
}

/// What was written last: see [`Detector::standing`].
pub(super) type Standing =
    BTreeMap<ServiceName, Vec<(crate::model::BackendName, u32, Option<Ejection>, Option<Instant>)>>;

fn moment() -> Moment {
    Moment { now: Instant::now(), wall_ms: unix_ms() }
}

/// What an earlier daemon knew. A file that cannot be read costs the ejections alone: what is bad is found again.
pub(super) fn remembered(config: &Config) -> Passive {
    let path = config.node.state_dir.join(FILE);
    let read = || -> io::Result<File> {
        if fs::metadata(&path)?.len() > MAX_FILE {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let file: File = serde_json::from_slice(&fs::read(&path)?)?;
        if file.version != VERSION {
            let found = format!("version {}, and this lbd knows version {VERSION}", file.version);
            return Err(io::Error::new(io::ErrorKind::InvalidData, found));
        }
        Ok(file)
    };
    let mut services = match read() {
        Ok(file) => file.services,
        Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
        Err(error) => {
            tracing::warn!(file = %path.display(), %error, "the last ejections cannot be read; what is bad is found again");
            BTreeMap::new()
        }
    };
    let at = moment();
    let watched = config.services.iter().filter_map(|service| {
        let longest =
            service.passive.as_ref()?.max_ejection_time.max(service.passive.as_ref()?.ejection_time);
        let detector = Detector::going_on(services.remove(&service.name)?, longest, at);
        Some((service.name.clone(), detector))
    });
    Passive::going_on(watched)
}

impl Passive {
    /// Writes down what is new, atomically. Not worth waiting for the disk: what is lost is found again.
    pub(super) fn keep(&mut self, state_dir: &Path) {
        let standing = self.standing();
        if standing == *self.kept() {
            return;
        }
        let at = moment();
        let services = self.detectors().map(|(name, detector)| (name.clone(), detector.to_keep(at)));
        let file =
            File { version: VERSION, services: services.filter(|(_, kept)| !kept.is_empty()).collect() };
        let temporary = state_dir.join(format!("{FILE}.new"));
        let written = serde_json::to_vec(&file)
            .map_err(io::Error::from)
            .and_then(|text| fs::write(&temporary, text))
            .and_then(|()| fs::rename(&temporary, state_dir.join(FILE)));
        if let Err(error) = written {
            tracing::warn!(%error, "ejections would not survive a restart");
        }
        // Failed or not: the next difference tries again, not every second.
        *self.kept() = standing;
    }
}
