//! What waits to be sent to one peer, bounded: frames and the words of a hand-over in their order; the link's other words
//! before them.

use super::{noise::Session, wire::Message};
use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::sync::Notify;

/// Bytes of frames that wait at most for one peer.
pub(super) const QUEUE_BYTES: usize = 4 << 20;
/// What a frame costs beyond its bytes, so that many small ones are bounded as well.
const OVERHEAD: usize = 64;

pub(super) enum Item {
    Frame(Vec<u8>),
    Message(Message),
    /// What is behind it is encrypted by new keys.
    Switch(Message, Box<Session>),
}

#[derive(Default)]
struct Queue {
    /// The link's care for itself, which is about no frame: pings, the node's state, new keys.
    front: VecDeque<Item>,
    items: VecDeque<Item>,
    bytes: usize,
    /// Words of a hand-over, and farewells, among the frames: they let the bandwidth's limit go until they are sent.
    urgent: usize,
    /// Somebody was refused and is to be told when there is room.
    refused: bool,
    closed: bool,
}

/// Shared by who sends and the task that writes.
#[derive(Default)]
pub(super) struct Outbox {
    queue: Mutex<Queue>,
    filled: Notify,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False: there is no room.
    pub(super) fn push_frame(&self, frame: Vec<u8>) -> bool {
        let mut queue = self.lock();
        let cost = frame.len() + OVERHEAD;
        if queue.closed || queue.bytes + cost > QUEUE_BYTES {
            queue.refused = true;
            return false;
        }
        queue.bytes += cost;
        queue.items.push_back(Item::Frame(frame));
        drop(queue);
        self.filled.notify_one();
        true
    }

    /// Words of a hand-over go behind the frames that wait, others before them. They are few: they need no room.
    pub(super) fn push(&self, message: Message) {
        let ordered = matches!(message, Message::Role(..) | Message::Close(_));
        self.push_item(Item::Message(message), ordered);
    }

    pub(super) fn push_switch(&self, message: Message, session: Session) {
        self.push_item(Item::Switch(message, Box::new(session)), false);
    }

    fn push_item(&self, item: Item, ordered: bool) {
        let mut queue = self.lock();
        if queue.closed {
            return;
        }
        if ordered {
            queue.urgent += 1;
            queue.items.push_back(item);
        } else {
            queue.front.push_back(item);
        }
        drop(queue);
        self.filled.notify_one();
    }

    /// The next one, and whether who was refused has room now.
    pub(super) async fn pop(&self) -> (Item, bool) {
        loop {
            let filled = self.filled.notified();
            if let Some(next) = self.try_pop() {
                return next;
            }
            filled.await;
        }
    }

    /// The same, if there is any.
    pub(super) fn try_pop(&self) -> Option<(Item, bool)> {
        let mut queue = self.lock();
        if let Some(word) = queue.front.pop_front() {
            return Some((word, false));
        }
        let item = queue.items.pop_front()?;
        match &item {
            Item::Frame(frame) => queue.bytes -= frame.len() + OVERHEAD,
            Item::Message(_) | Item::Switch(..) => queue.urgent -= 1,
        }
        let room = queue.refused && queue.bytes <= QUEUE_BYTES / 2;
        queue.refused &= !room;
        Some((item, room))
    }

    /// Whether a word of a hand-over waits, be it behind frames.
    pub(super) fn is_urgent(&self) -> bool {
        self.lock().urgent > 0
    }

    /// Words of any kind that wait.
    pub(super) fn words(&self) -> usize {
        let queue = self.lock();
        queue.front.len() + queue.urgent
    }

    /// Bytes that wait.
    pub(super) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Nothing is taken any more.
    pub(super) fn close(&self) {
        let mut queue = self.lock();
        queue.closed = true;
        queue.items.clear();
        queue.front.clear();
        (queue.bytes, queue.urgent) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::{super::wire::Role, *};

    #[tokio::test]
    async fn frames_are_bounded_and_in_order_with_words() {
        let outbox = Outbox::default();
        let frame = vec![7; 60_000];
        let mut taken = 0;
        while outbox.push_frame(frame.clone()) {
            taken += 1;
        }
        assert_eq!(taken, QUEUE_BYTES / (60_000 + OVERHEAD));
        // Pings are before them and lift no limit; words of a hand-over are behind them.
        let role = || Message::Role(Role::TakeOver, "public".parse().unwrap());
        outbox.push(Message::Ping(5));
        assert!(!outbox.is_urgent());
        outbox.push(role());
        assert!(outbox.is_urgent());
        assert_eq!(outbox.words(), 2);
        assert!(matches!(outbox.pop().await, (Item::Message(Message::Ping(5)), false)));
        let mut told = 0;
        for _ in 0..taken {
            let (item, room) = outbox.pop().await;
            assert!(matches!(item, Item::Frame(_)));
            told += usize::from(room);
        }
        assert_eq!(told, 1, "room is told once");
        assert!(matches!(outbox.pop().await, (Item::Message(message), false) if message == role()));
        assert_eq!((outbox.bytes(), outbox.words()), (0, 0));
        assert!(!outbox.is_urgent());
        // Small ones are bounded too.
        let mut count = 0;
        while outbox.push_frame(Vec::new()) {
            count += 1;
        }
        assert_eq!(count, QUEUE_BYTES / OVERHEAD);
        outbox.close();
        assert!(!outbox.push_frame(vec![1]));
        outbox.push(Message::Ping(1));
        assert_eq!(outbox.bytes(), 0);
    }
}
