//! The smallest XDP programs, written as instructions: the lab must not depend on the product's eBPF build.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    path::Path,
};

use super::{Error, Netns, Result, ethtool};

/// linux/bpf.h.
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_DETACH: libc::c_long = 34;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
/// Without it no veth whose frames may be longer than a page takes a program.
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;
/// linux/if_link.h.
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// Encoders for the few instructions the lab needs; see the kernel's instruction-set.rst for the layout.
pub mod insn {
    pub const XDP_DROP: i32 = 1;
    pub const XDP_PASS: i32 = 2;
    pub const XDP_TX: i32 = 3;

    /// The helper `bpf_redirect(ifindex, flags)`.
    pub const REDIRECT: i32 = 23;

    /// Load and store widths.
    pub const U32: u8 = 0x00;
    pub const U16: u8 = 0x08;

    const fn encode(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> u64 {
        let [o0, o1] = offset.to_le_bytes();
        let [i0, i1, i2, i3] = immediate.to_le_bytes();
        u64::from_le_bytes([code, dst | src << 4, o0, o1, i0, i1, i2, i3])
    }

    /// `dst = immediate`
    pub const fn mov(dst: u8, immediate: i32) -> u64 {
        encode(0xb7, dst, 0, 0, immediate)
    }
    /// `dst = src`
    pub const fn mov_reg(dst: u8, src: u8) -> u64 {
        encode(0xbf, dst, src, 0, 0)
    }
    /// `dst += immediate`
    pub const fn add(dst: u8, immediate: i32) -> u64 {
        encode(0x07, dst, 0, 0, immediate)
    }
    /// `dst = *(width *)(src + offset)`
    pub const fn load(width: u8, dst: u8, src: u8, offset: i16) -> u64 {
        encode(0x61 | width, dst, src, offset, 0)
    }
    /// `*(width *)(dst + offset) = src`
    pub const fn store(width: u8, dst: u8, src: u8, offset: i16) -> u64 {
        encode(0x63 | width, dst, src, offset, 0)
    }
    /// Skips `count` instructions if `dst == immediate`
    pub const fn skip_if(dst: u8, immediate: i32, count: i16) -> u64 {
        encode(0x15, dst, 0, count, immediate)
    }
    /// Skips `count` instructions if `dst != immediate`
    pub const fn skip_if_not(dst: u8, immediate: i32, count: i16) -> u64 {
        encode(0x55, dst, 0, count, immediate)
    }
    /// Skips `count` instructions if `dst > src`
    pub const fn skip_if_greater(dst: u8, src: u8, count: i16) -> u64 {
        encode(0x2d, dst, src, count, 0)
    }
    /// `r0 = helper(r1, ...)`, the helper by its number
    pub const fn call(helper: i32) -> u64 {
        encode(0x85, 0, 0, 0, helper)
    }
    /// Returns r0.
    pub const fn exit() -> u64 {
        encode(0x95, 0, 0, 0, 0)
    }
}

/// A loaded XDP program.
#[derive(Debug)]
pub struct XdpProgram(OwnedFd);

/// An attached XDP program; dropping it detaches, and the next frame does not meet it.
#[derive(Debug)]
pub struct XdpLink(OwnedFd);

impl Drop for XdpLink {
    fn drop(&mut self) {
        /// The head of `union bpf_attr` for BPF_LINK_DETACH.
        #[repr(C)]
        struct Detach {
            link: u32,
        }
        let mut attributes = Detach { link: self.0.as_raw_fd().cast_unsigned() };
        // Closing the descriptor is not enough: a child that another thread has just forked holds a copy until it
        // executes its program.
        // SAFETY: the attributes are those of BPF_LINK_DETACH and hold no pointer.
        let _ = unsafe { bpf(BPF_LINK_DETACH, &mut attributes) };
    }
}

impl XdpLink {
    /// Pins the link on a BPF file system: the program stays attached until the file is removed.
    pub fn pin(self, path: &Path) -> io::Result<()> {
        /// The head of `union bpf_attr` for BPF_OBJ_PIN.
        #[repr(C)]
        struct Pin {
            path: u64,
            link: u32,
            flags: u32,
        }
        let path = CString::new(path.as_os_str().as_encoded_bytes())?;
        let mut attributes =
            Pin { path: path.as_ptr() as u64, link: self.0.as_raw_fd().cast_unsigned(), flags: 0 };
        // SAFETY: the attributes are those of BPF_OBJ_PIN, and the path they point to lives until the call returns.
        unsafe { bpf(BPF_OBJ_PIN, &mut attributes) }?;
        // Only the descriptor is closed: dropping the whole would detach.
        // SAFETY: `self` is forgotten, so that the descriptor has one owner again.
        drop(unsafe { OwnedFd::from_raw_fd(self.0.as_raw_fd()) });
        std::mem::forget(self);
        Ok(())
    }
}

impl XdpProgram {
    /// Passes every frame to the kernel.
    pub fn pass() -> Result<Self> {
        Self::load(&[insn::mov(0, insn::XDP_PASS), insn::exit()])
    }

    /// Sends every frame back out where it came from, its two MAC addresses exchanged.
    pub fn bounce() -> Result<Self> {
        use insn::{U16, U32, XDP_DROP, XDP_TX, add, exit, load, mov, mov_reg, skip_if_greater, store};
        Self::load(&[
            // r2 = data, r3 = data_end; a frame without room for both addresses is dropped.
            load(U32, 2, 1, 0),
            load(U32, 3, 1, 4),
            mov_reg(4, 2),
            add(4, 12),
            mov(0, XDP_DROP),
            skip_if_greater(4, 3, 9),
            load(U32, 4, 2, 0),
            load(U16, 5, 2, 4),
            load(U32, 6, 2, 6),
            load(U16, 7, 2, 10),
            store(U32, 2, 6, 0),
            store(U16, 2, 7, 4),
            store(U32, 2, 4, 6),
            store(U16, 2, 5, 10),
            mov(0, XDP_TX),
            exit(),
        ])
    }

    /// Loads instructions as encoded by [`insn`]; the verifier's words are in the error.
    pub fn load(instructions: &[u64]) -> Result<Self> {
        /// The head of `union bpf_attr` for BPF_PROG_LOAD.
        #[repr(C)]
        struct Load {
            kind: u32,
            count: u32,
            instructions: u64,
            license: u64,
            log_level: u32,
            log_size: u32,
            log: u64,
            kernel_version: u32,
            flags: u32,
            name: [u8; 16],
            ifindex: u32,
            attach_type: u32,
        }
        let mut log = vec![0_u8; 64 * 1024];
        let mut attributes = Load {
            kind: BPF_PROG_TYPE_XDP,
            count: u32::try_from(instructions.len()).unwrap_or(u32::MAX),
            instructions: instructions.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            log_level: 1,
            log_size: u32::try_from(log.len()).unwrap_or_default(),
            log: log.as_mut_ptr() as u64,
            kernel_version: 0,
            flags: BPF_F_XDP_HAS_FRAGS,
            name: *b"lab\0\0\0\0\0\0\0\0\0\0\0\0\0",
            ifindex: 0,
            // As the product's: a link takes only a program of the same attach type in the place of another.
            attach_type: BPF_XDP,
        };
        // SAFETY: the attributes are those of BPF_PROG_LOAD, and the instructions, the licence and the log they point
        // to live until the call returns.
        unsafe { bpf_fd(BPF_PROG_LOAD, &mut attributes) }.map(Self).map_err(|source| {
            let end = log.iter().position(|b| *b == 0).unwrap_or(log.len());
            let log = String::from_utf8_lossy(log.get(..end).unwrap_or_default());
            let log = if log.is_empty() { String::new() } else { format!("\n{log}") };
            Error::Bpf { what: "loading an XDP program", source, log }
        })
    }

    /// Attaches the program to an interface in native mode.
    pub fn attach(&self, ns: &Netns, ifname: &str) -> Result<XdpLink> {
        ns.run(|| self.attach_here(ifname)).map_err(|source| Error::Interface {
            ns: ns.name().to_owned(),
            ifname: ifname.to_owned(),
            what: "attaching an XDP program natively",
            source,
        })
    }

    /// As [`XdpProgram::attach`], to an interface of the calling thread's namespace, where the kernel looks it up.
    pub fn attach_here(&self, ifname: &str) -> io::Result<XdpLink> {
        /// The head of `union bpf_attr` for BPF_LINK_CREATE.
        #[repr(C)]
        struct Create {
            program: u32,
            ifindex: u32,
            attach_type: u32,
            flags: u32,
        }
        let program = self.0.as_raw_fd().cast_unsigned();
        let ifindex = ethtool::index(ifname)?;
        let mut attributes = Create { program, ifindex, attach_type: BPF_XDP, flags: XDP_FLAGS_DRV_MODE };
        // SAFETY: the attributes are those of BPF_LINK_CREATE and hold no pointer.
        unsafe { bpf_fd(BPF_LINK_CREATE, &mut attributes) }.map(XdpLink)
    }
}

/// A bpf(2) command that returns a descriptor.
///
/// # Safety
/// As for [`bpf`].
unsafe fn bpf_fd<T>(command: libc::c_long, attributes: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller vouches for the attributes.
    let fd = unsafe { bpf(command, attributes) }?;
    // SAFETY: the kernel just handed over this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A bpf(2) command.
///
/// # Safety
/// `attributes` must be laid out as the command's part of `union bpf_attr`, and what it points to must be valid for
/// the kernel to read or write until this returns.
unsafe fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<RawFd> {
    let size = size_of::<T>();
    // SAFETY: the caller vouches for the attributes; the size passed is theirs, so that the kernel reads no further.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        RawFd::try_from(result).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::insn;

    #[test]
    fn instructions_have_the_kernels_layout() {
        // From `llvm-mc --arch=bpf`: r0 = 2; exit; r4 += 12; if r4 > r3 goto +9; *(u16 *)(r2 + 10) = r5
        assert_eq!(insn::mov(0, 2).to_le_bytes(), [0xb7, 0, 0, 0, 2, 0, 0, 0]);
        assert_eq!(insn::exit().to_le_bytes(), [0x95, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(insn::add(4, 12).to_le_bytes(), [0x07, 4, 0, 0, 12, 0, 0, 0]);
        assert_eq!(insn::skip_if_greater(4, 3, 9).to_le_bytes(), [0x2d, 0x34, 9, 0, 0, 0, 0, 0]);
        assert_eq!(insn::store(insn::U16, 2, 5, 10).to_le_bytes(), [0x6b, 0x52, 10, 0, 0, 0, 0, 0]);
        assert_eq!(insn::load(insn::U32, 2, 1, 0).to_le_bytes(), [0x61, 0x12, 0, 0, 0, 0, 0, 0]);
    }
}
