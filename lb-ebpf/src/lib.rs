//! The XDP programs of lbd: thin shells around `lb_common::core`.
//!
//! All `unsafe` of the dataplane lives here: [`frame`] proves the bounds, [`maps`] holds every map,
//! [`tables`] and [`guard`] lend the maps to the core, [`emit`] counts and sends, [`observe`] tells of what they did.
#![no_std]
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "the compare-and-exchange of BPF is in no stable interface of `core`")]

mod atomic;
pub mod emit;
mod emit_nat;
pub mod frame;
pub mod guard;
pub mod hold;
pub mod maps;
pub mod observe;
pub mod outline;
pub mod outline_address;
pub mod outline_nat;
pub mod tables;
mod tables_nat;
