//! The first bytes to a member of etcd. The library tries for ever and does not say why it fails; this fails, and says it.

use super::session::Ended;
use crate::config::{FleetConfig, read_certificates};
use rustls::{
    ClientConfig, Error as TlsError, RootCertStore,
    crypto::ring,
    pki_types::{PrivateKeyDer, ServerName, pem::PemObject as _},
};
use std::{fmt::Display, io, path::Path, sync::Arc};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

/// A client's preface and its SETTINGS, of which there are none (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Connects as the library will, and waits until etcd speaks HTTP/2. The caller limits the time.
pub(super) async fn contact(config: &FleetConfig, uri: &http::Uri) -> Result<(), Ended> {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(2379))).await?;
    if uri.scheme_str() != Some("https") {
        return greet(stream).await.map_err(|error| {
            Ended::Refused(format!(
                "it ended the connection at the first bytes ({error}), as one with TLS does: is it https:// in endpoints?"
            ))
        });
    }
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| Ended::Refused(format!("'{host}' cannot be the name of a certificate")))?;
    let connector = TlsConnector::from(Arc::new(configure(config)?));
    let talk = async { greet(connector.connect(name, stream).await?).await };
    talk.await.map_err(|error| Ended::Refused(reason(config, &error)))
}

async fn greet(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    stream.write_all(PREFACE).await?;
    stream.flush().await?;
    // Of TLS 1.3, what etcd thinks of this node's certificate comes only now.
    let mut first = [0; 9];
    match stream.read(&mut first).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        // The length of its SETTINGS is less than 65536, so that the first byte is 0; an alert of TLS begins with 21.
        _ if first[0] != 0 => Err(io::Error::other("no HTTP/2")),
        _ => Ok(()),
    }
}

fn configure(config: &FleetConfig) -> Result<ClientConfig, Ended> {
    let failed = |file: &Path, why: String| Ended::File { file: file.to_owned(), why };
    let mut roots = RootCertStore::empty();
    match &config.ca_file {
        Some(file) => {
            for certificate in read_certificates(file).map_err(|why| failed(file, why))? {
                roots.add(certificate).map_err(|error| failed(file, error.to_string()))?;
            }
        }
        None => _ = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs),
    }
    let other = |error: TlsError| Ended::Refused(error.to_string());
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(other)?
        .with_root_certificates(roots);
    let mut tls = match &config.identity {
        None => builder.with_no_client_auth(),
        Some((file, key_file)) => {
            let certificates = read_certificates(file).map_err(|why| failed(file, why))?;
            let key = PrivateKeyDer::from_pem_file(key_file)
                .map_err(|error| failed(key_file, error.to_string()))?;
            builder.with_client_auth_cert(certificates, key).map_err(|error| {
                failed(key_file, format!("the key does not go with cert_file {} ({error})", file.display()))
            })?
        }
    };
    tls.alpn_protocols = vec![b"h2".to_vec()];
    Ok(tls)
}

/// What was found, and what to look at.
fn reason(config: &FleetConfig, error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>()) {
        Some(why @ TlsError::InvalidCertificate(_)) => match &config.ca_file {
            Some(file) => {
                format!("{why}; the authorities that count are those of ca_file {}", file.display())
            }
            None => format!("{why}; the system's authorities count, unless ca_file names others"),
        },
        Some(TlsError::AlertReceived(alert)) => match &config.identity {
            None => format!(
                "it refused the connection ({alert:?}); where it wants a certificate of this node, set cert_file and key_file"
            ),
            Some((file, _)) => format!(
                "it refused the connection ({alert:?}); is the certificate in cert_file {} valid, and by an authority of etcd's --trusted-ca-file?",
                file.display()
            ),
        },
        Some(why @ TlsError::InvalidMessage(_)) => {
            format!("it does not speak TLS ({why}): is it http:// in endpoints?")
        }
        Some(why) => format!("TLS: {why}"),
        None => format!("TLS: {error}"),
    }
}

/// An error of the connection, with what to look at where that is known.
pub(super) fn explain(config: &FleetConfig, error: &Ended) -> String {
    let Ended::Etcd(etcd_client::Error::GRpcStatus(status)) = error else { return error.to_string() };
    let said = status.message();
    advice(config, said).map_or_else(|| error.to_string(), |advice| format!("{said}: {advice}"))
}

fn advice(config: &FleetConfig, said: &str) -> Option<String> {
    let is = |text: &str| said.contains(text);
    let prefix = &config.prefix;
    let grant = |who: &dyn Display| {
        format!(
            "{who} needs a role with `etcdctl role grant-permission ROLE --prefix=true readwrite {prefix}/`"
        )
    };
    Some(match &config.login {
        Some((user, file)) if is("authentication failed") => {
            format!(
                "user '{user}' and the first line of password_file {} are not what etcd has",
                file.display()
            )
        }
        Some(_) if is("authentication is not enabled") => {
            "etcd has no users: remove user and password_file, or enable them (`etcdctl auth enable`)"
                .to_owned()
        }
        Some((user, _)) if is("permission denied") => grant(&format!("user '{user}'")),
        None if is("permission denied") || is("user name is empty") => {
            format!("no user is set: set user and password_file; {}", grant(&"the user"))
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn config(login: Option<(&str, &str)>) -> FleetConfig {
        FleetConfig {
            endpoints: vec!["http://10.9.0.5:2379".to_owned()],
            prefix: "/lbd/prod".to_owned(),
            ca_file: None,
            identity: None,
            login: login.map(|(user, file)| (user.to_owned(), file.into())),
            lease: Duration::from_secs(5),
            commands: false,
        }
    }

    #[test]
    fn what_etcd_says_of_users_is_told_with_what_to_do() {
        let with = config(Some(("lbd", "/etc/lbd/etcd.password")));
        let said = |config: &FleetConfig, text: &str| advice(config, text).unwrap_or_default();
        let failed = said(&with, "etcdserver: authentication failed, invalid user ID or password");
        assert!(
            failed.contains("'lbd'") && failed.contains("password_file /etc/lbd/etcd.password"),
            "{failed}"
        );
        let denied = said(&with, "etcdserver: permission denied");
        assert!(denied.contains("'lbd'") && denied.contains("readwrite /lbd/prod/"), "{denied}");
        assert!(said(&config(None), "etcdserver: user name is empty").contains("set user and password_file"));
        assert!(said(&with, "etcdserver: authentication is not enabled").contains("remove user"));
        assert_eq!(advice(&with, "etcdserver: no leader"), None);
    }
}
