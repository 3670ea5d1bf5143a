//! The XDP programs of lbd: thin shells around `lb_common::core`.
//!
//! All `unsafe` of the dataplane lives here: [`frame`] proves the bounds, [`maps`] holds every map,
//! [`tables`] lends the maps to the core, [`emit`] counts and sends.
#![no_std]
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "the compare-and-exchange of BPF is in no stable interface of `core`")]

mod atomic;
pub mod emit;
pub mod frame;
pub mod maps;
pub mod outline;
pub mod tables;
