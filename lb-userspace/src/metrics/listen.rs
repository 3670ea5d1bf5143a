//! Opening the socket, and telling the operator who has it where that fails.

use std::{
    fmt, fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};
use tokio::net::TcpListener;

/// The process that listens where we want to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    pub pid: u32,
    /// Its name, as in `ps -o comm`.
    pub name: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.name, self.pid)
    }
}

/// Why the metrics address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error(
        "cannot listen on {address} for metrics: the address is in use by {}; stop that, or set [metrics].listen \
         to another address",
        .holder.as_ref().map_or("another process".to_owned(), Holder::to_string)
    )]
    InUse { address: SocketAddr, holder: Option<Holder> },
    #[error(
        "cannot listen on {address} for metrics: no interface of this host has the address {}; set \
         [metrics].listen to an address that `ip address` shows",
        .address.ip()
    )]
    NotLocal { address: SocketAddr },
    #[error(
        "cannot listen on {address} for metrics: ports below 1024 need CAP_NET_BIND_SERVICE; grant it, or set \
         [metrics].listen to a higher port"
    )]
    Denied { address: SocketAddr },
    #[error("cannot listen on {address} for metrics: {source}; check [metrics].listen")]
    Other { address: SocketAddr, source: io::Error },
}

/// Listens on `[metrics].listen`.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => BindError::InUse { address, holder: holder(address) },
        io::ErrorKind::AddrNotAvailable => BindError::NotLocal { address },
        io::ErrorKind::PermissionDenied => BindError::Denied { address },
        _ => BindError::Other { address, source },
    })
}

/// Who listens where `address` would collide; `None` if that is nobody we may look at (another user's
/// process, another network namespace's /proc).
fn holder(address: SocketAddr) -> Option<Holder> {
    let inodes: Vec<u64> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| table.lines().filter_map(listening).collect::<Vec<_>>())
        .filter(|(bound, _)| collide(*bound, address))
        .map(|(_, inode)| inode)
        .collect();
    let links: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    fs::read_dir("/proc").ok()?.flatten().find_map(|process| {
        let pid: u32 = process.file_name().to_str()?.parse().ok()?;
        let holds = fs::read_dir(process.path().join("fd")).ok()?.flatten().any(|fd| {
            fs::read_link(fd.path()).is_ok_and(|to| links.iter().any(|link| to.as_os_str() == link.as_str()))
        });
        let name = fs::read_to_string(process.path().join("comm")).ok()?;
        holds.then(|| Holder { pid, name: name.trim_end().to_owned() })
    })
}

/// A wildcard collides with every address (an IPv6 one with IPv4, too, unless it is V6ONLY).
fn collide(bound: SocketAddr, wanted: SocketAddr) -> bool {
    bound.port() == wanted.port()
        && (bound.ip().to_canonical() == wanted.ip().to_canonical()
            || bound.ip().is_unspecified()
            || wanted.ip().is_unspecified())
}

/// Address and inode of a line of /proc/net/tcp or tcp6 (proc_pid_net(5)), if it is a listening socket.
/// Addresses are printed as 32-bit words in host order.
fn listening(line: &str) -> Option<(SocketAddr, u64)> {
    let mut fields = line.split_ascii_whitespace();
    let local = fields.nth(1)?;
    let state = fields.nth(1)?;
    let inode = fields.nth(5)?.parse().ok()?;
    let (ip, port) = local.split_once(':')?;
    let word = |at: usize| Some(u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    let ip: IpAddr = match ip.len() {
        8 => Ipv4Addr::from(word(0)?).into(),
        32 => {
            let mut octets = [0; 16];
            for (at, to) in octets.chunks_exact_mut(4).enumerate() {
                to.copy_from_slice(&word(8 * at)?);
            }
            Ipv6Addr::from(octets).into()
        }
        _ => return None,
    };
    // 0A is TCP_LISTEN.
    (state == "0A").then_some((SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?), inode))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[tokio::test]
    async fn a_taken_address_names_the_holder() {
        let first = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = first.local_addr().unwrap();
        let error = bind(address).await.unwrap_err();
        let BindError::InUse { holder: Some(holder), .. } = &error else { panic!("{error:?}") };
        assert_eq!(holder.pid, std::process::id());
        let text = error.to_string();
        assert!(text.contains(&format!("pid {}", holder.pid)) && text.contains("[metrics].listen"), "{text}");
        assert!(text.contains(&address.to_string()), "{text}");
        drop(first);
        bind(address).await.expect("free again");
    }

    #[tokio::test]
    async fn a_foreign_address_is_told_apart() {
        // RFC 5737: no host has an address of TEST-NET-3.
        let error = bind("203.0.113.77:9750".parse().unwrap()).await.unwrap_err();
        assert!(matches!(error, BindError::NotLocal { .. }), "{error:?}");
        assert!(error.to_string().contains("203.0.113.77"), "{error}");
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn lines_of_the_kernel() {
        let v4 = "   0: 0100007F:2616 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 \
                  12345 1 ffff 100 0 0 10 0";
        assert_eq!(listening(v4), Some(("127.0.0.1:9750".parse().unwrap(), 12345)));
        assert_eq!(listening(&v4.replace(" 0A ", " 01 ")), None, "an established connection");
        let v6 = "   0: B80D0120000000000000000001000000:0050 00000000000000000000000000000000:0000 0A \
                  00000000:00000000 00:00000000 00000000     0        0 7 1 ffff 100 0 0 10 0";
        assert_eq!(listening(v6), Some(("[2001:db8::1]:80".parse().unwrap(), 7)));
        assert_eq!(listening("  sl  local_address rem_address   st tx_queue rx_queue tr tm->when"), None);
    }

    #[test]
    fn wildcards_collide() {
        let collides = |a: &str, b: &str| collide(a.parse().unwrap(), b.parse().unwrap());
        assert!(collides("0.0.0.0:80", "127.0.0.1:80"));
        assert!(collides("[::]:80", "127.0.0.1:80"));
        assert!(collides("[::ffff:127.0.0.1]:80", "127.0.0.1:80"));
        assert!(!collides("127.0.0.1:80", "127.0.0.2:80"));
        assert!(!collides("127.0.0.1:80", "127.0.0.1:81"));
    }

    proptest! {
        #[test]
        fn no_line_panics(line: String) {
            let _ = listening(&line);
        }

        #[test]
        fn no_likely_line_panics(ip in "[0-9A-Fé]{0,33}", port in "[0-9A-F]{0,5}", inode in "[0-9]{0,21}") {
            let _ = listening(&format!("0: {ip}:{port} 0:0 0A 0:0 0:0 0 0 0 {inode}"));
        }
    }
}
