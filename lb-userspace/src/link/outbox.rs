//! What waits to be sent to one peer: in order, bounded.

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
    items: VecDeque<Item>,
    bytes: usize,
    /// Messages other than frames: they let the bandwidth's limit go until they are sent.
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

    /// Behind what waits already. The link's own words are few: they need no room.
    pub(super) fn push(&self, message: Message) {
        self.push_item(Item::Message(message));
    }

    pub(super) fn push_switch(&self, message: Message, session: Session) {
        self.push_item(Item::Switch(message, Box::new(session)));
    }

    fn push_item(&self, item: Item) {
        let mut queue = self.lock();
        if queue.closed {
            return;
        }
        queue.urgent += 1;
        queue.items.push_back(item);
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
        let item = queue.items.pop_front()?;
        match &item {
            Item::Frame(frame) => queue.bytes -= frame.len() + OVERHEAD,
            Item::Message(_) | Item::Switch(..) => queue.urgent -= 1,
        }
        let room = queue.refused && queue.bytes <= QUEUE_BYTES / 2;
        queue.refused &= !room;
        Some((item, room))
    }

    /// Whether a word of the link waits, be it behind frames.
    pub(super) fn is_urgent(&self) -> bool {
        self.words() > 0
    }

    /// Words of the link that wait.
    pub(super) fn words(&self) -> usize {
        self.lock().urgent
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
        (queue.bytes, queue.urgent) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_are_bounded_and_in_order_with_words() {
        let outbox = Outbox::default();
        let frame = vec![7; 60_000];
        let mut taken = 0;
        while outbox.push_frame(frame.clone()) {
            taken += 1;
        }
        assert_eq!(taken, QUEUE_BYTES / (60_000 + OVERHEAD));
        assert!(!outbox.is_urgent());
        outbox.push(Message::Ping(5));
        assert!(outbox.is_urgent());
        let mut told = 0;
        for _ in 0..taken {
            let (item, room) = outbox.pop().await;
            assert!(matches!(item, Item::Frame(_)));
            told += usize::from(room);
        }
        assert_eq!(told, 1, "room is told once");
        assert!(matches!(outbox.pop().await, (Item::Message(Message::Ping(5)), false)));
        assert_eq!((outbox.bytes(), outbox.is_urgent()), (0, false));
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
