//! The devices of a machine.

pub mod reset;
pub mod serial;
pub mod virtio;
pub mod vmgenid;
