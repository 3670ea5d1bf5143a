//! What the server asks of the daemon: one message per request, with a way back.

use super::observe::{AskFlows, AskTrace, FlowsView, TraceLine};
use super::{
    api::*, bgp::BgpView, changes::ChangesView, firewall::FirewallCommand, fleet::FleetCommand,
    gradual::GradualCommand, guard::Guarded, pair::PairCommand, watch::Watcher,
};
use crate::model::{BackendName, ServiceName};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Answer to a command.
pub type Answer<T> = Result<T, CommandError>;
/// The way back.
pub type Reply<T> = oneshot::Sender<Answer<T>>;

/// Why a command was not carried out. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The request names something that does not exist, e.g. "no service 'wwww'; there are: www, dns".
    #[error("{0}")]
    NotFound(String),
    /// The request or the configuration is wrong.
    #[error("{0}")]
    Invalid(String),
    /// It contradicts the present state, e.g. the backend exists already.
    #[error("{0}")]
    Conflict(String),
    /// It could not be carried out.
    #[error("{0}")]
    Failed(String),
    /// There is no room for it now.
    #[error("{0}")]
    Busy(String),
    /// It was made for another revision of the runtime state than the present one.
    #[error("{0}")]
    Moved(String),
}

/// What is not usual about the packet of `explain`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExplainPacket {
    /// TCP flags, as in the header.
    pub flags: Option<u8>,
    /// Bytes of the IP packet.
    pub length: Option<u16>,
}

/// One request. The asker may have gone by the time it is answered: a reply that cannot be delivered is
/// no error, and a change whose asker has gone is still carried out.
#[derive(Debug)]
pub enum Command {
    Status(Reply<StatusView>),
    Services(Reply<Vec<ServiceView>>),
    Drops(Reply<Vec<DropView>>),
    Config(Reply<ConfigView>),
    Bgp(Reply<BgpView>),
    BackendAdd {
        service: ServiceName,
        name: BackendName,
        address: IpAddr,
        port: Option<u16>,
        weight: Option<u16>,
        backup: bool,
        /// Who asks, e.g. "uid 0 (root)".
        by: String,
        reply: Reply<ChangeView>,
    },
    BackendRemove {
        service: ServiceName,
        name: BackendName,
        /// Who asks, e.g. "uid 0 (root)".
        by: String,
        reply: Reply<ChangeView>,
    },
    BackendAdmin {
        service: ServiceName,
        name: BackendName,
        admin: crate::model::Admin,
        /// Of a drain: when what is left is ended.
        end_after: Option<Duration>,
        /// Who asks, e.g. "uid 0 (root)".
        by: String,
        reply: Reply<ChangeView>,
    },
    BackendWeight {
        service: ServiceName,
        name: BackendName,
        weight: u16,
        /// How long it takes to get there.
        over: Option<Duration>,
        /// Who asks, e.g. "uid 0 (root)".
        by: String,
        reply: Reply<ChangeView>,
    },
    Reload {
        plan: bool,
        /// Who asks, e.g. "uid 0 (root)".
        by: String,
        reply: Reply<ChangeView>,
    },
    Reset {
        /// Only the changes of this service.
        service: Option<ServiceName>,
        /// Only those of this backend of the service.
        backend: Option<BackendName>,
        /// Who asks, e.g. "uid 0 (root)".
        by: String,
        reply: Reply<ChangeView>,
    },
    /// Into the configuration's files; only shown with `print`.
    Save {
        print: bool,
        /// Who asks, e.g. "uid 0 (root)".
        by: String,
        reply: Reply<super::save::SaveView>,
    },
    Explain {
        protocol: crate::model::Protocol,
        source: SocketAddr,
        destination: SocketAddr,
        packet: ExplainPacket,
        reply: Reply<ExplainView>,
    },
    /// About lists and limits.
    Firewall(FirewallCommand),
    /// About drains, and how a change is asked for.
    Gradual(GradualCommand),
    /// About the fleet.
    Fleet(FleetCommand),
    /// About the pair.
    Pair(PairCommand),
    /// Answered by the events that are to come; dropping it ends the watch.
    Watch {
        /// The id of the last event the asker has seen.
        after: Option<String>,
        reply: Reply<Watcher>,
    },
    /// What was changed at run time.
    Changes(Reply<ChangesView>),
    /// Another command, if the runtime state has the revision it was made for.
    Guarded(Box<Guarded>),
    Flows {
        ask: AskFlows,
        reply: Reply<FlowsView>,
    },
    /// Answered by the lines that are to come; dropping their receiver ends the trace.
    Trace {
        ask: AskTrace,
        reply: Reply<mpsc::Receiver<TraceLine>>,
    },
    /// Removes the programs, links and maps from the kernel and ends the daemon.
    Detach {
        /// Who asks, e.g. "uid 0 (root)".
        by: String,
        reply: Reply<ChangeView>,
    },
}

/// How the server reaches the daemon's loop.
pub type Commands = mpsc::Sender<Command>;
