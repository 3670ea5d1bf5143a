//! What can go wrong between the daemon and the kernel.

use std::{error::Error, io, path::PathBuf};

/// An operation on programs, links or maps failed. Forwarding goes on as it was.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    #[error(
        "cannot load the eBPF program: {}; it needs Linux 6.1 or later and CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN",
        chain(.0)
    )]
    Load(#[source] Box<aya::EbpfError>),
    #[error("the kernel refused the program '{program}': {}", chain(source))]
    Program { program: &'static str, source: Box<aya::programs::ProgramError> },
    #[error(
        "pinned map {path}: {found}, expected {expected}; it was made by something else: remove it with \
         `lbd --detach` or name another pin_dir"
    )]
    ForeignMap { path: PathBuf, found: String, expected: String },
    #[error("map {map}: {}", chain(source))]
    Map { map: &'static str, source: Box<aya::maps::MapError> },
    #[error("cannot read the program's log: {0}")]
    Logger(#[source] Box<aya_log::Error>),
    #[error("cannot read map {map}: {source}")]
    Read { map: &'static str, source: io::Error },
    #[error("cannot write map {map}: {source}")]
    Write { map: &'static str, source: io::Error },
    #[error("cannot map {map} into memory: {source}")]
    Mmap { map: &'static str, source: io::Error },
    #[error("{path}: {source}")]
    Pin { path: PathBuf, source: io::Error },
    #[error(
        "interface {interface} already has an XDP program (id {program}) that is not lbd's; remove it with \
         `ip link set dev {interface} xdp off`"
    )]
    Busy { interface: String, program: String },
    #[error(
        "interface {interface}: its driver does not take an XDP program in native mode: {}; set xdp_mode = \"generic\" or \"auto\"",
        chain(source)
    )]
    NoNative { interface: String, source: Box<aya::programs::ProgramError> },
    #[error("cannot attach to interface {interface}: {}", chain(source))]
    Attach { interface: String, source: Box<aya::programs::ProgramError> },
    #[error(
        "interface {interface}: this kernel gives no BPF link for it, so the program could not outlive the daemon; Linux 5.9 or later is needed"
    )]
    NoLink { interface: String },
    #[error("no interface {interface}; there are: {existing}")]
    NoInterface { interface: String, existing: String },
}

/// An error with its causes: aya's own text often names the system call only, not what the kernel said.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

impl DataplaneError {
    /// Wraps an error of aya's about a map.
    pub(super) fn map(map: &'static str) -> impl FnOnce(aya::maps::MapError) -> Self {
        move |source| Self::Map { map, source: Box::new(source) }
    }

    /// Wraps an error about a file of the pin directory.
    pub(super) fn pin(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Pin { path: path.into(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_said_is_told() {
        let io_error = io::Error::from_raw_os_error(libc::E2BIG);
        let error = aya::maps::MapError::SyscallError(aya::sys::SyscallError {
            call: "bpf_map_update_elem",
            io_error,
        });
        let text = DataplaneError::map("PORTS")(error).to_string();
        assert_eq!(text, "map PORTS: `bpf_map_update_elem` failed: Argument list too long (os error 7)");
    }
}
