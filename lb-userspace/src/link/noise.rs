//! The crypto: Noise_NNpsk0 over whatever carries the messages. Both sides prove that they have a pre-shared key by the
//! first message each can make; every handshake makes keys of its own (forward secrecy), and a record is only good at
//! its place in its connection, so that nothing recorded can be said again.

use super::{
    view::Reason,
    wire::{MAX_RECORD, Malformed, Message},
};
use crate::model::SyncKey;
use snow::{Builder, HandshakeState, StatelessTransportState};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt as _};

const PATTERN: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";
/// Bound into the first handshake: a later protocol that differs here cannot be mistaken for this one.
pub(super) const PROLOGUE: &[u8] = b"lbd sync 1";
/// Octets that each encrypted record is longer than its plain text.
pub(super) const TAG: usize = 16;
/// Longest message on the wire, without its length.
pub(super) const MAX_SEALED: usize = MAX_RECORD + TAG;
/// A handshake's message: a key, a tag, no content.
const MAX_HANDSHAKE: usize = 256;

/// Why a connection ends, or never begins.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("the peer has none of this node's keys (sync.key_file)")]
    Key,
    #[error("a record that is corrupt, or was sent before")]
    Corrupt,
    #[error("a record of {0} bytes, longer than any")]
    Oversize(usize),
    #[error("the connection ended inside a record")]
    Truncated,
    #[error("the peer closed the connection")]
    Closed,
    #[error("{0}")]
    Malformed(#[from] Malformed),
    #[error("{0}")]
    Protocol(&'static str),
    #[error("it did not end within its time")]
    Timeout,
    #[error("the peer speaks versions {} to {} of the protocol, this node {} to {}", theirs.0, theirs.1, ours.0, ours.1)]
    Version { ours: (u16, u16), theirs: (u16, u16) },
    #[error("it leads to a node with this one's own name, {0}: each needs one of its own (node.name)")]
    Itself(String),
    #[error("there is a connection to {0} already")]
    Duplicate(Arc<str>),
    #[error("the peer says: {0}")]
    Farewell(String),
    #[error("nothing was heard for {0} s")]
    Silent(u64),
    #[error("the peer closed the connection at the handshake: has it this key (sync.key_file)?")]
    Refused,
    #[error("a newer connection took its place")]
    Replaced,
    #[error("its key {0} is no longer in sync.key_file, and the peer did not take another one")]
    KeyGone(String),
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

impl Broken {
    /// For the counter of what had no effect; none for what is nobody's doing.
    pub(super) fn reason(&self) -> Option<Reason> {
        match self {
            Self::Key => Some(Reason::Key),
            Self::Corrupt => Some(Reason::Corrupt),
            Self::Oversize(_) => Some(Reason::Oversize),
            Self::Truncated => Some(Reason::Truncated),
            Self::Malformed(_) | Self::Protocol(_) => Some(Reason::Malformed),
            Self::Timeout => Some(Reason::Timeout),
            Self::Version { .. } => Some(Reason::Version),
            Self::Itself(_) => Some(Reason::Itself),
            Self::Closed
            | Self::Duplicate(_)
            | Self::Farewell(_)
            | Self::Silent(_)
            | Self::Refused
            | Self::Replaced
            | Self::KeyGone(_)
            | Self::Io(_) => None,
        }
    }
}

/// The keys of one connection at one time, and the pre-shared key they came from.
#[derive(Clone)]
pub(super) struct Session {
    pub cipher: Arc<StatelessTransportState>,
    /// Bound into the next handshake inside this one.
    pub hash: Vec<u8>,
    pub key: SyncKey,
}

fn builder<'a>(key: &'a SyncKey, prologue: &'a [u8]) -> Result<Builder<'a>, snow::Error> {
    Builder::new(PATTERN.parse()?).psk(0, key.secret())?.prologue(prologue)
}

fn session(state: HandshakeState, key: SyncKey) -> Result<Session, snow::Error> {
    let hash = state.get_handshake_hash().to_vec();
    Ok(Session { cipher: Arc::new(state.into_stateless_transport_mode()?), hash, key })
}

/// A call under way.
pub(super) struct Call {
    state: HandshakeState,
    key: SyncKey,
}

impl Call {
    /// With its first message.
    pub(super) fn begin(key: &SyncKey, prologue: &[u8]) -> Result<(Self, Vec<u8>), snow::Error> {
        let mut state = builder(key, prologue)?.build_initiator()?;
        let mut message = vec![0; MAX_HANDSHAKE];
        let length = state.write_message(&[], &mut message)?;
        message.truncate(length);
        Ok((Self { state, key: key.clone() }, message))
    }

    /// With the answer to it.
    pub(super) fn end(mut self, answer: &[u8]) -> Result<Session, Broken> {
        self.state.read_message(answer, &mut [0; MAX_HANDSHAKE]).map_err(|_| Broken::Key)?;
        session(self.state, self.key).map_err(|_| Broken::Protocol("an incomplete handshake"))
    }
}

/// The answer to a call's first message, by the key that fits it.
pub(super) fn answer(keys: &[SyncKey], prologue: &[u8], call: &[u8]) -> Result<(Session, Vec<u8>), Broken> {
    let protocol = |_| Broken::Protocol("a handshake that cannot be answered");
    for key in keys {
        let mut state = builder(key, prologue).and_then(Builder::build_responder).map_err(protocol)?;
        if state.read_message(call, &mut [0; MAX_HANDSHAKE]).is_err() {
            continue;
        }
        let mut message = vec![0; MAX_HANDSHAKE];
        let length = state.write_message(&[], &mut message).map_err(protocol)?;
        message.truncate(length);
        return Ok((session(state, key.clone()).map_err(protocol)?, message));
    }
    Err(Broken::Key)
}

/// One direction of a connection.
pub(super) struct Direction {
    pub session: Session,
    next: u64,
}

impl Direction {
    pub(super) fn new(session: Session) -> Self {
        Self { session, next: 0 }
    }

    /// Appends the record to `out`, with its length before it.
    pub(super) fn seal(&mut self, record: &[u8], out: &mut Vec<u8>) -> Result<(), Broken> {
        let at = out.len();
        out.extend([0; 2]);
        out.resize(at + 2 + record.len() + TAG, 0);
        let sealed = self.session.cipher.write_message(self.next, record, &mut out[at + 2..]);
        // A record is at most MAX_RECORD long, and new keys come long before the numbers run out.
        let length = sealed.map_err(|_| Broken::Protocol("a record that cannot be encrypted"))?;
        let length = u16::try_from(length).map_err(|_| Broken::Oversize(length))?;
        out[at..at + 2].copy_from_slice(&length.to_be_bytes());
        self.next += 1;
        Ok(())
    }

    pub(super) fn open(&mut self, sealed: &[u8]) -> Result<Message, Broken> {
        let mut record = vec![0; sealed.len()];
        let opened = self.session.cipher.read_message(self.next, sealed, &mut record);
        let length = opened.map_err(|_| Broken::Corrupt)?;
        self.next += 1;
        Ok(Message::decode(&record[..length])?)
    }
}

/// Reads one message of any kind with its length before it.
pub(super) async fn read_sealed(
    stream: &mut (impl AsyncRead + Unpin),
    longest: usize,
) -> Result<Vec<u8>, Broken> {
    let mut length = [0; 2];
    match stream.read(&mut length[..1]).await? {
        0 => return Err(Broken::Closed),
        _ => read_exact(stream, &mut length[1..]).await?,
    }
    let length = usize::from(u16::from_be_bytes(length));
    if length > longest {
        return Err(Broken::Oversize(length));
    }
    let mut sealed = vec![0; length];
    read_exact(stream, &mut sealed).await?;
    Ok(sealed)
}

async fn read_exact(stream: &mut (impl AsyncRead + Unpin), buffer: &mut [u8]) -> Result<(), Broken> {
    stream.read_exact(buffer).await.map(drop).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => Broken::Truncated,
        _ => Broken::Io(error),
    })
}

/// Longest message of a handshake.
pub(super) const HANDSHAKE: usize = MAX_HANDSHAKE;

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> SyncKey {
        SyncKey::new(None, [byte; 32])
    }

    fn sessions(prologue: &[u8]) -> (Session, Session) {
        let (call, first) = Call::begin(&key(1), prologue).unwrap();
        let (theirs, second) = answer(&[key(2), key(1)], prologue, &first).unwrap();
        (call.end(&second).unwrap(), theirs)
    }

    #[test]
    fn records_are_good_once_and_in_their_order() {
        let (ours, theirs) = sessions(PROLOGUE);
        assert_eq!((ours.key.id.clone(), &ours.hash), (theirs.key.id.clone(), &theirs.hash));
        let (mut out, mut into) = (Direction::new(ours.clone()), Direction::new(theirs.clone()));
        let mut sealed = |message: Message| {
            let mut bytes = Vec::new();
            out.seal(&message.encode(), &mut bytes).unwrap();
            bytes[2..].to_vec()
        };
        let (first, second) = (sealed(Message::Ping(1)), sealed(Message::Ping(2)));
        assert_eq!(into.open(&first).unwrap(), Message::Ping(1));
        assert!(matches!(into.open(&first), Err(Broken::Corrupt)), "said again");
        let mut flipped = second.clone();
        flipped[3] ^= 1;
        assert!(matches!(into.open(&flipped), Err(Broken::Corrupt)));
        assert!(matches!(into.open(&second[..7]), Err(Broken::Corrupt)));
        assert_eq!(into.open(&second).unwrap(), Message::Ping(2));
        // Nor is it good in another connection, or sent back.
        let (_, others) = sessions(PROLOGUE);
        assert!(matches!(Direction::new(others).open(&first), Err(Broken::Corrupt)));
        assert!(matches!(Direction::new(ours).open(&first), Err(Broken::Corrupt)));
        // The longest record fits.
        let mut bytes = Vec::new();
        Direction::new(theirs).seal(&vec![3; MAX_RECORD], &mut bytes).unwrap();
        assert_eq!(bytes.len(), 2 + MAX_SEALED);
    }

    #[test]
    fn the_key_decides() {
        let (call, first) = Call::begin(&key(1), PROLOGUE).unwrap();
        assert!(matches!(answer(&[key(2), key(3)], PROLOGUE, &first), Err(Broken::Key)));
        assert!(matches!(answer(&[key(1)], b"lbd sync 9", &first), Err(Broken::Key)));
        for at in 0..first.len() {
            let mut damaged = first.clone();
            damaged[at] ^= 0x80;
            assert!(answer(&[key(1)], PROLOGUE, &damaged).is_err(), "octet {at}");
        }
        let (_, mut second) = answer(&[key(1)], PROLOGUE, &first).unwrap();
        second[40] ^= 1;
        assert!(matches!(call.end(&second), Err(Broken::Key)));
        assert!(matches!(answer(&[key(1)], PROLOGUE, &[]), Err(Broken::Key)));
    }

    #[tokio::test]
    async fn what_is_cut_off_is_said() {
        let read = |bytes: &'static [u8]| async move { read_sealed(&mut &*bytes, 100).await };
        assert_eq!(read(&[0, 2, 7, 8, 9]).await.unwrap(), [7, 8]);
        assert!(matches!(read(&[]).await, Err(Broken::Closed)));
        assert!(matches!(read(&[0]).await, Err(Broken::Truncated)));
        assert!(matches!(read(&[0, 2, 7]).await, Err(Broken::Truncated)));
        assert!(matches!(read(&[0, 101]).await, Err(Broken::Oversize(101))));
    }
}
