//! A real QUIC stack (quinn) through the real daemon: connections whose servers put their id into their connection IDs
//! stay where they are, whatever the client's address and whatever happens to the ring.

use std::{
    collections::BTreeMap,
    error::Error as StdError,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use lb_tests::{
    balancer::{Balancer, Service, Settings},
    lab::{Netns, Node, Shape, Topology},
    packets::Rng,
    require,
    skip::Need,
};
use quinn::{
    ClientConfig, Connection, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, ServerConfig,
    TokioRuntime,
    rustls::{RootCertStore, pki_types::PrivatePkcs8KeyDer},
};

type Result<T = ()> = std::result::Result<T, Box<dyn StdError + Send + Sync>>;

const PORT: u16 = 443;
const NAME: &str = "quic.test";
const PATIENCE: Duration = Duration::from_secs(20);

/// Connection IDs in the clear: config id and length, server id, eight bytes nobody can guess.
struct NamedIds {
    config: u8,
    server: Vec<u8>,
    nonces: Rng,
}

impl ConnectionIdGenerator for NamedIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let first = self.config << 5 | (self.cid_len() - 1) as u8;
        let nonce = self.nonces.bytes(8);
        ConnectionId::new(&[&[first], &self.server[..], &nonce].concat())
    }

    fn cid_len(&self) -> usize {
        1 + self.server.len() + 8
    }

    /// They do not expire: a client takes the next one each time its address changes. (Two reasons for a change at once,
    /// on a machine that stalls, and quinn issues more than its peer allows.)
    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// A certificate for [`NAME`], for the servers and for the client to trust.
struct Identity {
    server: ServerConfig,
    client: ClientConfig,
}

impl Identity {
    fn new() -> Result<Self> {
        let made = rcgen::generate_simple_self_signed(vec![NAME.to_owned()])?;
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone())?;
        let server = ServerConfig::with_single_cert(vec![made.cert.der().clone()], key.into())?;
        Ok(Self { server, client: ClientConfig::with_root_certificates(Arc::new(roots))? })
    }
}

fn socket(ns: &Netns, address: IpAddr, port: u16) -> Result<UdpSocket> {
    Ok(ns.run(|| UdpSocket::bind((address, port)))?)
}

/// Answers what comes on a stream with the server's name and the same bytes.
fn serve(
    node: &Node,
    vip: IpAddr,
    identity: &Identity,
    config: u8,
    server: Vec<u8>,
    seed: u64,
) -> Result<Endpoint> {
    let mut settings = EndpointConfig::default();
    settings
        .cid_generator(move || Box::new(NamedIds { config, server: server.clone(), nonces: Rng::new(seed) }));
    let socket = socket(&node.ns, vip, PORT)?;
    let endpoint = Endpoint::new(settings, Some(identity.server.clone()), socket, Arc::new(TokioRuntime))?;
    let (accepting, name) = (endpoint.clone(), node.name.clone());
    tokio::spawn(async move {
        while let Some(incoming) = accepting.accept().await {
            let name = name.clone();
            tokio::spawn(async move {
                let Ok(connection) = incoming.await else { return };
                // Ends with the connection.
                let _ = answer_all(&connection, &name).await;
            });
        }
    });
    Ok(endpoint)
}

async fn answer_all(connection: &Connection, name: &str) -> Result {
    loop {
        let (mut send, mut receive) = connection.accept_bi().await?;
        let bytes = receive.read_to_end(1 << 20).await?;
        send.write_all(format!("{name}\n").as_bytes()).await?;
        send.write_all(&bytes).await?;
        send.finish()?;
    }
}

/// A connection of a client that has one socket for each.
struct Client {
    endpoint: Endpoint,
    connection: Connection,
    /// Who answered first.
    server: String,
}

impl Client {
    async fn connect(ns: &Netns, from: IpAddr, vip: IpAddr, identity: &Identity) -> Result<Self> {
        let socket = socket(ns, from, 0)?;
        let endpoint = Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(TokioRuntime))?;
        let connecting = endpoint.connect_with(identity.client.clone(), (vip, PORT).into(), NAME)?;
        let connection = tokio::time::timeout(PATIENCE, connecting).await??;
        let mut client = Self { endpoint, connection, server: String::new() };
        client.server = client.ask(1_000).await?;
        Ok(client)
    }

    /// Sends so many bytes and checks that they come back; who answered.
    async fn ask(&self, bytes: usize) -> Result<String> {
        let sent = Rng::new(bytes as u64).bytes(bytes);
        let exchange = async {
            let (mut send, mut receive) = self.connection.open_bi().await?;
            send.write_all(&sent).await?;
            send.finish()?;
            Ok::<_, Box<dyn StdError + Send + Sync>>(receive.read_to_end(1 << 21).await?)
        };
        let answer = tokio::time::timeout(PATIENCE, exchange).await??;
        let line = answer.iter().position(|byte| *byte == b'\n').ok_or("no name in the answer")?;
        assert!(answer[line + 1..] == sent, "the bytes that came back are others");
        Ok(String::from_utf8(answer[..line].to_vec())?)
    }

    /// From another port of `from` now on.
    fn move_to(&self, ns: &Netns, from: IpAddr) -> Result<SocketAddr> {
        let socket = socket(ns, from, 0)?;
        let address = socket.local_addr()?;
        self.endpoint.rebind(socket)?;
        Ok(address)
    }
}

fn tally<'c>(clients: impl IntoIterator<Item = &'c Client>) -> BTreeMap<String, usize> {
    let mut tally = BTreeMap::new();
    for client in clients {
        *tally.entry(client.server.clone()).or_default() += 1;
    }
    tally
}

/// Every connection is still at the server it began at.
async fn all_go_on(clients: &[Client], when: &str) -> Result {
    for client in clients {
        let now = client.ask(20_000).await.map_err(|e| format!("{when}, at {}: {e}", client.server))?;
        assert_eq!(now, client.server, "{when}");
    }
    Ok(())
}

struct Setup<'t> {
    topology: &'t Topology,
    vip: IpAddr,
    /// Where clients move to.
    elsewhere: IpAddr,
    config: u8,
    /// Of the backends in turn; empty = the default.
    server_ids: [&'static str; 3],
}

fn from_hex(text: &str) -> Vec<u8> {
    let digit = |at| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal digits");
    (0..text.len()).step_by(2).map(digit).collect()
}

/// Connections, addresses that change, a drain, and a daemon that starts again.
async fn life(setup: &Setup<'_>, service: Service) -> Result {
    const CONNECTIONS: usize = 60;
    let Setup { topology, vip, elsewhere, config, server_ids } = setup;
    let mut balancer = Balancer::prepare(topology, Settings::of([service]))?;
    let mut text = balancer.config_text();
    for (node, id) in topology.backends.iter().zip(server_ids).filter(|(_, id)| !id.is_empty()) {
        let name = format!("name = \"{}\"\n", node.name);
        text = text.replace(&name, &format!("{name}server_id = \"{id}\"\n"));
    }
    balancer.write_text(&text)?;
    balancer.restart()?;

    // The servers take their ids from what the balancer says they are.
    let identity = Identity::new()?;
    let view = balancer.service("www");
    let mut servers = Vec::new();
    for ((node, backend), seed) in topology.backends.iter().zip(&view.backends).zip(1..) {
        let id = backend.server_id.as_deref().expect("a server id");
        servers.push(serve(node, *vip, &identity, *config, from_hex(id), seed)?);
    }
    let shown = balancer.lbctl(&["service", "show", "www"]);
    assert!(shown.contains(&format!("config id {config}")), "{shown}");
    for (backend, id) in view.backends.iter().zip(server_ids) {
        let id = if id.is_empty() { backend.server_id.as_deref().expect("a server id") } else { id };
        assert!(shown.contains(&format!("server id {id}")), "{shown}");
    }

    let ns = &topology.client.ns;
    let own = if vip.is_ipv4() { topology.client.v4.into() } else { topology.client.v6.into() };
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(Client::connect(ns, own, *vip, &identity).await?);
    }
    let first = tally(&clients);
    assert_eq!(first.len(), 3, "all three servers have connections: {first:?}");
    all_go_on(&clients, "at home").await?;

    let mut strangers = 0;
    for client in &clients {
        let from = client.move_to(ns, *elsewhere)?;
        let by_hash = balancer.explain("quic", &from.to_string(), &SocketAddr::new(*vip, PORT).to_string());
        strangers += usize::from(by_hash.backend.as_ref() != Some(&client.server));
    }
    assert!(strangers > CONNECTIONS / 3, "only {strangers} moved to where the hash names another server");
    all_go_on(&clients, "from another address").await?;

    balancer.lbctl(&["backend", "drain", "www", "web1"]);
    all_go_on(&clients, "while web1 drains").await?;
    let mut more = Vec::new();
    for _ in 0..CONNECTIONS / 2 {
        more.push(Client::connect(ns, own, *vip, &identity).await?);
    }
    let new = tally(&more);
    assert!(!new.contains_key("web1") && new.len() == 2, "web1 drains: {new:?}");
    for client in clients.iter().chain(&more) {
        client.move_to(ns, own)?;
    }
    all_go_on(&clients, "back at home while web1 drains").await?;
    all_go_on(&more, "begun while web1 drains").await?;

    // What the next daemon finds in the maps is what it would have written.
    let before = balancer.service("www");
    balancer.stop()?;
    all_go_on(&clients, "without a daemon").await?;
    balancer.restart()?;
    let after = balancer.service("www");
    let ids = |view: &lb_userspace::control::api::ServiceView| {
        view.backends.iter().map(|b| b.server_id.clone()).collect::<Vec<_>>()
    };
    assert_eq!(ids(&after), ids(&before));
    assert!(after.packets >= before.packets, "the counters went on");
    all_go_on(&clients, "with the next daemon").await?;
    for reason in ["no_backend", "internal", "udp_length"] {
        assert_eq!(balancer.dropped(reason), 0, "{reason}");
    }
    Ok(())
}

fn run(setup: &Setup<'_>, service: Service) -> Result {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(life(setup, service));
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

fn service(vip: IpAddr) -> Service {
    let mut service = Service::www([vip]).port(PORT);
    service.protocol = "quic";
    service
}

#[test]
fn connections_stay_with_servers_that_have_ids_of_their_own() -> Result {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape::default())?;
    let elsewhere = "10.1.0.77";
    topology.client.ns.exec("ip", &["address", "add", &format!("{elsewhere}/24"), "dev", "eth0"])?;
    let setup = Setup {
        topology: &topology,
        vip: topology.vip4(),
        elsewhere: elsewhere.parse()?,
        config: 3,
        server_ids: ["0a01", "0a02", "ff00"],
    };
    let settings = "quic = { server_id_length = 2, config_id = 3 }";
    run(&setup, service(setup.vip).nodes(&topology.backends).extra(settings))
}

#[test]
fn connections_stay_with_servers_known_by_their_address_over_ipv6() -> Result {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape::default())?;
    let elsewhere = "fd00:1::77";
    topology.client.ns.exec("ip", &["address", "add", &format!("{elsewhere}/64"), "dev", "eth0", "nodad"])?;
    let setup = Setup {
        topology: &topology,
        vip: topology.vip6(),
        elsewhere: elsewhere.parse()?,
        config: 0,
        server_ids: [""; 3],
    };
    run(&setup, service(setup.vip).nodes6(&topology.backends))
}
