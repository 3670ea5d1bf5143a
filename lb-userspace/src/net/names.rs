//! Asks DNS, and asks again when the answers' time is up.

use crate::{
    config::ResolverConfig,
    model::{Found, Query},
};
use hickory_resolver::{
    Resolver, TokioResolver,
    config::{LookupIpStrategy, NameServerConfig, ResolverConfig as Servers},
    net::runtime::TokioRuntimeProvider,
    proto::rr::RData,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{sleep_until, timeout},
};

/// How long an answer may take, all tries together.
const PATIENCE: Duration = Duration::from_secs(10);
/// When to ask again after a failure.
const RETRY: Duration = Duration::from_secs(5);

/// An answer, or why there is none.
#[derive(Debug)]
pub struct NameNews {
    pub query: Query,
    pub result: Result<BTreeSet<Found>, String>,
}

/// Tells the task what is wanted. It ends with this handle.
#[derive(Debug)]
pub struct NameHandle(watch::Sender<(BTreeSet<Query>, ResolverConfig)>);

impl NameHandle {
    /// Asks these from now on. Those that are new at once.
    pub fn set_queries(&self, queries: BTreeSet<Query>, config: &ResolverConfig) {
        self.0.send_if_modified(|wanted| {
            let new = (queries, config.clone());
            let differs = *wanted != new;
            *wanted = new;
            differs
        });
    }
}

/// Starts the task.
pub fn spawn(news: mpsc::Sender<NameNews>) -> NameHandle {
    let (sender, wanted) = watch::channel((BTreeSet::new(), ResolverConfig::default()));
    tokio::spawn(run(wanted, news));
    NameHandle(sender)
}

async fn run(mut wanted: watch::Receiver<(BTreeSet<Query>, ResolverConfig)>, news: mpsc::Sender<NameNews>) {
    let mut due: BTreeMap<Query, Instant> = BTreeMap::new();
    let mut config = ResolverConfig::default();
    let mut asked = JoinSet::new();
    let mut under_way = BTreeSet::new();
    loop {
        let now = Instant::now();
        let ready: Vec<Query> =
            due.iter().filter(|(_, at)| **at <= now).map(|(query, _)| query.clone()).collect();
        for query in ready {
            due.remove(&query);
            if under_way.insert(query.clone()) {
                let config = config.clone();
                asked.spawn(async move {
                    let result = match timeout(PATIENCE, ask(&query, &config)).await {
                        Ok(result) => result,
                        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
                    };
                    (query, result)
                });
            }
        }
        let next = due.values().min().copied().unwrap_or(now + Duration::from_secs(3600));
        tokio::select! {
            changed = wanted.changed() => {
                if changed.is_err() {
                    return;
                }
                let (queries, new) = wanted.borrow_and_update().clone();
                let anew = new != config;
                config = new;
                due.retain(|query, _| queries.contains(query));
                let now = Instant::now();
                for query in queries {
                    if anew || !due.contains_key(&query) {
                        due.insert(query, now);
                    }
                }
            }
            Some(Ok((query, result))) = asked.join_next() => {
                under_way.remove(&query);
                if !wanted.borrow().0.contains(&query) {
                    continue;
                }
                let (again, result) = match result {
                    Ok((found, ttl)) => (ttl.clamp(config.min_ttl, config.max_ttl), Ok(found)),
                    Err(why) => (RETRY.min(config.max_ttl), Err(why)),
                };
                due.insert(query.clone(), Instant::now() + again);
                if news.send(NameNews { query, result }).await.is_err() {
                    return;
                }
            }
            () = sleep_until(next.into()) => {}
        }
    }
}

fn resolver(config: &ResolverConfig) -> Result<TokioResolver, String> {
    let mut builder = if config.servers.is_empty() {
        // Read anew each time: the file changes with the network.
        TokioResolver::builder_tokio().map_err(|error| format!("/etc/resolv.conf: {error}"))?
    } else {
        let servers = config.servers.iter().map(|server| {
            let mut of_server = NameServerConfig::udp_and_tcp(server.ip());
            for connection in &mut of_server.connections {
                connection.port = server.port();
            }
            of_server
        });
        let servers = Servers::from_parts(None, Vec::new(), servers.collect());
        Resolver::builder_with_config(servers, TokioRuntimeProvider::default())
    };
    let options = builder.options_mut();
    // The answers' time is kept here.
    options.cache_size = 0;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.timeout = Duration::from_secs(2);
    builder.build().map_err(|error| error.to_string())
}

/// What is found, and for how long it is good.
async fn ask(query: &Query, config: &ResolverConfig) -> Result<(BTreeSet<Found>, Duration), String> {
    let resolver = resolver(config)?;
    let (found, until) = match query {
        Query::Host(host) => {
            let answer = resolver.lookup_ip(host.as_str()).await.map_err(|error| error.to_string())?;
            let found: BTreeSet<Found> =
                answer.iter().map(|address| Found { address, port: None, weight: None }).collect();
            (found, answer.valid_until())
        }
        Query::Srv(name) => {
            let answer = resolver.srv_lookup(name.as_str()).await.map_err(|error| error.to_string())?;
            let records = answer.answers().iter().filter_map(|record| match &record.data {
                RData::SRV(srv) => Some(srv.clone()),
                _ => None,
            });
            let records: Vec<_> = records.collect();
            // Of several priorities the best alone counts (RFC 2782).
            let best = records.iter().map(|srv| srv.priority).min();
            let (mut found, mut until) = (BTreeSet::new(), answer.valid_until());
            for srv in records.iter().filter(|srv| Some(srv.priority) == best) {
                let target = srv.target.to_string();
                let addresses = resolver.lookup_ip(target.as_str()).await;
                let addresses = addresses.map_err(|error| format!("{target}: {error}"))?;
                until = until.min(addresses.valid_until());
                // Weight 0 means "no choice to be made"; of lbd it would take the backend out.
                let weight = Some(srv.weight.max(1));
                found.extend(addresses.iter().map(|address| Found { address, port: Some(srv.port), weight }));
            }
            (found, until)
        }
    };
    if found.is_empty() {
        return Err("the answer has no address".to_owned());
    }
    Ok((found, until.saturating_duration_since(Instant::now())))
}
