//! Who is called, who calls, and which connection counts.
//!
//! Each node listens and calls. A caller that finds a connection with the peer there already leaves it at that. Two
//! that call each other at the same moment keep the call of the node whose name comes first; each side can tell by
//! itself.

use super::{
    conn::{self, Joined},
    handle::{LinkEvent, Peer, Settings, Shared, lock, random},
    noise::Broken,
    outbox::Outbox,
    view::Reason,
    wire::{BeatTerms, Hello, InstanceStatus, VERSIONS},
};
use crate::{
    model::VrrpName,
    vrrp::{Phase, RouterView},
};
use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{Mutex as AsyncMutex, Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

/// A handshake that takes longer is given up, whoever began it.
const HANDSHAKE: Duration = Duration::from_secs(3);
/// Handshakes of callers at once: from addresses of the configuration, and from all others.
const CALLERS: usize = 16;
/// Between two calls of an address that fails, the first time and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// Younger connections than this may be the two of nodes that called each other at once.
const AT_ONCE: Duration = Duration::from_secs(3);

/// The link's thread.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut settings = shared.settings.subscribe();
    let mut stop = shared.stop.subscribe();
    let installing = Arc::new(AsyncMutex::new(()));
    loop {
        let now = Arc::clone(&settings.borrow_and_update());
        let mut tasks = JoinSet::new();
        tasks.spawn(listen(Arc::clone(&shared), Arc::clone(&now), Arc::clone(&installing)));
        lock(&shared.waiting).retain(|at, _| now.spec.peers.contains(at));
        for address in now.spec.peers.iter().copied() {
            tasks.spawn(dial(Arc::clone(&shared), address, Arc::clone(&installing)));
        }
        let places =
            |settings: &Settings| (settings.spec.listen, settings.spec.peers.clone(), settings.node.clone());
        loop {
            tokio::select! {
                changed = settings.changed() => if changed.is_err() { return },
                _ = stop.wait_for(|stop| *stop) => return,
            }
            if places(&settings.borrow_and_update()) != places(&now) {
                break;
            }
        }
        tasks.shutdown().await;
    }
}

/// What this node says of its virtual routers.
pub(super) fn instances(views: &[RouterView]) -> BTreeMap<VrrpName, InstanceStatus> {
    // One that is held takes nothing over, however it calls itself.
    let state =
        |view: &RouterView| if view.held && view.phase == Phase::Backup { "held" } else { view.phase.name() };
    let status = |view: &RouterView| InstanceStatus {
        state: state(view).to_owned(),
        priority: view.priority,
        gated: view.gated,
        own: view.own.clone(),
    };
    views.iter().map(|view| (view.spec.name.clone(), status(view))).collect()
}

fn greeting(shared: &Shared, settings: &Settings) -> io::Result<Hello> {
    let heartbeat = settings.spec.heartbeat;
    Ok(Hello {
        versions: VERSIONS,
        node: settings.node.clone(),
        boot: shared.boot.clone(),
        software: env!("CARGO_PKG_VERSION").to_owned(),
        beat: BeatTerms {
            id: u64::from_be_bytes(random()?),
            key: STANDARD_NO_PAD.encode(random::<32>()?),
            port: settings.spec.listen.port(),
            interval_us: u32::try_from(heartbeat.as_micros()).unwrap_or(u32::MAX),
        },
    })
}

/// No TCP_USER_TIMEOUT: it would end connections to a peer whose engine is busy and reads nothing for a while. Pings
/// that do not come tell of a dead one.
fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)
}

// ---- being called -----------------------------------------------------------------------------------------

async fn listen(shared: Arc<Shared>, settings: Arc<Settings>, installing: Arc<AsyncMutex<()>>) {
    let known = Arc::new(Semaphore::new(CALLERS));
    let strangers = Arc::new(Semaphore::new(CALLERS));
    // Ended with this task.
    let mut callers = JoinSet::new();
    let mut pause = PAUSES.0;
    let listener = loop {
        match TcpListener::bind(settings.spec.listen).await {
            Ok(listener) => break listener,
            Err(error) => {
                let listen = settings.spec.listen;
                tracing::error!(%listen, %error, "sync: cannot listen; trying again");
                pause = (pause * 2).min(PAUSES.1);
                sleep(pause).await;
            }
        }
    };
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = callers.join_next() => continue,
        };
        let Ok((stream, address)) = accepted else {
            // Out of files, or a caller that is gone again.
            sleep(Duration::from_millis(20)).await;
            continue;
        };
        let is_known = shared.settings.borrow().spec.peers.iter().any(|peer| peer.ip() == address.ip());
        let slots = Arc::clone(if is_known { &known } else { &strangers });
        let Ok(slot) = slots.try_acquire_owned() else {
            shared.reject(Reason::Busy, &address, &"too many handshakes at once");
            continue;
        };
        let (shared, installing) = (Arc::clone(&shared), Arc::clone(&installing));
        callers.spawn(async move {
            let result = be_called(&shared, stream, address, &installing).await;
            drop(slot);
            if let Err(error) = result {
                match error.reason() {
                    Some(reason) => shared.reject(reason, &address, &error),
                    None => tracing::debug!(%address, %error, "sync: a caller was not used"),
                }
            }
        });
    }
}

async fn be_called(
    shared: &Arc<Shared>,
    stream: TcpStream,
    address: SocketAddr,
    installing: &AsyncMutex<()>,
) -> Result<(), Broken> {
    tune(&stream)?;
    let settings = Arc::clone(&shared.settings.borrow());
    let own = greeting(shared, &settings)?;
    let shaken = timeout(HANDSHAKE, conn::be_called(stream, &settings.keys, &own)).await;
    let joined = shaken.map_err(|_| Broken::Timeout)??;
    install(shared, joined, (address, false), &own, installing).await
}

// ---- calling ----------------------------------------------------------------------------------------------

async fn dial(shared: Arc<Shared>, address: SocketAddr, installing: Arc<AsyncMutex<()>>) {
    let mut changed = shared.changed.subscribe();
    let mut name: Option<Arc<str>> = None;
    let (mut pause, mut attempt) = (PAUSES.0, 0);
    loop {
        // As long as there is a connection, by whomever, there is nothing to do.
        changed.mark_unchanged();
        if name.as_ref().is_some_and(|name| shared.peer(name).is_some()) {
            lock(&shared.waiting).remove(&address);
            pause = PAUSES.0;
            if changed.changed().await.is_err() {
                return;
            }
            continue;
        }
        match call(&shared, address, attempt, &installing).await {
            Ok(peer) => (name, attempt) = (Some(peer), 0),
            Err(Broken::Duplicate(peer)) => name = Some(peer),
            Err(error) => {
                match error.reason() {
                    Some(reason) => shared.reject(reason, &address, &error),
                    None => tracing::debug!(%address, %error, "sync: no connection"),
                }
                lock(&shared.waiting).insert(address, error.to_string());
                // A peer that has the next key already, but this node's first one no more.
                attempt += usize::from(matches!(error, Broken::Refused));
                pause = if matches!(error, Broken::Itself(_)) { PAUSES.1 } else { (pause * 2).min(PAUSES.1) };
                let jitter = random::<1>().map_or(0, |[byte]| u32::from(byte));
                let wait = pause + pause * jitter / 512;
                // A peer that has called meanwhile ends the wait.
                let _ = timeout(wait, changed.changed()).await;
            }
        }
    }
}

async fn call(
    shared: &Arc<Shared>,
    address: SocketAddr,
    attempt: usize,
    installing: &AsyncMutex<()>,
) -> Result<Arc<str>, Broken> {
    let settings = Arc::clone(&shared.settings.borrow());
    let own = greeting(shared, &settings)?;
    let key = &settings.keys[attempt % settings.keys.len()];
    let shaken = async {
        let listen = settings.spec.listen.ip();
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // From the address that it listens on, so that the packets take the way that was meant.
        if !listen.is_unspecified() && listen.is_ipv4() == address.is_ipv4() {
            socket.bind((listen, 0).into())?;
        }
        let stream = socket.connect(address).await?;
        tune(&stream)?;
        conn::call(stream, key, &own).await
    };
    let joined = timeout(HANDSHAKE, shaken)
        .await
        .map_err(|_| Broken::Io(io::Error::new(io::ErrorKind::TimedOut, "no answer")))??;
    let name: Arc<str> = joined.hello.node.as_str().into();
    install(shared, joined, (address, true), &own, installing).await?;
    Ok(name)
}

// ---- which one counts -------------------------------------------------------------------------------------

async fn install(
    shared: &Arc<Shared>,
    mut joined: Joined,
    (address, dialled): (SocketAddr, bool),
    own: &Hello,
    installing: &AsyncMutex<()>,
) -> Result<(), Broken> {
    let name: Arc<str> = joined.hello.node.as_str().into();
    let one_at_a_time = installing.lock().await;
    if let Some(old) = shared.peer(&name) {
        let same = old.hello.boot == joined.hello.boot;
        let duplicate = if dialled {
            // It would have been seen if it were dead.
            same
        } else {
            // The peer knows of no connection. If it called while it was being called, one of the two calls stays.
            same && old.dialled && own.node < joined.hello.node && old.installed.elapsed() < AT_ONCE
        };
        if duplicate {
            return Err(Broken::Duplicate(name));
        }
        old.end.notify_one();
        // Its task tells of its end.
        let mut changed = shared.changed.subscribe();
        while shared.peer(&name).is_some_and(|now| Arc::ptr_eq(&now, &old)) {
            let _ = changed.changed().await;
        }
    }
    if dialled {
        joined.confirm().await?;
    }
    let traffic = Arc::clone(lock(&shared.traffic).entry(Arc::clone(&name)).or_default());
    let peer = Arc::new(Peer {
        name: Arc::clone(&name),
        address,
        since: SystemTime::now(),
        installed: Instant::now(),
        hello: joined.hello.clone(),
        version: joined.version,
        dialled,
        outbox: Outbox::default(),
        traffic,
        status: Mutex::default(),
        key: Mutex::new(joined.rx.session.key.clone()),
        end: tokio::sync::Notify::new(),
    });
    let to = SocketAddr::new(plain(address.ip()), joined.hello.beat.port);
    shared.beats.meet(&name, to, &own.beat, &joined.hello.beat);
    lock(&shared.peers).insert(Arc::clone(&name), Arc::clone(&peer));
    // Before anything is read; whoever hears of it can send.
    let up = LinkEvent::Up { peer: Arc::clone(&name), hello: joined.hello.clone() };
    let _ = shared.events.send(up).await;
    announce(&shared.changed);
    drop(one_at_a_time);
    tracing::info!(peer = %name, %address, dialled, key = lock(&peer.key).id, version = peer.version, "sync: connected");
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let cause = conn::run(&shared, &peer, joined).await;
        match cause.reason() {
            Some(reason) => shared.reject(reason, &peer.name, &cause),
            None => tracing::warn!(peer = %peer.name, %cause, "sync: the connection ended"),
        }
        peer.outbox.close();
        let down = LinkEvent::Down { peer: Arc::clone(&peer.name), cause: cause.to_string() };
        // Before a newer connection can say that it is there.
        let _ = shared.events.send(down).await;
        lock(&shared.peers).remove(&peer.name);
        announce(&shared.changed);
    });
    Ok(())
}

fn announce(changed: &watch::Sender<u64>) {
    changed.send_modify(|count| *count = count.wrapping_add(1));
}

fn plain(address: IpAddr) -> IpAddr {
    address.to_canonical()
}
