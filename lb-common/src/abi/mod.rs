//! Every map's name, key and value, once.
//!
//! All types are `repr(C)` without padding, their sizes asserted here; integers are in host order
//! unless a field says otherwise. The layout is part of the product: pinned maps outlive the program
//! that made them, so a change here changes [`hash`], and with it the directory the pins lie under.

mod address;
mod event;
mod flow;
mod held;
mod inventory;
mod passive;
mod slot;
mod types;
mod watch;

pub use address::{AddressEntry, AddressKey, ClaimEvent, Lease, Standing};
pub use event::{EventHeader, ResolveEvent};
pub use flow::{FlowEntry, FlowKey4, FlowKey6};
pub use held::{HELD_FRAME, HeldFrame, RESENT};
pub use inventory::*;
pub use passive::{Seen, Signal, Signals, SynCell};
pub use slot::{Slot, SlotState};
pub use types::*;
pub use watch::{Note, TraceEvent, Watch, WatchMode};
