//! VRRP: which of two nodes has the virtual addresses.
//!
//! Pure: `packet` (the codec), `timing`, `fsm` (the state machine).

pub mod fsm;
pub mod packet;
pub mod timing;
