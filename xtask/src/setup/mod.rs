//! `cargo xtask setup`: look first, install only what is lacking, say what was done.
//!
//! Every check looks at the thing itself (a compiler's files, a linker that starts, a program on the path), so
//! that an installation that was interrupted or taken away is noticed and done again.

use anyhow::Result;
use clap::ValueEnum;

mod ebpf;
pub mod packages;

use packages::Tool;

/// What one prepares for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Group {
    /// Compiler and linker of the eBPF programs
    Build,
    /// What the tests use besides: real peers and network tools
    Test,
    /// Virtual machines with other kernels
    Vm,
    /// All of these
    All,
}

/// The client of etcd makes its messages of their description.
const BUILD_TOOLS: &[Tool] = &[Tool { program: "protoc", package: "protobuf-compiler" }];

const TEST_TOOLS: &[Tool] = &[
    Tool { program: "ip", package: "iproute2" },
    Tool { program: "ethtool", package: "ethtool" },
    Tool { program: "ping", package: "iputils-ping" },
    Tool { program: "curl", package: "curl" },
    Tool { program: "nginx", package: "nginx-light" },
    Tool { program: "mariadbd", package: "mariadb-server" },
    Tool { program: "redis-server", package: "redis-server" },
    Tool { program: "nft", package: "nftables" },
    Tool { program: "dnsmasq", package: "dnsmasq-base" },
    Tool { program: "/usr/lib/python3/dist-packages/grpc/__init__.py", package: "python3-grpcio" },
    Tool { program: "iperf3", package: "iperf3" },
    Tool { program: "keepalived", package: "keepalived" },
    Tool { program: "arping", package: "iputils-arping" },
    Tool { program: "faketime", package: "faketime" },
    Tool { program: "bird", package: "bird2" },
    Tool { program: "etcd", package: "etcd-server" },
    Tool { program: "etcdctl", package: "etcd-client" },
    Tool { program: "tmux", package: "tmux" },
    Tool { program: "prometheus", package: "prometheus" },
    Tool { program: "chromium-headless-shell", package: "chromium-headless-shell" },
    Tool { program: "haproxy", package: "haproxy" },
    Tool { program: "ipvsadm", package: "ipvsadm" },
    // `cargo xtask scenario`
    Tool { program: "knotd", package: "knot" },
    Tool { program: "wrk", package: "wrk" },
    Tool { program: "certutil", package: "libnss3-tools" },
    Tool { program: "openssl", package: "openssl" },
    Tool { program: "pkill", package: "procps" },
    Tool { program: "prometheus-nginx-exporter", package: "prometheus-nginx-exporter" },
    Tool { program: "prometheus-mysqld-exporter", package: "prometheus-mysqld-exporter" },
    Tool { program: "/usr/bin/python3", package: "python3" },
    Tool { program: "/usr/lib/python3/dist-packages/pymysql/__init__.py", package: "python3-pymysql" },
];

const VM_TOOLS: &[Tool] = &[
    Tool { program: "qemu-system-x86_64", package: "qemu-system-x86" },
    Tool { program: "depmod", package: "kmod" },
    Tool { program: "xz", package: "xz-utils" },
    Tool { program: "zstd", package: "zstd" },
];

pub fn run(groups: &[Group]) -> Result<()> {
    let wanted = |group| groups.contains(&group) || groups.contains(&Group::All);
    if wanted(Group::Build) {
        ebpf::ensure()?;
    }
    let mut tools = Vec::new();
    if wanted(Group::Build) {
        tools.extend_from_slice(BUILD_TOOLS);
    }
    if wanted(Group::Test) {
        tools.extend_from_slice(TEST_TOOLS);
    }
    if wanted(Group::Vm) {
        tools.extend_from_slice(VM_TOOLS);
    }
    packages::ensure(&tools)
}

/// One line of progress. Not on the standard output: that belongs to what the verb was asked for.
fn say(line: &str) {
    eprintln!("setup: {line}");
}
