//! The files that health checks name: read when the configuration is, so that what is wrong with them is said then and
//! not at the first check.

use super::{Config, ConfigError, Origin, Problem, settings::Origins};
use crate::model::{HealthCheck, ServiceSpec};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use std::{collections::BTreeSet, fs::File, io::Read as _, path::Path};

/// Largest file of authorities, in bytes; the system's own have a quarter of it.
const MAX_FILE: u64 = 1 << 20;
/// Largest file of a password, in bytes.
const MAX_PASSWORD: u64 = 4096;

/// The certificates of a PEM file, of which there is at least one.
pub fn read_certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = read(file, MAX_FILE)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err("holds no certificate".to_owned()),
        Ok(certificates) => Ok(certificates),
        Err(_) => Err("is not in PEM".to_owned()),
    }
}

/// The first line of a file, which is a password.
pub fn read_password(file: &Path) -> Result<String, String> {
    let text = String::from_utf8(read(file, MAX_PASSWORD)?).map_err(|_| "is no text".to_owned())?;
    let line = text.lines().next().unwrap_or_default();
    if line.is_empty() { Err("begins with an empty line".to_owned()) } else { Ok(line.to_owned()) }
}

fn read(file: &Path, most: u64) -> Result<Vec<u8>, String> {
    let cannot = |error: std::io::Error| format!("cannot be read ({error})");
    let file = File::open(file).map_err(cannot)?;
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > most { Err("is too large".to_owned()) } else { Ok(bytes) }
}

/// Reads every file that a check names.
pub(super) fn check(config: &Config) -> Result<(), ConfigError> {
    let mut problems = Vec::new();
    // Of services that take it from [defaults.health] the first speaks.
    let mut said = BTreeSet::new();
    for service in &config.services {
        for (key, result, expected) in named(service) {
            let Err((path, why)) = result else { continue };
            let (file, line) = place_of(&config.origins, service, key);
            if said.insert((key, file, line)) {
                let problem = Problem {
                    file: config.files[file].clone(),
                    line,
                    column: usize::from(line > 0),
                    key: format!("service.{}.health.{key}", service.name),
                    place: format!("service '{}', health", service.name),
                    found: format!("{key} = \"{path}\" {why}"),
                    expected: Some(expected.to_owned()),
                    advice: None,
                };
                problems.push((file, problem));
            }
        }
    }
    problems.sort_by_key(|(file, problem)| (*file, problem.line));
    let problems: Vec<_> = problems.into_iter().map(|(_, problem)| problem).collect();
    if problems.is_empty() { Ok(()) } else { Err(ConfigError { problems }) }
}

type Named = (&'static str, Result<(), (String, String)>, &'static str);

fn named(service: &ServiceSpec) -> Vec<Named> {
    let mut named = Vec::new();
    let (tls, password) = match &service.health.check {
        HealthCheck::Http(http) => (http.tls.as_ref(), None),
        HealthCheck::Grpc(grpc) => (grpc.tls.as_ref(), None),
        HealthCheck::Mysql(mysql) => (None, mysql.password_file.as_deref()),
        HealthCheck::Redis(redis) => (None, redis.password_file.as_deref()),
        _ => (None, None),
    };
    if let Some(file) = tls.and_then(|tls| tls.ca_file.as_deref()) {
        let shown = file.display().to_string();
        let result = read_certificates(file).map(drop).map_err(|why| (shown, why));
        named.push(("ca_file", result, "certificates in PEM"));
    }
    if let Some(file) = password {
        let shown = file.display().to_string();
        let result = read_password(file).map(drop).map_err(|why| (shown, why));
        named.push(("password_file", result, "a password on the first line"));
    }
    named
}

/// Number of the file, and the line.
fn place_of(origins: &Origins, service: &ServiceSpec, key: &str) -> (usize, usize) {
    let path = ["service", service.name.as_str(), "health", key].map(str::to_owned);
    match origins.of(&path) {
        Origin::File { file, line } => (file, line),
        Origin::Default => (0, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::super::load;

    #[test]
    fn files_of_checks_are_read_with_the_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let shown = dir.path().to_string_lossy().into_owned();
        let file = |name: &str| dir.path().join(name);
        let made = rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).unwrap();
        std::fs::write(file("good.pem"), made.cert.pem()).unwrap();
        std::fs::write(file("key.pem"), made.signing_key.serialize_pem()).unwrap();
        std::fs::write(file("broken.pem"), "-----BEGIN CERTIFICATE-----\n*\n-----END CERTIFICATE-----\n")
            .unwrap();
        std::fs::write(file("huge.pem"), "x".repeat((1 << 20) + 1)).unwrap();
        let said = |name: &str| {
            let text = format!(
                "[node]\ninterfaces = ['eth0']\n[defaults.health]\nca_file = '{shown}/{name}'\n\
                 [[service]]\nname = 'a'\naddresses = ['192.0.2.1']\nport = 1\nhealth.type = 'https'\n\
                 [[service]]\nname = 'b'\naddresses = ['192.0.2.1']\nport = 2\nhealth.type = 'https'\n"
            );
            std::fs::write(file("lbd.toml"), text).unwrap();
            let result = load(&file("lbd.toml")).map(drop);
            result.map_err(|error| error.to_string().replace(&*shown, "DIR"))
        };
        let refused = |name: &str, why: &str| {
            let place = "DIR/lbd.toml:4:1: service 'a', health";
            Err(format!("{place}: ca_file = \"DIR/{name}\" {why}: expected certificates in PEM"))
        };
        assert_eq!(said("good.pem"), Ok(()));
        assert_eq!(
            said("none.pem"),
            refused("none.pem", "cannot be read (No such file or directory (os error 2))")
        );
        assert_eq!(said("key.pem"), refused("key.pem", "holds no certificate"));
        assert_eq!(said("broken.pem"), refused("broken.pem", "is not in PEM"));
        assert_eq!(said("huge.pem"), refused("huge.pem", "is too large"));
    }

    #[test]
    fn passwords_are_first_lines() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        let read = |bytes: &[u8]| {
            std::fs::write(&file, bytes).unwrap();
            super::read_password(&file)
        };
        for text in ["secret", "secret\n", "secret\r\n", "secret\n# of lbd\n"] {
            assert_eq!(read(text.as_bytes()), Ok("secret".to_owned()));
        }
        assert_eq!(read(b" two words \n"), Ok(" two words ".to_owned()));
        assert_eq!(read(b"\nsecret"), Err("begins with an empty line".to_owned()));
        assert_eq!(read(b"\xff"), Err("is no text".to_owned()));
        assert_eq!(read(&[b'x'; 4097]), Err("is too large".to_owned()));
    }
}
