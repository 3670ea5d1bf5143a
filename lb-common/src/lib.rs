//! What the kernel program, the daemon and the tests share: the layout of every map ([`abi`]), the
//! header layouts ([`wire`]), and the forwarding decision itself ([`core`]), as `no_std` code that
//! takes bytes and tables and returns data.
//!
//! The arrows between the rooms: `abi` and `wire` know nobody, `core` knows both.
#![no_std]

#[cfg(any(test, feature = "user"))]
extern crate std;

pub mod abi;
pub mod core;
pub mod csum;
pub mod hash;
pub mod packet;
pub mod wire;
