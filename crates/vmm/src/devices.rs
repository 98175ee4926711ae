//! The devices of a machine.

pub mod virtio;
