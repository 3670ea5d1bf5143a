//! What this process is allowed to do.

use std::{fmt, io};

/// A capability that the daemon has a use for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Capability {
    Bpf,
    Perfmon,
    NetAdmin,
    NetRaw,
    SysAdmin,
    SysNice,
}

impl Capability {
    pub const ALL: [Self; 6] =
        [Self::Bpf, Self::Perfmon, Self::NetAdmin, Self::NetRaw, Self::SysAdmin, Self::SysNice];

    /// Its bit, from `linux/capability.h`.
    fn bit(self) -> u32 {
        match self {
            Self::NetAdmin => 12,
            Self::NetRaw => 13,
            Self::SysAdmin => 21,
            Self::SysNice => 23,
            Self::Perfmon => 38,
            Self::Bpf => 39,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Bpf => "CAP_BPF",
            Self::Perfmon => "CAP_PERFMON",
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::NetRaw => "CAP_NET_RAW",
            Self::SysAdmin => "CAP_SYS_ADMIN",
            Self::SysNice => "CAP_SYS_NICE",
        }
    }

    fn purpose(self) -> &'static str {
        match self {
            Self::Bpf => "create maps and load programs",
            Self::Perfmon => "load programs that compute with packet pointers",
            Self::NetAdmin => "attach XDP to interfaces and resolve neighbours",
            Self::NetRaw => "send and receive raw packets",
            Self::SysAdmin => "mount the BPF file system",
            Self::SysNice => "schedule its timers in real time",
        }
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The effective capabilities of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    bits: u64,
}

/// Why the capabilities are not known.
#[derive(Debug, thiserror::Error)]
pub enum CapsError {
    #[error("cannot read /proc/self/status: {0}; is /proc mounted?")]
    Read(#[from] io::Error),
    #[error("/proc/self/status has no line 'CapEff:' with 16 hexadecimal digits")]
    Format,
}

/// Capabilities that the dataplane needs and this process lacks. The text is for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingCapabilities(pub Vec<Capability>);

impl Capabilities {
    /// Those of this process.
    pub fn current() -> Result<Self, CapsError> {
        Self::parse(&std::fs::read_to_string("/proc/self/status")?)
    }

    /// From the text of a `/proc/PID/status`.
    pub fn parse(status: &str) -> Result<Self, CapsError> {
        let digits = status.lines().find_map(|line| line.strip_prefix("CapEff:")).map(str::trim);
        let digits = digits.filter(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit()));
        let bits = digits.and_then(|text| u64::from_str_radix(text, 16).ok());
        bits.map(|bits| Self { bits }).ok_or(CapsError::Format)
    }

    /// True if the kernel lets it pass: CAP_SYS_ADMIN stands in for CAP_BPF and CAP_PERFMON.
    pub fn has(self, capability: Capability) -> bool {
        let set = |capability: Capability| self.bits >> capability.bit() & 1 == 1;
        let instead = matches!(capability, Capability::Bpf | Capability::Perfmon);
        set(capability) || instead && set(Capability::SysAdmin)
    }

    /// What the dataplane lacks, where a BPF file system is mounted already.
    pub fn missing_for_dataplane(self) -> Result<(), MissingCapabilities> {
        let needed = [Capability::Bpf, Capability::Perfmon, Capability::NetAdmin, Capability::NetRaw];
        let missing: Vec<_> = needed.into_iter().filter(|needed| !self.has(*needed)).collect();
        if missing.is_empty() { Ok(()) } else { Err(MissingCapabilities(missing)) }
    }
}

/// [`Capabilities::missing_for_dataplane`] of this process; `None` if all is well.
pub fn missing_for_dataplane() -> Result<Option<MissingCapabilities>, CapsError> {
    Ok(Capabilities::current()?.missing_for_dataplane().err())
}

impl fmt::Display for MissingCapabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this process lacks ")?;
        for (i, capability) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { ", " };
            write!(f, "{separator}{capability} (to {})", capability.purpose())?;
        }
        let list = |separator: &str, lower: bool| {
            let names = Capability::ALL[..4].iter().map(|c| c.to_string());
            let names: Vec<_> = names.map(|n| if lower { n.to_lowercase() } else { n }).collect();
            names.join(separator)
        };
        write!(
            f,
            "; run it as root, or under systemd with 'AmbientCapabilities={}', or grant them to the \
             program: setcap {}=ep /path/to/lbd",
            list(" ", false),
            list(",", true)
        )
    }
}

impl std::error::Error for MissingCapabilities {}

/// To be called before the first thread is started: commands that the daemon runs (checks, hooks, scripts) have none of
/// its capabilities, which a unit's `AmbientCapabilities` would else hand down (capabilities(7)). Its own are not touched.
pub fn keep_to_itself() -> std::io::Result<()> {
    // SAFETY: prctl(2) with these arguments takes no pointers.
    match unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn with(capabilities: &[Capability]) -> Capabilities {
        Capabilities { bits: capabilities.iter().map(|c| 1 << c.bit()).sum() }
    }

    #[test]
    fn root_and_nobody() {
        let root = Capabilities::parse("Name:\tlbd\nCapPrm:\t0\nCapEff:\t000001ffffffffff\n").unwrap();
        assert!(Capability::ALL.into_iter().all(|c| root.has(c)));
        assert_eq!(root.missing_for_dataplane(), Ok(()));
        let nobody = Capabilities::parse("CapEff:\t0000000000000000\n").unwrap();
        assert!(!Capability::ALL.into_iter().any(|c| nobody.has(c)));
        assert_eq!(
            nobody.missing_for_dataplane().unwrap_err().to_string(),
            "this process lacks CAP_BPF (to create maps and load programs), CAP_PERFMON (to load programs \
             that compute with packet pointers), CAP_NET_ADMIN (to attach XDP to interfaces and resolve \
             neighbours), CAP_NET_RAW (to send and receive raw packets); run it as root, or under systemd \
             with 'AmbientCapabilities=CAP_BPF CAP_PERFMON CAP_NET_ADMIN CAP_NET_RAW', or grant them to \
             the program: setcap cap_bpf,cap_perfmon,cap_net_admin,cap_net_raw=ep /path/to/lbd"
        );
    }

    #[test]
    fn sys_admin_stands_in_for_bpf_but_not_for_the_network() {
        use Capability::*;
        assert_eq!(with(&[Bpf, Perfmon, NetAdmin, NetRaw]).missing_for_dataplane(), Ok(()));
        assert_eq!(with(&[SysAdmin, NetAdmin, NetRaw]).missing_for_dataplane(), Ok(()));
        let missing = |capabilities: &[Capability]| with(capabilities).missing_for_dataplane().unwrap_err().0;
        assert_eq!(missing(&[SysAdmin]), [NetAdmin, NetRaw]);
        assert_eq!(missing(&[Bpf, NetAdmin, NetRaw]), [Perfmon]);
        assert!(!with(&[Bpf, Perfmon]).has(SysAdmin));
    }

    #[test]
    fn a_strange_status_is_an_error() {
        for text in ["", "CapEff:\n", "CapEff:\t+1\n", "CapEff:\tx\n", "CapEff:\t11111111111111111\n"] {
            assert!(matches!(Capabilities::parse(text), Err(CapsError::Format)), "{text:?}");
        }
    }

    #[test]
    fn this_process_has_a_status() {
        Capabilities::current().unwrap();
    }

    proptest! {
        #[test]
        fn every_mask_is_read_as_written(bits: u64) {
            let text = format!("CapInh:\t0\nCapEff:\t{bits:016x}\nCapBnd:\t0\n");
            prop_assert_eq!(Capabilities::parse(&text).unwrap(), Capabilities { bits });
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = Capabilities::parse(&text);
            let _ = Capabilities::parse(&format!("CapEff:{text}"));
        }
    }
}
