//! The control API over TCP: TLS 1.3, with certificates on both sides.
//!
//! Sessions are not resumed: each connection shows its certificate, so that one that has expired or whose name was
//! taken from the configuration is refused at once. A reload that changes anything ends the connections there are.

use super::peer::Role;
use crate::config::{ControlTls, read_certificates};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// Why nobody is served over TCP.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("control.{key} = \"{}\" {why}; expected {expected} in PEM", path.display())]
    File { key: &'static str, path: PathBuf, why: String, expected: &'static str },
    #[error(
        "control.cert_file and control.key_file cannot be used: {0}; expected a certificate and its private key"
    )]
    Pair(rustls::Error),
    #[error(
        "control.client_ca_file cannot be used: {0}; expected the authorities of the clients' certificates"
    )]
    Authorities(String),
    #[error(
        "cannot listen on control.listen = \"{address}\": {source}; choose an address of this host and a free port"
    )]
    Listen { address: SocketAddr, source: io::Error },
}

/// Who is let in.
#[derive(Debug)]
pub struct Access {
    config: Arc<ServerConfig>,
    /// What it was made from.
    of: Material,
}

#[derive(Debug, PartialEq, Eq)]
struct Material {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    authorities: Vec<CertificateDer<'static>>,
    admins: Vec<String>,
    readers: Vec<String>,
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let expected = "certificates";
    read_certificates(path).map_err(|why| TlsError::File { key, path: path.to_owned(), why, expected })
}

impl Access {
    /// Reads the files of the configuration.
    pub fn load(control: &ControlTls) -> Result<Self, TlsError> {
        let chain = certificates("cert_file", &control.cert_file)?;
        let authorities = certificates("client_ca_file", &control.client_ca_file)?;
        let key = PrivateKeyDer::from_pem_file(&control.key_file).map_err(|error| TlsError::File {
            key: "key_file",
            path: control.key_file.clone(),
            why: format!("cannot be read as a private key ({error})"),
            expected: "a private key",
        })?;
        let mut roots = RootCertStore::empty();
        for authority in &authorities {
            roots.add(authority.clone()).map_err(|error| TlsError::Authorities(error.to_string()))?;
        }
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let verifier = verifier.build().map_err(|error| TlsError::Authorities(error.to_string()))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(TlsError::Pair)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(TlsError::Pair)?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let (admins, readers) = (control.admins.clone(), control.readers.clone());
        Ok(Self { config: Arc::new(config), of: Material { chain, key, authorities, admins, readers } })
    }

    /// The first name of a certificate, and what its holder may do.
    fn role(&self, certificate: &[u8]) -> (String, Role) {
        let names = names(certificate);
        let among = |known: &[String]| names.iter().any(|name| known.contains(name));
        let role = if among(&self.of.admins) {
            Role::Admin
        } else if among(&self.of.readers) {
            Role::Reader
        } else {
            Role::Nobody
        };
        (names.into_iter().next().unwrap_or_else(|| "without a name".to_owned()), role)
    }
}

/// The names in a certificate: common names, and the DNS names, e-mail addresses and URIs of the alternative names.
fn names(certificate: &[u8]) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let common = certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    let mut names: Vec<String> = common.map(str::to_owned).collect();
    if let Ok(Some(others)) = certificate.subject_alternative_name() {
        names.extend(others.value.general_names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) | GeneralName::RFC822Name(name) | GeneralName::URI(name) => {
                Some((*name).to_owned())
            }
            _ => None,
        }));
    }
    names
}

/// Where the access of a listener is replaced.
#[derive(Debug)]
pub struct TlsDoor(watch::Sender<Arc<Access>>);

impl TlsDoor {
    /// From now on these are let in; if that makes a difference, the connections there are end.
    pub fn replace(&self, access: Access) {
        self.0.send_if_modified(|present| {
            let differs = present.of != access.of;
            if differs {
                *present = Arc::new(access);
            }
            differs
        });
    }
}

/// A listening TCP socket.
#[derive(Debug)]
pub struct TlsListener {
    listener: TcpListener,
    access: watch::Receiver<Arc<Access>>,
}

impl TlsListener {
    /// Reads the files and listens.
    pub async fn bind(control: &ControlTls) -> Result<(Self, TlsDoor), TlsError> {
        let (sender, access) = watch::channel(Arc::new(Access::load(control)?));
        let address = control.listen;
        let listener =
            TcpListener::bind(address).await.map_err(|source| TlsError::Listen { address, source })?;
        Ok((Self { listener, access }, TlsDoor(sender)))
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    pub(super) async fn accept(&self) -> io::Result<Arrival> {
        let (stream, from) = self.listener.accept().await?;
        // Answers are small and wanted at once.
        stream.set_nodelay(true)?;
        let mut access = self.access.clone();
        access.mark_unchanged();
        Ok(Arrival { stream, from, access })
    }
}

/// A connection before its handshake.
pub(super) struct Arrival {
    stream: TcpStream,
    from: SocketAddr,
    access: watch::Receiver<Arc<Access>>,
}

/// A connection whose client is known.
pub(super) struct Admitted {
    pub stream: TlsStream<TcpStream>,
    /// For people: the first name of the certificate, and the client's address.
    pub name: String,
    pub role: Role,
    /// Changes when the connection must end.
    pub access: watch::Receiver<Arc<Access>>,
}

impl Arrival {
    /// Shakes hands.
    pub async fn admit(self) -> io::Result<Admitted> {
        let access = Arc::clone(&self.access.borrow());
        let stream = TlsAcceptor::from(Arc::clone(&access.config)).accept(self.stream).await?;
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let (name, role) = shown.map_or(("none".to_owned(), Role::Nobody), |shown| access.role(shown));
        Ok(Admitted { stream, name: format!("{name}, {}", self.from.ip()), role, access: self.access })
    }
}
