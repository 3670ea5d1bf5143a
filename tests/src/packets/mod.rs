//! Packets by description: a builder that can lie, a generator of millions, and a check by a parser that is not ours.
//!
//! Nothing here uses `lb_common`: offsets, numbers and checksums are written down a second time on purpose.

mod build;
pub mod check;
mod garbage;
mod generate;
mod pieces;

pub use build::{Extension, Net, Packet, Tcp, Transport, Udp, V4, V6, checksum};
pub use generate::{Generator, Rng};

/// EtherType of an 802.1Q tag, and of an 802.1ad one.
pub const DOT1Q: u16 = 0x8100;
/// See [`DOT1Q`].
pub const DOT1AD: u16 = 0x88a8;

/// TCP flags.
pub const FIN: u8 = 0x01;
/// See [`FIN`].
pub const SYN: u8 = 0x02;
/// See [`FIN`].
pub const RST: u8 = 0x04;
/// See [`FIN`].
pub const ACK: u8 = 0x10;

/// A frame as hexadecimal, sixteen bytes a line, and as etherparse reads it.
#[must_use]
pub fn describe(frame: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = format!("{} bytes\n", frame.len());
    for (i, line) in frame.chunks(16).enumerate() {
        let _ = write!(text, "  {:04x} ", i * 16);
        for byte in line {
            let _ = write!(text, " {byte:02x}");
        }
        text.push('\n');
    }
    match etherparse::LaxPacketHeaders::from_ethernet(frame) {
        Ok(headers) => {
            let _ = write!(
                text,
                "  link {:?}\n  tags {:?}\n  net {:?}\n  transport {:?}\n  stopped at {:?}",
                headers.link, headers.link_exts, headers.net, headers.transport, headers.stop_err
            );
        }
        Err(error) => {
            let _ = write!(text, "  etherparse: {error}");
        }
    }
    text
}
