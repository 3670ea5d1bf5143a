//! Programs beside a [`Balancer`](super::Balancer)'s own, over the very same maps: another handle of it for another thread, and the
//! benchmark's entry points, which make a new flow of every run.

use super::{Loaded, Outcome, Verdict};
use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, MapInfo},
    programs::{TestRun, TestRunOptions, Xdp},
};
use lb_userspace::dataplane;
use std::{
    fs,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

/// Pins for as long as it takes to open them again; named as those of tests are, so that they are swept if this process dies.
struct Pins(PathBuf);

impl Pins {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = Path::new("/sys/fs/bpf").join(format!("lbd-test-{}-beside{number}", std::process::id()));
        fs::create_dir(&dir).expect("a directory on the BPF file system");
        Self(dir)
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Another handle of a balancer's program; it runs on the CPU of the calling thread.
pub struct Runner {
    program: OwnedFd,
    out: Vec<u8>,
}

/// `union bpf_attr`, the part for `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Default)]
struct Attr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

impl Runner {
    /// Runs the program on a frame of at least 14 bytes.
    pub fn run(&mut self, frame: &[u8]) -> Outcome {
        const BPF_PROG_TEST_RUN: libc::c_long = 10;
        let mut attr = Attr {
            prog_fd: self.program.as_raw_fd() as u32,
            data_size_in: frame.len() as u32,
            data_size_out: self.out.len() as u32,
            data_in: frame.as_ptr() as u64,
            data_out: self.out.as_mut_ptr() as u64,
            repeat: 1,
            ..Attr::default()
        };
        // SAFETY: both pointers are to live buffers of the lengths beside them; the kernel writes no more than
        // `data_size_out` bytes and the results in `attr`.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attr, size_of::<Attr>()) };
        assert_eq!(result, 0, "a test run: {}", std::io::Error::last_os_error());
        let frame = self.out[..attr.data_size_out as usize].to_vec();
        Outcome { verdict: Verdict::from_code(attr.retval), frame }
    }
}

/// Programs of the benchmark, by family.
const NEW_FLOWS: [&str; 2] = ["lb4_new", "lb6_new"];

/// An endless number of flows, made in the kernel: 2^30 sources (10.0.0.0 to 10.255.255.255 or as many last bytes of an
/// IPv6 address, 64 ports each) in an order without order, the same one for every flood.
pub struct Flood {
    ebpf: Ebpf,
    out: Vec<u8>,
}

impl Flood {
    /// Sends so many packets like this one, without options or extension headers, each of another flow.
    pub fn pour(&mut self, frame: &[u8], packets: u32) -> Verdict {
        let name = NEW_FLOWS[usize::from(frame[12..14] == [0x86, 0xdd])];
        let program: &Xdp = self.ebpf.program(name).expect(name).try_into().expect("an XDP program");
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut self.out),
            repeat: packets,
            ..TestRunOptions::new()
        };
        Verdict::from_code(program.test_run(options).expect("a test run").return_value)
    }
}

impl Loaded {
    fn own(&self) -> &Xdp {
        self.program.ebpf.program("lb").expect("lb").try_into().expect("an XDP program")
    }

    /// Another handle of the program.
    #[must_use]
    pub fn runner(&self) -> Runner {
        let fd = self.own().fd().expect("a loaded program").as_fd().try_clone_to_owned();
        Runner { program: fd.expect("another descriptor"), out: vec![0; 8192] }
    }

    /// The benchmark's program over the maps of this balancer.
    #[must_use]
    pub fn flood(&self) -> Flood {
        let pins = Pins::new();
        let mut loader = EbpfLoader::new();
        let ids = self.own().info().expect("program info").map_ids().expect("map ids").expect("map ids");
        for id in ids {
            let info = MapInfo::from_id(id).expect("map info");
            let name = info.name_as_str().expect("UTF-8");
            // The loader's tables beside ours have names with dots.
            let Some(map) = lb_common::abi::INVENTORY.iter().find(|map| map.name == name) else { continue };
            let pin = pins.0.join(map.name);
            MapData::from_id(id).expect("a map of this id").pin(&pin).expect("pinned");
            loader.map_max_entries(map.name, info.max_entries()).map_pin_path(map.name, pin);
        }
        let mut ebpf = loader.load(dataplane::BENCH).expect("the benchmark's ELF loads");
        for name in NEW_FLOWS {
            let program: &mut Xdp = ebpf.program_mut(name).expect(name).try_into().expect("an XDP program");
            program.load().expect("the verifier takes the program");
        }
        Flood { ebpf, out: vec![0; 8192] }
    }
}
