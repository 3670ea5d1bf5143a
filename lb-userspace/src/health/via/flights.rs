//! Which port of this node's a probe has, and for which backend: how packets of the namespace are told apart.

use super::filter;
use lb_common::{abi::BackendEntry, wire::proto};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// So many ports of an address are taken in turn before one is taken again: a backend that missed the RST of an earlier
/// check would take the next one from the same port for the same connection.
const IN_TURN: usize = 128;
/// With more than these under way at once a port rests at least so long.
const REST: Duration = Duration::from_millis(100);

/// Where packets of a probe go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Leg {
    pub(super) vip: IpAddr,
    pub(super) entry: BackendEntry,
    pub(super) seed: u64,
}

/// Protocol, and this node's address and port.
pub(super) type Own = (u8, SocketAddr);

#[derive(Debug, Default)]
pub(super) struct Flights(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    /// A probe's leg stays behind its end, until its port is taken again: the RST of its socket is still on its way.
    legs: HashMap<Own, Leg>,
    resting: HashMap<(u8, IpAddr), VecDeque<Port>>,
    next_identifier: u16,
}

/// A port of the host that nobody else has while the socket lives.
#[derive(Debug)]
struct Port {
    number: u16,
    /// What comes in for it is dropped, instead of being answered by RST or "port unreachable". An ICMP identifier needs
    /// none: nobody is told of an echo reply that nobody asked for.
    _socket: Option<Socket>,
    since: Instant,
}

/// A port in use.
#[derive(Debug)]
pub(super) struct Flight {
    flights: Arc<Flights>,
    own: Own,
    port: Option<Port>,
}

impl Flights {
    /// Takes a port of `source` for packets of this protocol; called in the host's namespace.
    pub(super) fn take(self: &Arc<Self>, protocol: u8, source: IpAddr, leg: Leg) -> io::Result<Flight> {
        let mut table = self.lock();
        let port = match protocol {
            proto::TCP | proto::UDP => {
                let resting = table.resting.entry((protocol, source)).or_default();
                let rested = |port: &Port| port.since.elapsed() >= REST;
                if resting.len() >= IN_TURN && resting.front().is_some_and(rested) {
                    resting.pop_front()
                } else {
                    None
                }
            }
            _ => {
                table.next_identifier = table.next_identifier.wrapping_add(1);
                Some(Port { number: table.next_identifier, _socket: None, since: Instant::now() })
            }
        };
        let port = match port {
            Some(port) => port,
            None => hold(protocol, source).or_else(|error| {
                // Out of ports or descriptors: those there are will do.
                table.resting.get_mut(&(protocol, source)).and_then(VecDeque::pop_front).ok_or(error)
            })?,
        };
        let own = (protocol, SocketAddr::new(source, port.number));
        table.legs.insert(own, leg);
        Ok(Flight { flights: Arc::clone(self), own, port: Some(port) })
    }

    /// Where a packet from there goes.
    pub(super) fn leg(&self, own: &Own) -> Option<Leg> {
        self.lock().legs.get(own).copied()
    }

    /// Gives up what rests of other addresses.
    pub(super) fn retain(&self, sources: &BTreeSet<IpAddr>) {
        let mut table = self.lock();
        table.resting.retain(|(_, source), _| sources.contains(source));
        table.legs.retain(|(_, own), _| sources.contains(&own.ip()));
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Every write is a whole insert or remove: what a panicking writer leaves is sound.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flight {
    /// The address and port that the probe's socket takes.
    pub(super) fn from(&self) -> SocketAddr {
        self.own.1
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if let Some(mut port) = self.port.take().filter(|port| port._socket.is_some()) {
            port.since = Instant::now();
            let (protocol, own) = self.own;
            self.flights.lock().resting.entry((protocol, own.ip())).or_default().push_back(port);
        }
    }
}

/// Takes a free port of the host. The filter comes first, so that nothing is ever accepted.
fn hold(protocol: u8, source: IpAddr) -> io::Result<Port> {
    let (kind, number) =
        if protocol == proto::TCP { (Type::STREAM, Protocol::TCP) } else { (Type::DGRAM, Protocol::UDP) };
    let socket = Socket::new(Domain::for_address(SocketAddr::new(source, 0)), kind, Some(number))?;
    attach(&socket, &filter::NOTHING)?;
    socket.bind(&SocketAddr::new(source, 0).into())?;
    if protocol == proto::TCP {
        // Only a listener is asked about segments of unknown connections.
        socket.listen(1)?;
    }
    let address = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
    Ok(Port { number: address.port(), _socket: Some(socket), since: Instant::now() })
}

pub(super) fn attach(socket: &Socket, program: &[libc::sock_filter]) -> io::Result<()> {
    let program: Vec<_> = program.iter().map(|op| SockFilter::new(op.code, op.jt, op.jf, op.k)).collect();
    socket.attach_filter(&program)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpStream, UdpSocket};

    const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn leg() -> Leg {
        Leg { vip: LOCAL, entry: BackendEntry::default(), seed: 0 }
    }

    #[test]
    fn a_held_port_is_silent_and_nobody_elses() {
        let flights = Arc::new(Flights::default());
        let flight = flights.take(proto::TCP, LOCAL, leg()).unwrap();
        let connected = TcpStream::connect_timeout(&flight.from(), Duration::from_millis(300));
        assert_eq!(connected.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(std::net::TcpListener::bind(flight.from()).is_err());
        assert!(flights.leg(&(proto::TCP, flight.from())).is_some());

        let flight = flights.take(proto::UDP, LOCAL, leg()).unwrap();
        let socket = UdpSocket::bind((LOCAL, 0)).unwrap();
        socket.connect(flight.from()).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        socket.send(b"hello").unwrap();
        // "Port unreachable" would be ConnectionRefused.
        assert_eq!(socket.recv(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn ports_are_taken_in_turn_and_no_more_than_needed() {
        let flights = Arc::new(Flights::default());
        let mut seen = HashMap::new();
        for n in 0..3 * IN_TURN {
            let flight = flights.take(proto::UDP, LOCAL, leg()).unwrap();
            if let Some(last) = seen.insert(flight.from(), n) {
                assert!(n - last >= IN_TURN, "{} taken again after {}", flight.from(), n - last);
            }
            drop(flight);
            if n == IN_TURN {
                std::thread::sleep(REST);
            }
        }
        assert!(seen.len() <= 3 * IN_TURN);
        std::thread::sleep(REST);
        let before = flights.lock().resting[&(proto::UDP, LOCAL)].len();
        drop(flights.take(proto::UDP, LOCAL, leg()).unwrap());
        assert_eq!(flights.lock().resting[&(proto::UDP, LOCAL)].len(), before);
        flights.retain(&BTreeSet::new());
        let table = flights.lock();
        assert!(table.resting.is_empty() && table.legs.is_empty());
    }
}
