//! TLS for the checks that run inside it: rustls, with the system's authorities or those of a file.
//!
//! Each check is a full handshake (no session is resumed), so that a certificate that expires is noticed at the next one.

use super::{Deadline, ProbeFailure, Stage, shared::Shared};
use crate::{config::read_certificates, model::TlsSpec};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use std::{io, path::PathBuf, sync::Arc};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// What a configuration is made from: whether it verifies, by which file, and the protocol inside.
type Key = (bool, Option<PathBuf>, &'static [u8]);

static CONFIGS: Shared<Key, ClientConfig> = Shared::new();

/// The client's side of one backend.
#[derive(Clone)]
pub struct TlsClient {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl std::fmt::Debug for TlsClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsClient").field("name", &self.name).finish_non_exhaustive()
    }
}

impl TlsClient {
    /// Reads the authorities. `name` is who the server is if the settings do not say; `alpn` the protocol inside.
    pub fn new(spec: &TlsSpec, name: &str, alpn: &'static [u8]) -> Result<Self, ProbeFailure> {
        let name = spec.server_name.as_deref().unwrap_or(name);
        let bad = || ProbeFailure::BadRequest { what: "server_name", found: name.to_owned() };
        let server = ServerName::try_from(name.to_owned()).map_err(|_| bad())?;
        let key = (spec.verify, spec.ca_file.clone(), alpn);
        let config = CONFIGS.get_or(&key, || configure(spec, alpn))?;
        Ok(Self { config, name: server })
    }

    /// Shakes hands on an open connection.
    pub async fn connect(
        &self,
        stream: TcpStream,
        deadline: Deadline,
    ) -> Result<TlsStream<TcpStream>, ProbeFailure> {
        let connector = TlsConnector::from(Arc::clone(&self.config));
        let handshake = async {
            connector.connect(self.name.clone(), stream).await.map_err(|error| failure(&error, Stage::Tls))
        };
        deadline.limit(Stage::Tls, handshake).await
    }
}

fn configure(spec: &TlsSpec, alpn: &[u8]) -> Result<ClientConfig, ProbeFailure> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|_| ProbeFailure::Internal)?;
    let mut config = if spec.verify {
        builder.with_root_certificates(authorities(spec)?).with_no_client_auth()
    } else {
        let verifier = Arc::new(Unverified(provider));
        builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn authorities(spec: &TlsSpec) -> Result<RootCertStore, ProbeFailure> {
    let cannot = |what: String| ProbeFailure::CannotRun { what };
    let mut roots = RootCertStore::empty();
    if let Some(file) = &spec.ca_file {
        let certificates =
            read_certificates(file).map_err(|why| cannot(format!("{} {why}", file.display())))?;
        for certificate in certificates {
            roots.add(certificate).map_err(|error| cannot(format!("{}: {error}", file.display())))?;
        }
    } else {
        // A system's list may hold a few that nobody can read any more; the others count.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            let advice = "install the package ca-certificates, or set ca_file";
            return Err(cannot(format!("this host knows no certificate authorities: {advice}")));
        }
    }
    Ok(roots)
}

/// Names the reason of an error of the TLS layer.
pub(super) fn failure(error: &io::Error, stage: Stage) -> ProbeFailure {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(Error::InvalidMessage(_)) if stage == Stage::Tls => ProbeFailure::NotTls,
        Some(Error::InvalidCertificate(error)) => ProbeFailure::Certificate { what: certificate(error) },
        Some(Error::AlertReceived(alert)) => {
            ProbeFailure::TlsRefused { alert: format!("{alert:?}"), code: u8::from(*alert) }
        }
        Some(error) => ProbeFailure::Tls { what: error.to_string() },
        None => ProbeFailure::from_io(error, stage),
    }
}

/// What is wrong with a certificate, in the operator's words.
fn certificate(error: &CertificateError) -> String {
    match error {
        CertificateError::Expired => "has expired".to_owned(),
        CertificateError::ExpiredContext { time, not_after } => {
            format!("has expired {} ago", age(*time, *not_after))
        }
        CertificateError::NotValidYet => "is not valid yet".to_owned(),
        CertificateError::NotValidYetContext { time, not_before } => {
            format!("is not valid for another {}; compare the clocks", age(*not_before, *time))
        }
        CertificateError::NotValidForName => "is for another name".to_owned(),
        CertificateError::NotValidForNameContext { expected, presented } => {
            let expected = expected.to_str();
            match presented.as_slice() {
                [] => format!("is not for '{expected}', and names nobody"),
                names => format!("is not for '{expected}', but for {}", names.join(", ")),
            }
        }
        CertificateError::UnknownIssuer => {
            "is signed by an authority that is not known here (its own authority is named by ca_file)"
                .to_owned()
        }
        CertificateError::Revoked => "is revoked".to_owned(),
        CertificateError::BadEncoding => "cannot be read".to_owned(),
        other => format!("is refused: {other}"),
    }
}

/// The time from `since` to `until` in its largest whole unit, which changes rarely.
fn age(until: UnixTime, since: UnixTime) -> String {
    let seconds = until.as_secs().saturating_sub(since.as_secs());
    let (number, unit) = match seconds {
        0..60 => return "less than a minute".to_owned(),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {unit}{plural}")
}

/// Takes any certificate, as the operator asked for; that the server holds its key is still checked.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn ages_are_told_in_their_largest_unit() {
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let told = |seconds: u64| age(at(1_000_000 + seconds), at(1_000_000));
        assert_eq!(told(0), "less than a minute");
        assert_eq!(told(60), "1 minute");
        assert_eq!(told(7200), "2 hours");
        assert_eq!(told(86_400), "1 day");
        assert_eq!(told(400 * 86_400), "400 days");
        assert_eq!(age(at(1), at(2)), "less than a minute");
    }
}
