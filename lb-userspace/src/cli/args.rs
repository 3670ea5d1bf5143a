//! The command line of `lbctl`. The doc comments are its help.

use super::bgp::BGP_EXAMPLES;
use super::changes::{RESET_EXAMPLES, ResetOptions};
use super::connect::Remote;
use super::firewall::{LIMIT_EXAMPLES, LIST_EXAMPLES, LimitCommand, ListCommand};
use super::fleet::{FLEET_EXAMPLES, FleetCommand};
use super::gradual::{Careful, DrainOptions, parse_time};
use super::import::{EXAMPLES as IMPORT_EXAMPLES, ImportOptions};
use super::pair::{PAIR_EXAMPLES, PairCommand};
use super::parse::{self, Target};
use super::save::{EXAMPLES as SAVE_EXAMPLES, SaveOptions};
use super::top::{TOP_EXAMPLES, TopOptions};
use super::watch::{WATCH_EXAMPLES, WatchOptions};
use crate::control::DEFAULT_SOCKET;
use crate::model::{BackendName, Protocol, ServiceName};
use clap::{Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Where lbd and the decapsulation program pin their maps unless told otherwise.
pub const DEFAULT_PIN_DIR: &str = "/sys/fs/bpf/lbd";
/// Environment variable that names the control socket.
pub const SOCKET_VARIABLE: &str = "LBCTL_SOCKET";
/// UDP port of Generic UDP Encapsulation, as registered with IANA.
pub const DEFAULT_GUE_PORT: u16 = 6080;

/// Heading of the options that every command has: without one of its own they would be mixed with those of the command.
pub(super) const EVERYWHERE: &str = "Options of every command";

/// Asks and instructs the load balancer lbd on this host
#[derive(Debug, Parser)]
#[command(
    name = "lbctl",
    version,
    arg_required_else_help = true,
    subcommand_required = true,
    after_help = "\
Examples:
  lbctl status                                    is it working, and with which configuration?
  lbctl service list                              every service with its counters
  lbctl service show www                          its backends: health, weight, counters
  lbctl backend add www web4 10.0.0.14            one more backend
  lbctl backend drain www web4                    no new connections, present ones go on
  lbctl watch                                     what happens, as it happens
  lbctl reset www web4                            undoes what lbctl has changed of it
  lbctl reload                                    services are added in the file: edit, reload
  lbctl explain tcp 198.51.100.7:4000 192.0.2.10:443
  lbctl -o json service list | jq '.[].name'      for scripts

Exit status: 0 done; 1 not carried out; 2 the command line, the request or the configuration is
wrong.
Changes made here are kept across restarts of lbd until `lbctl reset`."
)]
pub struct Cli {
    /// Control socket of the daemon (run_dir/lbd.sock of its configuration) [env: LBCTL_SOCKET]
    /// [default: /run/lbd/lbd.sock]
    #[arg(long, global = true, value_name = "PATH", help_heading = EVERYWHERE)]
    pub socket: Option<PathBuf>,
    #[command(flatten)]
    pub remote: Remote,
    /// Form of the answer; the field names of json are stable
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORM", help_heading = EVERYWHERE)]
    pub output: Output,
    /// Do nothing unless the runtime state has this revision, as `lbctl changes` and every change show it: for scripts
    /// that must not overwrite what somebody else changed meanwhile
    #[arg(long, global = true, value_name = "N", value_parser = parse::whole_number::<u64>, help_heading = EVERYWHERE)]
    pub if_revision: Option<u64>,
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// The socket named by `--socket`, else by the environment, else the usual one. An empty variable
    /// counts as none.
    pub fn socket(&self) -> PathBuf {
        let environment = || std::env::var_os(SOCKET_VARIABLE).filter(|path| !path.is_empty());
        match &self.socket {
            Some(path) => path.clone(),
            None => environment().map_or_else(|| DEFAULT_SOCKET.into(), PathBuf::from),
        }
    }
}

/// How answers are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Output {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// The daemon, its interfaces and its configuration
    #[command(after_help = STATUS_EXAMPLES)]
    Status,
    /// Services and their counters
    #[command(after_help = SERVICE_EXAMPLES)]
    Service {
        #[command(subcommand)]
        command: ServiceCommand,
    },
    /// Services, backends, the pair and drops, kept up to date in the terminal
    #[command(after_help = TOP_EXAMPLES)]
    Top(TopOptions),
    /// Adds, removes, drains and weighs backends
    #[command(after_help = BACKEND_EXAMPLES)]
    Backend {
        #[command(subcommand)]
        command: BackendCommand,
    },
    /// What would be done with a packet, and why; nothing is sent or counted
    #[command(after_help = "\
Examples:
  lbctl explain tcp 198.51.100.7:4000 192.0.2.10:443
  lbctl explain udp '[2001:db8:1::7]:5353' '[2001:db8::10]:53'")]
    Explain {
        /// tcp, udp or quic
        #[arg(value_name = "PROTO", value_parser = parse::protocol)]
        protocol: Protocol,
        /// Where the packet comes from: 198.51.100.7:4000 or [2001:db8:1::7]:4000
        #[arg(value_name = "SOURCE:PORT", value_parser = parse::endpoint)]
        source: SocketAddr,
        /// Where it wants to go: 192.0.2.10:443 or [2001:db8::10]:443
        #[arg(value_name = "DEST:PORT", value_parser = parse::endpoint)]
        destination: SocketAddr,
        /// TCP flags of the packet: syn, ack, fin, rst, psh, urg, none, several with commas between. Default: ack for a
        /// flow that is recorded, else syn
        #[arg(long, value_name = "FLAGS", value_parser = parse::flags)]
        flags: Option<String>,
        /// Bytes of its IP packet; default: the headers alone
        #[arg(long, value_name = "N")]
        length: Option<u16>,
    },
    /// Flows that are tracked: those of slots that changed hands, of schedulers that track, of NAT
    #[command(after_help = "\
Examples:
  lbctl flows --service www --backend web4     who still holds a backend that is drained?
  lbctl flows --limit 20

Slots that have not changed hands are plain: their flows need no entry and are not listed.")]
    Flows {
        /// Only of this service
        #[arg(long, value_name = "NAME", value_parser = parse::service)]
        service: Option<ServiceName>,
        /// Only to this backend
        #[arg(long, value_name = "NAME", value_parser = parse::backend)]
        backend: Option<BackendName>,
        /// Flows listed at most [default: 1000]; all are counted
        #[arg(long, value_name = "N", value_parser = parse::whole_number::<usize>)]
        limit: Option<usize>,
    },
    /// Packets for virtual addresses and what becomes of them, as they come; ends with Ctrl-C
    #[command(after_help = "\
Examples:
  lbctl trace --verdict drop                       what is refused, and why?
  lbctl trace --service www --source 198.51.100.0/24 --count 20
  lbctl trace --sample 1000 -o json                one packet in a thousand, a line of JSON each

While somebody traces another program is attached, which costs more per packet; 5,000 records a
second and CPU at most are written, what is lost is said.")]
    Trace(TraceOptions),
    /// What happens, as it happens: health, states and weights of backends, the pair, reloads, runtime changes
    #[command(after_help = WATCH_EXAMPLES)]
    Watch(WatchOptions),
    /// Packets dropped, by reason
    #[command(after_help = DROPS_EXAMPLES)]
    Drops {
        /// Also the reasons that have not occurred
        #[arg(long)]
        all: bool,
    },
    /// Sources whose packets to virtual addresses are dropped
    #[command(after_help = LIST_EXAMPLES)]
    Deny {
        #[command(subcommand)]
        command: ListCommand,
    },
    /// Exceptions inside denied prefixes
    #[command(after_help = LIST_EXAMPLES)]
    Allow {
        #[command(subcommand)]
        command: ListCommand,
    },
    /// Limits of services and of their sources
    #[command(after_help = LIMIT_EXAMPLES)]
    Limit {
        #[command(subcommand)]
        command: LimitCommand,
    },
    /// Virtual addresses announced to a routing daemon on this host, and why others are withheld
    #[command(after_help = BGP_EXAMPLES)]
    Bgp,
    /// Configuration from etcd: which generation is in force, do all nodes agree, who has the word; and its document
    #[command(after_help = FLEET_EXAMPLES)]
    Fleet {
        #[command(subcommand)]
        command: Option<FleetCommand>,
    },
    /// The pair: every VRRP instance, its state and why, the master, what is missing
    #[command(after_help = PAIR_EXAMPLES)]
    Pair {
        #[command(subcommand)]
        command: Option<PairCommand>,
    },
    /// Reads the configuration file again; a wrong one is refused and the present one stays
    #[command(after_help = RELOAD_EXAMPLES)]
    Reload {
        #[command(flatten)]
        careful: Careful,
    },
    /// The configuration in force
    #[command(after_help = CONFIG_EXAMPLES)]
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Changes made at run time that are in force over the configuration file: what, by whom and when
    #[command(after_help = CHANGES_EXAMPLES)]
    Changes,
    /// Writes the changes made by lbctl into the configuration's files
    #[command(after_help = SAVE_EXAMPLES)]
    Save(SaveOptions),
    /// Drops changes made by lbctl: the configuration file alone counts again
    #[command(after_help = RESET_EXAMPLES)]
    Reset(ResetOptions),
    /// Removes the load balancer from the kernel and ends the daemon: forwarding stops
    #[command(after_help = DETACH_EXAMPLES)]
    Detach {
        /// Yes, forwarding shall stop
        #[arg(long)]
        yes: bool,
    },
    /// The decapsulation program of a backend; works without lbd
    #[command(after_help = "\
Run this on a backend of a service with forward = \"ipip\" or \"gue\". The virtual address must be
on the backend's loopback interface as well.

Examples:
  lbctl decap attach eth0 --from 10.0.0.2 10.0.0.3
  lbctl decap attach eth0 --from 10.0.0.0/29 2001:db8:0:1::/64 --gue-port 6080
  lbctl decap show
  lbctl decap detach eth0")]
    Decap {
        #[command(subcommand)]
        command: DecapCommand,
    },
    /// Makes a configuration of lbd from one of keepalived, HAProxy or IPVS; works without lbd
    #[command(after_help = IMPORT_EXAMPLES)]
    Import(ImportOptions),
    /// Prints a completion script for a shell
    #[command(after_help = "\
Examples:
  lbctl completions bash > /usr/share/bash-completion/completions/lbctl
  lbctl completions zsh > /usr/share/zsh/vendor-completions/_lbctl
  lbctl completions fish > /usr/share/fish/vendor_completions.d/lbctl.fish")]
    Completions {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

/// What `trace` shows.
#[derive(Debug, clap::Args)]
pub struct TraceOptions {
    /// Only packets of this service
    #[arg(long, value_name = "NAME", value_parser = parse::service)]
    pub service: Option<ServiceName>,
    /// Only packets from these addresses
    #[arg(long, value_name = "PREFIX", value_parser = parse::prefix)]
    pub source: Option<IpNet>,
    /// Only packets to this address and port
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = parse::endpoint)]
    pub dest: Option<SocketAddr>,
    /// Only packets with this verdict
    #[arg(long, value_enum, value_name = "VERDICT")]
    pub verdict: Option<Verdict>,
    /// One packet in so many, at random [default: every packet]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub sample: Option<u32>,
    /// Ends after so many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Verdict {
    Drop,
    Forward,
    /// Left to the kernel
    Pass,
}

impl Verdict {
    /// As in the API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Forward => "forward",
            Self::Pass => "pass",
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// Every service: address, port, protocol, forwarding, scheduler, counters, backends up and in all
    List,
    /// One service and its backends
    Show {
        /// Name of the service, as in `lbctl service list`
        #[arg(value_name = "NAME", value_parser = parse::service)]
        name: ServiceName,
    },
}

const STATUS_EXAMPLES: &str = "\
Examples:
  lbctl status
  lbctl -o json status | jq .revision";

const SERVICE_EXAMPLES: &str = "\
Examples:
  lbctl service list             every service with its counters
  lbctl service show www         its backends: health, weight, counters

A service is added, changed and removed in the configuration file of lbd; then
  lbctl reload --plan            says what would change
  lbctl reload                   changes it
Backends can be changed at run time as well: `lbctl backend --help`.";

const DROPS_EXAMPLES: &str = "\
Examples:
  lbctl drops                    since the tables were made
  lbctl drops --all              also the reasons that have not occurred";

const RELOAD_EXAMPLES: &str = "\
Examples:
  lbctl reload --plan            after an edit of the file: what would change?
  lbctl reload

Changes made by lbctl stay in force over those of the file; `lbctl reset` drops them.";

const CONFIG_EXAMPLES: &str = "\
Examples:
  lbctl config show
  lbctl config show | grep -v '# default'";

const CHANGES_EXAMPLES: &str = "\
Examples:
  lbctl changes
  lbctl -o json changes | jq .revision      for --if-revision

`lbctl reset` undoes changes, `lbctl save` writes them into the configuration's files.";

const DETACH_EXAMPLES: &str = "\
Examples:
  lbctl detach --yes             the other way round: start lbd again
  lbd --detach                   the same while no daemon runs";

const BACKEND_EXAMPLES: &str = "\
Examples:
  lbctl backend add www web4 10.0.0.14                 on the service's own port
  lbctl backend add www web4 10.0.0.14 --weight 50     with half the weight of the usual 100
  lbctl backend add www web6 2001:db8::14
  lbctl backend add www web7 '[2001:db8::15]:8443'     on another port: with nat and snat
  lbctl backend add www sorry 10.0.0.99 --backup       for when the others are down
  lbctl backend weight www web4 25
  lbctl backend drain www web4      before a removal: present connections go on, no new ones come
  lbctl backend drain www web4 --wait --timeout 10m     and says how many are left, until none is
  lbctl backend drain www web4 --wait --deadline 5m     and ends those that are left after 5 minutes
  lbctl backend weight www web4 50 --over 10m           slot by slot
  lbctl backend disable www web4 --plan                 what would move, what would end
  lbctl backend remove www web4     ends the connections that are left
  lbctl backend disable www web1    no packets at all
  lbctl backend enable www web1

Changes are kept across restarts of lbd until `lbctl reset`.";

#[derive(Debug, Subcommand)]
pub enum BackendCommand {
    /// Adds a backend to a service
    #[command(after_help = BACKEND_EXAMPLES)]
    Add {
        /// Name of the service, as in `lbctl service list`
        #[arg(value_name = "SERVICE", value_parser = parse::service)]
        service: ServiceName,
        /// Name of the new backend, unique in the service
        #[arg(value_name = "NAME", value_parser = parse::backend)]
        name: BackendName,
        /// 10.0.0.14, 10.0.0.14:8443, 2001:db8::14 or [2001:db8::14]:8443
        #[arg(value_name = "ADDRESS[:PORT]", value_parser = parse::target)]
        target: Target,
        /// Its share of new connections relative to the other backends, 0 to 65535; 0 takes none
        #[arg(long, value_name = "N", value_parser = parse::weight)]
        weight: Option<u16>,
        /// It stands in: it takes new connections only while fewer of the others are healthy than quorum_up and
        /// quorum_down ask for
        #[arg(long)]
        backup: bool,
        #[command(flatten)]
        careful: Careful,
    },
    /// Removes a backend; connections on it end (drain it first to keep them)
    #[command(after_help = BACKEND_EXAMPLES)]
    Remove {
        /// Name of the service, as in `lbctl service list`
        #[arg(value_name = "SERVICE", value_parser = parse::service)]
        service: ServiceName,
        /// Name of the backend, as in `lbctl service show`
        #[arg(value_name = "NAME", value_parser = parse::backend)]
        name: BackendName,
        #[command(flatten)]
        careful: Careful,
    },
    /// Gives a backend no new connections; present ones go on
    #[command(after_help = BACKEND_EXAMPLES)]
    Drain(DrainOptions),
    /// Ends a drain, a disable or an ejection by passive health checks
    #[command(after_help = BACKEND_EXAMPLES)]
    Enable {
        /// Name of the service, as in `lbctl service list`
        #[arg(value_name = "SERVICE", value_parser = parse::service)]
        service: ServiceName,
        /// Name of the backend, as in `lbctl service show`
        #[arg(value_name = "NAME", value_parser = parse::backend)]
        name: BackendName,
        #[command(flatten)]
        careful: Careful,
    },
    /// Gives a backend no packets at all; connections on it end
    #[command(after_help = BACKEND_EXAMPLES)]
    Disable {
        /// Name of the service, as in `lbctl service list`
        #[arg(value_name = "SERVICE", value_parser = parse::service)]
        service: ServiceName,
        /// Name of the backend, as in `lbctl service show`
        #[arg(value_name = "NAME", value_parser = parse::backend)]
        name: BackendName,
        #[command(flatten)]
        careful: Careful,
    },
    /// Sets a backend's share of new connections
    #[command(after_help = BACKEND_EXAMPLES)]
    Weight {
        /// Name of the service, as in `lbctl service list`
        #[arg(value_name = "SERVICE", value_parser = parse::service)]
        service: ServiceName,
        /// Name of the backend, as in `lbctl service show`
        #[arg(value_name = "NAME", value_parser = parse::backend)]
        name: BackendName,
        /// Relative to the other backends of the service, 0 to 65535; 0 takes none
        #[arg(value_name = "N", value_parser = parse::weight, allow_negative_numbers = true)]
        weight: u16,
        /// Its share gets there slot by slot in this time, like 10m; at once without it
        #[arg(long, value_name = "TIME", value_parser = parse_time)]
        over: Option<Duration>,
        #[command(flatten)]
        careful: Careful,
    },
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Every setting with its value and where it comes from: default, file or runtime
    Show,
}

#[derive(Debug, Subcommand)]
pub enum DecapCommand {
    /// Attaches the program to an interface, or changes whom it takes packets from
    Attach {
        /// Network interface on which the balancer's packets arrive
        #[arg(value_name = "IFACE", value_parser = parse::interface)]
        interface: String,
        /// Addresses or prefixes of the load balancers; tunnelled packets of anybody else go to the kernel
        #[arg(long, value_name = "PREFIX", required = true, num_args = 1.., value_delimiter = ',', value_parser = parse::prefix)]
        from: Vec<IpNet>,
        /// UDP port of GUE, as in the balancer's configuration
        #[arg(long, value_name = "N", default_value_t = DEFAULT_GUE_PORT, value_parser = parse::port)]
        gue_port: u16,
        #[command(flatten)]
        pins: PinDir,
    },
    /// Removes the program from an interface
    Detach {
        /// Network interface on which the balancer's packets arrive
        #[arg(value_name = "IFACE", value_parser = parse::interface)]
        interface: String,
        #[command(flatten)]
        pins: PinDir,
    },
    /// The interfaces that have the program
    Show {
        #[command(flatten)]
        pins: PinDir,
    },
}

#[derive(Debug, clap::Args)]
pub struct PinDir {
    /// Directory on bpffs for the program's pins
    #[arg(long, value_name = "PATH", default_value = DEFAULT_PIN_DIR)]
    pub pin_dir: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    /// The command, and all below it with the names that lead there.
    fn all(
        command: &clap::Command,
        path: &str,
        inherited: bool,
        found: &mut Vec<(String, bool, clap::Command)>,
    ) {
        let path = format!("{path} {}", command.get_name());
        let examples = command.get_after_help().is_some_and(|text| text.to_string().contains("Examples:"));
        found.push((path.clone(), inherited || examples, command.clone()));
        // The help of `lbctl` says nothing of what one command takes.
        let inherited = command.get_name() != "lbctl" && (inherited || examples);
        for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
            all(below, &path, inherited, found);
        }
    }

    #[test]
    fn the_help_of_every_command_has_examples_and_fits_its_width() {
        let mut found = Vec::new();
        all(&Cli::command(), "", false, &mut found);
        assert!(found.len() > 30, "{}", found.len());
        for (path, examples, command) in found {
            assert!(examples, "neither{path} nor the command above has examples");
            let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            for line in text.lines() {
                // What clap's help is wrapped at: a longer line leaves a few words on one of their own.
                assert!(line.chars().count() <= 100, "{path}: {line}");
            }
        }
    }

    #[test]
    fn options_of_every_command_are_apart_from_its_own() {
        let command = Cli::command();
        for argument in command.get_arguments().filter(|argument| argument.is_global_set()) {
            assert_eq!(argument.get_help_heading(), Some(EVERYWHERE), "{}", argument.get_id());
        }
    }
}
