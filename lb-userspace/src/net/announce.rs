//! Routes of the kernel that tell a routing daemon which addresses this node serves.
//!
//! One blackhole route to each address, in a table that nobody looks packets up in. A routing daemon reads the table
//! (BIRD: `protocol kernel` with `learn`) and hears of every change at once; it needs no connection to lbd, and what it
//! does with the routes is its own configuration's. Routes of the table with this protocol number are taken to be
//! an earlier daemon's: they stay as long as they are wanted, and go when they are not.

use futures_util::TryStreamExt as _;
use netlink_packet_route::{
    AddressFamily,
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType},
};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};
use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};
use tokio::{sync::watch, task::JoinHandle};

/// Who made the routes (rtnetlink(7), `rtm_protocol`): a number that nobody else is known to use.
pub const ROUTE_PROTOCOL: u8 = 197;
/// Every route is asked for again, lest somebody removed it.
const REFRESH: Duration = Duration::from_secs(5);

/// What stands in the table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Announced {
    pub routes: BTreeSet<IpAddr>,
    /// Why the table is not as it should be.
    pub error: Option<String>,
}

/// Keeps the routes of one table.
#[derive(Debug)]
pub struct Announcer {
    /// None before the first word.
    wanted: watch::Sender<Option<BTreeSet<IpAddr>>>,
    announced: watch::Receiver<Announced>,
    task: JoinHandle<()>,
}

impl Announcer {
    /// Starts on the caller's runtime, in the network namespace of the calling thread. What an earlier daemon left in the
    /// table stays until the first word of what is wanted.
    pub fn spawn(table: u32) -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let connection = tokio::spawn(connection);
        let (wanted, orders) = watch::channel(None);
        let (tell, announced) = watch::channel(Announced::default());
        let keeper = Keeper { table, handle, announced: tell };
        let task = tokio::spawn(async move {
            keeper.run(orders).await;
            connection.abort();
        });
        Ok(Self { wanted, announced, task })
    }

    pub fn set(&self, wanted: BTreeSet<IpAddr>) {
        self.wanted.send_if_modified(|now| {
            let differs = now.as_ref() != Some(&wanted);
            *now = Some(wanted);
            differs
        });
    }

    pub fn announced(&self) -> Announced {
        self.announced.borrow().clone()
    }

    /// Ends; the routes stay as they are wanted last, which may be nowhere.
    pub async fn stop(self) {
        drop(self.wanted);
        // A panic was reported by the hook.
        let _ = self.task.await;
    }
}

struct Keeper {
    table: u32,
    handle: Handle,
    announced: watch::Sender<Announced>,
}

impl Keeper {
    async fn run(self, mut orders: watch::Receiver<Option<BTreeSet<IpAddr>>>) {
        let mut there = None;
        loop {
            let ended = tokio::select! {
                changed = orders.changed() => changed.is_err(),
                () = tokio::time::sleep(REFRESH), if there.is_some() => false,
            };
            let wanted = orders.borrow_and_update().clone();
            let Some(wanted) = wanted else {
                if ended {
                    return;
                }
                continue;
            };
            let result = self.keep(&mut there, &wanted).await;
            let error = result.err().map(|error| error.to_string());
            let routes = there.clone().unwrap_or_default();
            self.announced.send_if_modified(|now| {
                if now.error != error
                    && let Some(error) = &error
                {
                    tracing::error!(table = self.table, error, "cannot announce every address");
                }
                let new = Announced { routes, error };
                let differs = *now != new;
                *now = new;
                differs
            });
            if ended {
                return;
            }
        }
    }

    /// Makes the table what it should be. `there`: what stands in it as far as is known; nothing known at first.
    async fn keep(
        &self,
        there: &mut Option<BTreeSet<IpAddr>>,
        wanted: &BTreeSet<IpAddr>,
    ) -> Result<(), rtnetlink::Error> {
        let known = match there {
            Some(known) => known,
            None => there.insert(self.read().await?),
        };
        // First those that are no longer served.
        for address in known.difference(wanted).copied().collect::<Vec<_>>() {
            match self.handle.route().del(self.route(address)).execute().await {
                Ok(()) => tracing::info!(%address, table = self.table, "withdrawn"),
                Err(error) if is_missing(&error) => {}
                Err(error) => return Err(error),
            }
            known.remove(&address);
        }
        for address in wanted {
            self.handle.route().add(self.route(*address)).replace().execute().await?;
            if known.insert(*address) {
                tracing::info!(%address, table = self.table, "announced");
            }
        }
        Ok(())
    }

    fn route(&self, address: IpAddr) -> RouteMessage {
        let protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
        match address {
            IpAddr::V4(address) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(address, 32)
                .table_id(self.table)
                .kind(RouteType::BlackHole)
                .protocol(protocol)
                .build(),
            IpAddr::V6(address) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(address, 128)
                .table_id(self.table)
                .kind(RouteType::BlackHole)
                .protocol(protocol)
                .build(),
        }
    }

    /// What an earlier daemon left.
    async fn read(&self) -> Result<BTreeSet<IpAddr>, rtnetlink::Error> {
        let mut found = BTreeSet::new();
        for version in [IpVersion::V4, IpVersion::V6] {
            let mut filter = RouteMessage::default();
            filter.header.address_family = match version {
                IpVersion::V4 => AddressFamily::Inet,
                IpVersion::V6 => AddressFamily::Inet6,
            };
            let mut routes = std::pin::pin!(self.handle.route().get(filter).execute());
            while let Some(route) = routes.try_next().await? {
                found.extend(self.own(&route));
            }
        }
        Ok(found)
    }

    /// The destination, if it is one of these routes.
    fn own(&self, route: &RouteMessage) -> Option<IpAddr> {
        let table = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Table(table) => Some(*table),
            _ => None,
        });
        let table = table.unwrap_or_else(|| route.header.table.into());
        let is_own = table == self.table && route.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL);
        route.attributes.iter().filter(|_| is_own).find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address))
                if route.header.destination_prefix_length == 32 =>
            {
                Some((*address).into())
            }
            RouteAttribute::Destination(RouteAddress::Inet6(address))
                if route.header.destination_prefix_length == 128 =>
            {
                Some((*address).into())
            }
            _ => None,
        })
    }
}

/// Somebody else removed the route, or the table with it.
fn is_missing(error: &rtnetlink::Error) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message)
        if matches!(-message.raw_code(), libc::ESRCH | libc::ENOENT))
}
