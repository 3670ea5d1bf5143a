//! VRRP: which of two nodes has the virtual addresses.
//!
//! Pure: [`packet`] (the codec), [`timing`], [`fsm`] (the state machine), and the frames and the schedule of
//! announcements (`announce`).
//!
//! Two threads, apart from the daemon's runtime, so that a busy daemon never misses an advertisement:
//!
//! - *heartbeat* (`heartbeat`): sends, receives, steps the state machines. It waits for nobody.
//! - *keeper* (`keeper`): watches the interfaces by netlink, puts the virtual addresses on and takes them off,
//!   announces them.
//!
//! The heartbeat's orders to the keeper are an atomic word for each virtual router; the keeper's news, and the
//! daemon's requests, come by a bounded queue; what is to be seen goes out by a watch, what is to be logged by a
//! bounded queue that drops what does not fit ([`Notice`]). [`Vrrp`] is the handle.

mod announce;
pub mod fsm;
mod handle;
mod heartbeat;
mod keeper;
mod netlink;
mod notice;
pub mod packet;
mod peer;
mod socket;
pub mod timing;
mod view;
mod wake;

pub use fsm::Phase;
pub use handle::Vrrp;
pub use heartbeat::{Claim, Missing, RequestError};
pub use notice::{Notice, NoticeReader};
pub use peer::{Peer, Words};
pub(crate) use timing::Moment;
pub use view::{Counters, PHASES, Refused, RouterView};
pub(crate) use wake::{clock, real_time};
