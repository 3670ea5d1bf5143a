//! The balancer's program in the kernel, packet by packet: a frame in, the verdict, the frame out, and every counter
//! that moved and no other. Frames out are read by etherparse. Needs root.

mod again;
mod drops;
mod echo;
mod flows;
mod fragments;
mod guard;
mod held;
mod icmp;
mod ip;
mod jumbo;
mod link;
mod modes;
mod nat;
mod neighbour;
mod passive;
mod ports;
mod quic;
mod quote;
mod reject;
mod rig;
mod schedulers;
mod transport;
