//! Fragments that the program held because their first one had not come: reading them, and sending them through the
//! program again.

use super::{DataplaneError, Kernel, maps::Mapped};
use aya::{
    maps::{HashMap, Map, MapData, RingBuf},
    programs::{TestRun as _, TestRunAttrs, TestRunOptions, Xdp},
};
use lb_common::abi::{BackendEntry, Control, FragmentKey, FragmentTrace, RESENT};
use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::Path,
    sync::atomic::Ordering,
};

const FRAGMENTS: &str = "FRAGMENTS";
const HELD: &str = "HELD";
const CONTROL: &str = "CONTROL";
/// Room for what the program puts in front.
const ROOM: usize = 512;

/// The maps and the socket that holding takes.
pub struct Held {
    fragments: HashMap<MapData, FragmentKey, FragmentTrace>,
    control: Mapped,
    socket: OwnedFd,
}

impl Held {
    /// Opens the maps pinned in `maps_dir`; with the ring buffer of frames, which has one reader only.
    pub fn open(maps_dir: &Path) -> Result<(Self, RingBuf<MapData>), DataplaneError> {
        let pinned =
            |name: &'static str| MapData::from_pin(maps_dir.join(name)).map_err(DataplaneError::map(name));
        let fragments = HashMap::try_from(Map::LruHashMap(pinned(FRAGMENTS)?));
        let ring = RingBuf::try_from(Map::RingBuf(pinned(HELD)?)).map_err(DataplaneError::map(HELD))?;
        let held = Self {
            fragments: fragments.map_err(DataplaneError::map(FRAGMENTS))?,
            control: Mapped::new(CONTROL, pinned(CONTROL)?)?,
            socket: packet_socket().map_err(|source| DataplaneError::Write { map: HELD, source })?,
        };
        Ok((held, ring))
    }

    /// Where the first fragment of a datagram went.
    #[must_use]
    pub fn trace(&self, key: &FragmentKey) -> Option<FragmentTrace> {
        self.fragments.get(key, 0).ok()
    }

    /// Has the program hold frames until then, by the monotonic clock.
    pub fn hold_until(&self, ns: u64) {
        const WORD: usize = std::mem::offset_of!(Control, hold_until_ns) / 8;
        self.control.word(0, WORD).store(ns, Ordering::Release);
    }

    /// Sends a frame through the program that is attached, as if it came by the interface once more, and out to where
    /// the program says. The program counts it as what it does with it, and does not hold it again.
    ///
    /// What leaves is sent by a packet socket and not by the kernel's own live test runs: these go out only where the
    /// driver sends for XDP, which an interface in generic mode need not, and say nothing where it does not.
    pub fn resend(
        &self,
        kernel: &mut Kernel,
        key: &FragmentKey,
        frame: &[u8],
        ifindex: u32,
    ) -> io::Result<()> {
        const XDP_PASS: u32 = 2;
        const XDP_TX: u32 = 3;
        const XDP_REDIRECT: u32 = 4;
        let program = kernel.attached_program().map_err(io::Error::other)?;
        let mut out = vec![0; frame.len() + ROOM];
        let (verdict, len) = run(program, frame, ifindex, Some(&mut out))?;
        let egress = match verdict {
            XDP_TX => ifindex,
            XDP_REDIRECT => match self.trace(key).map(|trace| kernel.maps().backend(trace.backend)) {
                Some(BackendEntry { ifindex, .. }) if ifindex != 0 => ifindex,
                _ => return Err(io::Error::other("the way to the backend is gone")),
            },
            // The kernel's: only it can take a frame in.
            XDP_PASS => return run(program, frame, ifindex, None).map(|_| ()),
            _ => return Ok(()),
        };
        // The mark is still in front.
        let frame = out.get(RESENT.len()..len).ok_or(io::ErrorKind::UnexpectedEof)?;
        send_frame(&self.socket, frame, egress)
    }
}

/// Runs the program on a frame of an interface: to see what becomes of it, or, without `out`, for good.
fn run(program: &Xdp, frame: &[u8], ifindex: u32, out: Option<&mut [u8]>) -> io::Result<(u32, usize)> {
    let marked = [&RESENT[..], frame].concat();
    // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    let context = [RESENT.len() as u32, marked.len() as u32, 0, ifindex, 0, 0];
    let context: Vec<u8> = context.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let attrs = if out.is_some() { TestRunAttrs::new() } else { TestRunAttrs::new().xdp_live_frames(1) };
    let options = TestRunOptions {
        data_in: Some(&marked),
        data_out: out,
        ctx_in: Some(&context),
        attrs,
        ..TestRunOptions::new()
    };
    let result = program.test_run(options).map_err(io::Error::other)?;
    Ok((result.return_value, result.data_size_out as usize))
}

/// A socket that sends whole frames, and receives none.
pub(crate) fn packet_socket() -> io::Result<OwnedFd> {
    // SAFETY: a system call without pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor just made, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a whole frame out of an interface.
pub(crate) fn send_frame(socket: &OwnedFd, frame: &[u8], ifindex: u32) -> io::Result<()> {
    let ether_type = frame.get(12..14).map_or([0; 2], |t| [t[0], t[1]]);
    // SAFETY: a C structure of integers, for which zeros are a value.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_protocol = u16::from_ne_bytes(ether_type);
    to.sll_ifindex = ifindex as i32;
    // SAFETY: pointers and sizes are those of a live slice and of a structure on the stack.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            libc::MSG_DONTWAIT,
            (&raw const to).cast(),
            size_of_val(&to) as libc::socklen_t,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
