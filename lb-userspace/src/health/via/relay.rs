//! Between the namespace and the wire: packets of probes out, answers in. One loop: it waits for the device, the packet
//! sockets or another wish, and deals with what is there. Dropped at any wait it loses nothing but packets.

use super::{
    Open, ViaError, filter,
    flights::{Flights, attach},
    netns::{self, Device},
    packet::{self, Seen, VNET},
};
use crate::dataplane::{packet_socket, send_frame};
use lb_common::{
    core::{Forward, forward},
    packet::Buffer,
    wire::eth,
};
use nix::errno::Errno;
use socket2::Socket;
use std::{
    collections::BTreeSet,
    io,
    net::IpAddr,
    os::fd::{AsRawFd, OwnedFd},
    sync::{Arc, mpsc},
};
use tokio::{io::unix::AsyncFd, sync::watch};

/// Packets of one side before the others' turn.
const BATCH: usize = 64;
/// The largest that the kernel's receive offload makes of many, and what stands in front.
const LONGEST: usize = VNET + 22 + 65_536;
/// Room for the answers of a few thousand probes at once.
const RECEIVE_BUFFER: usize = 4 << 20;

/// What the namespace and the sockets are to be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Wanted {
    pub(super) generation: u64,
    pub(super) sources: BTreeSet<IpAddr>,
    pub(super) vips: BTreeSet<IpAddr>,
}

/// Starts the thread; called in the host's namespace.
pub(super) fn start() -> Result<Open, ViaError> {
    let failed = |doing, advice| move |source| ViaError { doing, source, advice };
    let packets = failed("open a packet socket", "it takes CAP_NET_RAW");
    let out = packet_socket().map_err(packets)?;
    let answers = [libc::ETH_P_IP, libc::ETH_P_IPV6].map(receiver);
    let [v4, v6] = answers;
    let answers = [v4.map_err(packets)?, v6.map_err(packets)?];
    let flights = Arc::<Flights>::default();
    let (wanted, wish) = watch::channel(Wanted::default());
    let (settle, settled) = watch::channel(0);
    let (tell, told) = mpsc::channel();
    let thread = std::thread::Builder::new().name("vip-checks".to_owned()).spawn({
        let flights = Arc::clone(&flights);
        move || {
            let made = netns::enter().and_then(|tun| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let runtime = runtime.map_err(failed("start their thread", "see the log"))?;
                let set_up = async {
                    let device = Device::set_up().await?;
                    let [v4, v6] = answers;
                    let answers = [watched(v4)?, watched(v6)?];
                    Ok(Relay { tun: watched(tun)?, answers, out, flights, device, wish, settle })
                };
                let relay = runtime.block_on(set_up);
                Ok((relay.map_err(failed("set up their network namespace", "see the log"))?, runtime))
            });
            let (relay, runtime) = match made {
                Ok(made) => made,
                Err(error) => {
                    let _ = tell.send(Err(error));
                    return;
                }
            };
            if tell.send(Ok(runtime.handle().clone())).is_ok() {
                runtime.block_on(relay.run());
            }
        }
    });
    thread.map_err(failed("start their thread", "see the limit of tasks"))?;
    let gone = |_| ViaError {
        doing: "start their thread",
        source: io::Error::other("it has ended"),
        advice: "see the log",
    };
    let runtime = told.recv().map_err(gone)??;
    Ok(Open { runtime, flights, wanted, settled })
}

struct Relay {
    tun: AsyncFd<OwnedFd>,
    /// IPv4 and IPv6.
    answers: [AsyncFd<Socket>; 2],
    /// Of the host's namespace.
    out: OwnedFd,
    flights: Arc<Flights>,
    device: Device,
    wish: watch::Receiver<Wanted>,
    settle: watch::Sender<u64>,
}

impl Relay {
    async fn run(mut self) {
        let mut buffer = vec![0; LONGEST];
        let Self { tun, answers: [v4, v6], out, flights, device, wish, settle } = &mut self;
        loop {
            tokio::select! {
                changed = wish.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let wanted = wish.borrow_and_update().clone();
                    device.set_addresses(&wanted.sources).await;
                    for (socket, v6) in [(&*v4, false), (&*v6, true)] {
                        let program = filter::answers(v6, &wanted.sources, &wanted.vips);
                        if let Err(error) = attach(socket.get_ref(), &program) {
                            tracing::error!(%error, "answers to checks of virtual addresses cannot be received");
                        }
                    }
                    settle.send_replace(wanted.generation);
                }
                Ok(mut ready) = tun.readable() => {
                    for _ in 0..BATCH {
                        match nix::unistd::read(tun.get_ref(), &mut buffer) {
                            Ok(length) => outward(buffer.get(VNET..length).unwrap_or_default(), flights, out),
                            Err(Errno::EINTR) => {}
                            Err(_) => {
                                ready.clear_ready();
                                break;
                            }
                        }
                    }
                }
                Ok(mut ready) = v4.readable() => {
                    if !receive(v4.get_ref(), &mut buffer, flights, tun.get_ref()) {
                        ready.clear_ready();
                    }
                }
                Ok(mut ready) = v6.readable() => {
                    if !receive(v6.get_ref(), &mut buffer, flights, tun.get_ref()) {
                        ready.clear_ready();
                    }
                }
            }
            // The probes run on this thread too.
            tokio::task::yield_now().await;
        }
    }
}

fn watched<T: AsRawFd>(owner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: a socket or device owns its descriptor and neither closes nor changes it while it lives inside the AsyncFd.
    unsafe { AsyncFd::register(owner) }.map_err(|error| io::Error::other(error.to_string()))
}

/// Sends a packet of a probe as the program would send a client's.
fn outward(packet: &[u8], flights: &Flights, out: &OwnedFd) {
    let Some(Seen::Of(ends)) = packet::read(packet) else { return };
    let Some(leg) = flights.leg(&(ends.proto, ends.src)) else { return };
    let Some((ip, hash)) = packet::parsed(packet, &ends, leg.seed) else { return };
    if leg.vip != ends.dst.ip() {
        return;
    }
    let ether_type = if ip.v6 { eth::IPV6 } else { eth::IPV4 };
    let mut frame = Buffer::new(&[&[0; eth::TYPE], &ether_type.to_be_bytes()[..], packet].concat());
    let entry = &leg.entry;
    let way = Forward { service: entry.service, backend_id: 0, backend: entry, ip, hash, slot: 0 };
    if let Err(reason) = forward::rewrite(&mut frame, &way) {
        tracing::debug!(reason = reason.name(), to = %ends.dst, "a health check cannot be sent");
        return;
    }
    if let Err(error) = send_frame(out, frame.frame(), entry.ifindex) {
        tracing::debug!(%error, to = %ends.dst, "a health check cannot be sent");
    }
}

/// Reads a batch of answers; false when there are no more.
fn receive(socket: &Socket, buffer: &mut [u8], flights: &Flights, tun: &OwnedFd) -> bool {
    for _ in 0..BATCH {
        match receive_one(socket, buffer) {
            Ok((length, link)) => inward(&mut buffer[..length], link, flights, tun),
            Err(Errno::EINTR) => {}
            Err(_) => return false,
        }
    }
    true
}

/// Hands an answer to the namespace, if it is one. `link` is the length of its link header.
fn inward(data: &mut [u8], link: usize, flights: &Flights, tun: &OwnedFd) {
    let Some(vnet) = data.first_chunk::<VNET>().copied() else { return };
    let Some(seen) = data.get(VNET + link..).and_then(packet::read) else { return };
    let (own, vip) = match seen {
        Seen::Of(ends) => ((ends.proto, ends.dst), ends.src.ip()),
        Seen::About(ends) => ((ends.proto, ends.src), ends.dst.ip()),
    };
    if flights.leg(&own).is_none_or(|leg| leg.vip != vip) {
        return;
    }
    data[link..link + VNET].copy_from_slice(&packet::cut_vnet(vnet, link as u16));
    // What does not fit into the device's queue is lost, as packets are.
    if let Err(error) = nix::unistd::write(tun, &data[link..]) {
        tracing::debug!(%error, from = %vip, "an answer to a health check is lost");
    }
}

/// A socket that gets copies of what comes in, of what is segmented or summed up later too; nothing before it has its
/// first program.
fn receiver(ether_type: i32) -> io::Result<Socket> {
    let socket = Socket::from(packet_socket()?);
    attach(&socket, &filter::NOTHING)?;
    socket.set_nonblocking(true)?;
    // Beyond the limit of the system where that is allowed; else as much as is.
    if nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err()
    {
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    }
    let on: libc::c_int = 1;
    // SAFETY: the option is one integer, which lives on the stack for the whole call.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_VNET_HDR,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if set < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a C structure of integers, for which zeros are a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (ether_type as u16).to_be();
    // SAFETY: pointer and size are those of a structure on the stack.
    let bound = unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as libc::socklen_t)
    };
    if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}

/// The next packet; its length, with [`VNET`] and link header, and that of the link header alone.
fn receive_one(socket: &Socket, buffer: &mut [u8]) -> Result<(usize, usize), Errno> {
    // SAFETY: a C structure of integers, for which zeros are a value.
    let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    let mut from_len = size_of_val(&from) as libc::socklen_t;
    // SAFETY: pointers and sizes are those of a live slice and of a structure on the stack.
    let received = unsafe {
        libc::recvfrom(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            0,
            (&raw mut from).cast(),
            &raw mut from_len,
        )
    };
    let length = usize::try_from(received).map_err(|_| Errno::last())?;
    // Tunnels and other point-to-point links have no header.
    let link = match from.sll_hatype {
        libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK => eth::LEN,
        _ => 0,
    };
    Ok((length, link))
}
