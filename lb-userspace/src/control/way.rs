//! The way to a daemon: its Unix socket, or TCP with mutual TLS 1.3.

use super::client::ClientError;
use crate::config::read_certificates;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{PrivateKeyDer, ServerName, pem::PemObject as _},
};
use std::{
    fmt,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::sleep,
};
use tokio_rustls::TlsConnector;

/// Between two attempts while the queue of the socket is full.
const RETRY: Duration = Duration::from_millis(20);
/// The socket for those who may only look, beside the other.
const READ_ONLY: &str = "lbd-ro.sock";

/// Bytes both ways.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Where the daemon is.
#[derive(Debug, Clone)]
pub(super) enum Way {
    Socket(PathBuf),
    Tls(Arc<Server>),
}

/// A daemon that listens on TCP.
pub struct Server {
    /// `https://host:port`
    url: String,
    host: String,
    port: u16,
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("url", &self.url).finish_non_exhaustive()
    }
}

/// Why a server cannot be asked: the command line or its files are wrong.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("--server {0}: expected https://HOST:PORT, e.g. https://lb1.example.com:9751")]
    Url(String),
    #[error("--server wants --ca, --cert and --key as well (or LBCTL_CA, LBCTL_CERT and LBCTL_KEY)")]
    Incomplete,
    #[error("--{option} {}: {why}; expected {expected} in PEM", path.display())]
    File { option: &'static str, path: PathBuf, why: String, expected: &'static str },
    #[error("--cert and --key cannot be used: {0}; expected a certificate and its private key")]
    Pair(rustls::Error),
}

impl Server {
    /// Reads the files: the authorities of the server's certificate, and the client's own certificate and key.
    pub fn new(url: &str, ca: &Path, cert: &Path, key: &Path) -> Result<Self, ServerError> {
        let bad = || ServerError::Url(url.to_owned());
        let rest = url.strip_prefix("https://").ok_or_else(bad)?.trim_end_matches('/');
        let (host, port) = rest.rsplit_once(':').ok_or_else(bad)?;
        let port: u16 = port.parse().map_err(|_| bad())?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host).to_owned();
        let name = ServerName::try_from(host.clone()).map_err(|_| bad())?;
        let read = |option: &'static str, path: &Path| {
            let file =
                |why| ServerError::File { option, path: path.to_owned(), why, expected: "certificates" };
            read_certificates(path).map_err(file)
        };
        let mut roots = RootCertStore::empty();
        for authority in read("ca", ca)? {
            roots.add(authority).map_err(|error| ServerError::File {
                option: "ca",
                path: ca.to_owned(),
                why: error.to_string(),
                expected: "the authorities of the server's certificate",
            })?;
        }
        let private = PrivateKeyDer::from_pem_file(key).map_err(|error| ServerError::File {
            option: "key",
            path: key.to_owned(),
            why: error.to_string(),
            expected: "a private key",
        })?;
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(ServerError::Pair)?
            .with_root_certificates(roots)
            .with_client_auth_cert(read("cert", cert)?, private)
            .map_err(ServerError::Pair)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { url: format!("https://{rest}"), host, port, name, config: Arc::new(config) })
    }
}

impl Way {
    /// For messages.
    pub fn shown(&self) -> PathBuf {
        match self {
            Self::Socket(path) => path.clone(),
            Self::Tls(server) => PathBuf::from(&server.url),
        }
    }

    /// A connection; the caller limits the time.
    pub async fn connect(&self) -> Result<Box<dyn Stream>, ClientError> {
        match self {
            Self::Socket(path) => match to_socket(path).await {
                Err(ClientError::Denied { path: denied }) => {
                    // Those who may not do everything may perhaps look.
                    let read_only = path.with_file_name(READ_ONLY);
                    match UnixStream::connect(&read_only).await {
                        Ok(stream) if *path != read_only => Ok(Box::new(stream)),
                        _ => Err(ClientError::Denied { path: denied }),
                    }
                }
                result => Ok(Box::new(result?)),
            },
            Self::Tls(server) => Ok(Box::new(server.connect().await?)),
        }
    }
}

async fn to_socket(path: &Path) -> Result<UnixStream, ClientError> {
    let result = loop {
        match UnixStream::connect(path).await {
            // The queue is full (unix(7): EAGAIN for a non-blocking socket).
            Err(e) if e.kind() == ErrorKind::WouldBlock => sleep(RETRY).await,
            result => break result,
        }
    };
    let path = || path.to_owned();
    result.map_err(|source| match source.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => ClientError::Missing { path: path() },
        ErrorKind::PermissionDenied => ClientError::Denied { path: path() },
        ErrorKind::ConnectionRefused => ClientError::Refused { path: path() },
        _ => ClientError::Connect { path: path(), source },
    })
}

impl Server {
    async fn connect(&self) -> Result<impl Stream + 'static, ClientError> {
        let url = || self.url.clone();
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await;
        let stream = stream.map_err(|source| ClientError::Unreachable { url: url(), source })?;
        let handshake = TlsConnector::from(Arc::clone(&self.config)).connect(self.name.clone(), stream).await;
        handshake.map_err(|source| ClientError::Tls { url: url(), source })
    }
}
