//! How a guest ends its machine: by the keyboard controller's reset command, or by ACPI's sleep control register.

use std::sync::Arc;

use crate::bus::BusDevice;
use crate::config::Exit;
use crate::vcpu::Outcome;

/// A register that ends the machine when the right value is written to it; reads as zero, which tells a driver of a
/// keyboard controller that it is idle.
pub struct Reset {
    outcome: Arc<Outcome>,
    mask: u8,
    value: u8,
}

impl Reset {
    /// Takes a byte that is `value` where `mask` has ones.
    pub fn new(outcome: Arc<Outcome>, mask: u8, value: u8) -> Reset {
        Reset { outcome, mask, value }
    }
}

impl BusDevice for Reset {
    fn read(&mut self, _: u64, _: &mut [u8]) {}

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset == 0 && data.first().is_some_and(|byte| byte & self.mask == self.value) {
            self.outcome.set(Exit::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_value_ends_the_machine() {
        let outcome = Arc::new(Outcome::new().unwrap());
        let mut reset = Reset::new(Arc::clone(&outcome), 0xff, 0xfe);
        reset.write(0, &[0xfd]);
        reset.write(1, &[0xfe]);
        reset.write(0, &[]);
        assert_eq!(outcome.take(), None);
        let mut status = [0];
        reset.read(0, &mut status);
        assert_eq!(status, [0]);
        reset.write(0, &[0xfe]);
        assert_eq!(outcome.take(), Some(Exit::Reset));
    }

    #[test]
    fn the_first_end_is_believed() {
        let outcome = Arc::new(Outcome::new().unwrap());
        outcome.set(Exit::Crashed("first".into()));
        outcome.set(Exit::Reset);
        assert_eq!(outcome.fd().read().unwrap(), 1);
        assert_eq!(outcome.take(), Some(Exit::Crashed("first".into())));
        assert_eq!(outcome.take(), None);
    }
}
