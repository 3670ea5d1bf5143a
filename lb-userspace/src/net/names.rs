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
    net::IpAddr,
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
    pub result: Result<Heard, String>,
}

/// What DNS says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// At least one.
    pub found: BTreeSet<Found>,
    /// Why the IPv4 and the IPv6 addresses are not known, where they are not: no answer is not the answer that there is none.
    pub unheard: [Option<String>; 2],
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
                    Ok((heard, ttl)) => {
                        let ttl = ttl.clamp(config.min_ttl, config.max_ttl);
                        let whole = heard.unheard.iter().all(Option::is_none);
                        (if whole { ttl } else { RETRY.min(ttl) }, Ok(heard))
                    }
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

fn resolver(config: &ResolverConfig, strategy: LookupIpStrategy) -> Result<TokioResolver, String> {
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
    options.ip_strategy = strategy;
    options.timeout = Duration::from_secs(2);
    builder.build().map_err(|error| error.to_string())
}

/// One for each family: the library, asked for both at once, does not tell of a failure of one.
struct Resolvers([TokioResolver; 2]);

/// Addresses of a host.
struct Addresses {
    found: Vec<IpAddr>,
    until: Instant,
    unheard: [Option<String>; 2],
}

impl Resolvers {
    fn new(config: &ResolverConfig) -> Result<Self, String> {
        let of = |strategy| resolver(config, strategy);
        Ok(Self([of(LookupIpStrategy::Ipv4Only)?, of(LookupIpStrategy::Ipv6Only)?]))
    }

    /// An error where nothing was found, with what was said to it.
    async fn addresses(&self, host: &str) -> Result<Addresses, String> {
        let [v4, v6] = &self.0;
        let (v4, v6) = tokio::join!(v4.lookup_ip(host), v6.lookup_ip(host));
        let mut addresses = Addresses { found: Vec::new(), until: far(), unheard: [None, None] };
        let mut why = None;
        for (answer, unheard) in [v4, v6].into_iter().zip(&mut addresses.unheard) {
            match answer {
                Ok(answer) => {
                    addresses.found.extend(answer.iter());
                    addresses.until = addresses.until.min(answer.valid_until());
                }
                Err(error) if error.is_no_records_found() => _ = why.get_or_insert(error.to_string()),
                Err(error) => *unheard = Some(error.to_string()),
            }
        }
        if addresses.found.is_empty() {
            let why = addresses.unheard.into_iter().flatten().next().or(why);
            return Err(why.unwrap_or_else(|| "the answer has no address".to_owned()));
        }
        Ok(addresses)
    }
}

/// Longer than any answer is good.
fn far() -> Instant {
    Instant::now() + Duration::from_secs(u64::from(u32::MAX))
}

/// What is found, and for how long it is good.
async fn ask(query: &Query, config: &ResolverConfig) -> Result<(Heard, Duration), String> {
    let resolvers = Resolvers::new(config)?;
    let (heard, until) = match query {
        Query::Host(host) => {
            let Addresses { found, until, unheard } = resolvers.addresses(host).await?;
            let found =
                found.into_iter().map(|address| Found { address, port: None, weight: None }).collect();
            (Heard { found, unheard }, until)
        }
        Query::Srv(name) => {
            let answer = resolvers.0[0].srv_lookup(name.as_str()).await.map_err(|error| error.to_string())?;
            let records = answer.answers().iter().filter_map(|record| match &record.data {
                RData::SRV(srv) => Some(srv.clone()),
                _ => None,
            });
            let records: Vec<_> = records.collect();
            // Of several priorities the best alone counts (RFC 2782).
            let best = records.iter().map(|srv| srv.priority).min();
            let mut until = answer.valid_until();
            let mut heard = Heard { found: BTreeSet::new(), unheard: [None, None] };
            for srv in records.iter().filter(|srv| Some(srv.priority) == best) {
                let target = srv.target.to_string();
                let addresses = resolvers.addresses(&target).await;
                let addresses = addresses.map_err(|error| format!("{target}: {error}"))?;
                until = until.min(addresses.until);
                for (unheard, why) in heard.unheard.iter_mut().zip(addresses.unheard) {
                    *unheard = unheard.take().or(why.map(|why| format!("{target}: {why}")));
                }
                // Weight 0 means "no choice to be made"; of lbd it would take the backend out.
                let weight = Some(srv.weight.max(1));
                let found = addresses.found.into_iter();
                heard.found.extend(found.map(|address| Found { address, port: Some(srv.port), weight }));
            }
            (heard, until)
        }
    };
    if heard.found.is_empty() {
        return Err("the answer has no address".to_owned());
    }
    Ok((heard, until.saturating_duration_since(Instant::now())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_resolver::proto::{
        op::{Message, ResponseCode},
        rr::{Record, RecordType, rdata::AAAA},
    };
    use std::net::{Ipv6Addr, SocketAddr};

    const ADDRESS: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);

    /// A server that knows an IPv6 address of every name; what it says to other questions.
    async fn server(other: ResponseCode) -> SocketAddr {
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let asked = Message::from_vec(&buffer[..length]).unwrap();
                let mut answer = asked.clone().into_response();
                let question = &asked.queries[0];
                if question.query_type() == RecordType::AAAA {
                    let data = RData::AAAA(AAAA(ADDRESS));
                    answer.add_answer(Record::from_rdata(question.name().clone(), 60, data));
                } else {
                    answer.metadata.response_code = other;
                }
                socket.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
            }
        });
        address
    }

    #[tokio::test]
    async fn no_answer_is_not_the_answer_that_there_is_none() {
        let query = Query::Host("web.example.net".to_owned());
        for (code, known) in [(ResponseCode::NoError, true), (ResponseCode::ServFail, false)] {
            let config = ResolverConfig { servers: vec![server(code).await], ..ResolverConfig::default() };
            let (heard, ttl) = ask(&query, &config).await.unwrap();
            assert_eq!(heard.found.iter().map(|found| found.address).collect::<Vec<_>>(), [ADDRESS]);
            assert_eq!([heard.unheard[0].is_none(), heard.unheard[1].is_none()], [known, true], "{heard:?}");
            assert!(ttl <= Duration::from_secs(60) && ttl > Duration::from_secs(50), "{ttl:?}");
        }
    }
}
