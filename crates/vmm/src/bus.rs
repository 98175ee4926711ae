//! Which device answers at which address: one [`Bus`] for memory-mapped devices, one for ports.

use std::sync::{Arc, Mutex, PoisonError};

/// A device that answers at addresses. Called by vCPU threads, one at a time.
pub trait BusDevice: Send {
    /// Reads at `offset` from the device's first address. `data` arrives zeroed and has 1 to 8 bytes.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Writes at `offset` from the device's first address.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// Ranges of addresses and the devices behind them. Filled before the vCPUs run, then only read.
#[derive(Default)]
pub struct Bus {
    /// In the order of addresses, not overlapping.
    windows: Vec<Window>,
}

struct Window {
    base: u64,
    bytes: u64,
    device: Arc<Mutex<dyn BusDevice>>,
}

/// A device would overlap another one, or the end of the address space.
#[derive(Debug, thiserror::Error)]
#[error("a device of {bytes} bytes at {base:#x} overlaps another one")]
pub struct OverlapError {
    base: u64,
    bytes: u64,
}

impl Bus {
    /// A bus without devices.
    pub fn new() -> Bus {
        Bus::default()
    }

    /// Puts a device at `bytes` addresses from `base`.
    pub fn insert(&mut self, base: u64, bytes: u64, device: Arc<Mutex<dyn BusDevice>>) -> Result<(), OverlapError> {
        let overlap = OverlapError { base, bytes };
        let Some(end) = base.checked_add(bytes).filter(|_| bytes > 0) else { return Err(overlap) };
        let place = self.windows.partition_point(|window| window.base < base);
        let before = place.checked_sub(1).map(|index| &self.windows[index]);
        let is_free = before.is_none_or(|window| window.base + window.bytes <= base)
            && self.windows.get(place).is_none_or(|window| end <= window.base);
        if !is_free {
            return Err(overlap);
        }
        self.windows.insert(place, Window { base, bytes, device });
        Ok(())
    }

    /// Reads at an address; `false` if nobody answers there, and `data` is as it was.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        let Some((window, offset)) = self.find(address, data.len()) else { return false };
        data.fill(0);
        window.device.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
        true
    }

    /// Writes at an address; `false` if nobody answers there.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        let Some((window, offset)) = self.find(address, data.len()) else { return false };
        window.device.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
        true
    }

    /// The device that has all of the `length` addresses.
    fn find(&self, address: u64, length: usize) -> Option<(&Window, u64)> {
        let index = self.windows.partition_point(|window| window.base <= address).checked_sub(1)?;
        let window = &self.windows[index];
        let offset = address - window.base;
        let end = offset.checked_add(length as u64)?;
        (end <= window.bytes).then_some((window, offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Remembers what was written, and reads as the offset.
    #[derive(Default)]
    struct Recorder(Vec<(u64, Vec<u8>)>);

    impl BusDevice for Recorder {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data[0] = offset as u8;
        }

        fn write(&mut self, offset: u64, data: &[u8]) {
            self.0.push((offset, data.to_vec()));
        }
    }

    fn recorder() -> Arc<Mutex<Recorder>> {
        Arc::default()
    }

    #[test]
    fn an_access_reaches_the_device_at_its_offset() {
        let (first, second) = (recorder(), recorder());
        let mut bus = Bus::new();
        bus.insert(0x2000, 0x1000, second.clone()).unwrap();
        bus.insert(0x1000, 0x1000, first.clone()).unwrap();
        let mut data = [9, 9];
        assert!(bus.read(0x1004, &mut data));
        assert_eq!(data, [4, 0]);
        assert!(bus.write(0x2ffc, &[1, 2, 3, 4]));
        assert!(first.lock().unwrap().0.is_empty());
        assert_eq!(second.lock().unwrap().0, [(0xffc, vec![1, 2, 3, 4])]);
    }

    #[test]
    fn what_nobody_has_all_of_is_not_answered() {
        let mut bus = Bus::new();
        bus.insert(0x1000, 0x1000, recorder()).unwrap();
        let mut data = [7; 4];
        for address in [0, 0xfff, 0x1ffd, 0x2000, u64::MAX, u64::MAX - 3] {
            assert!(!bus.read(address, &mut data), "{address:#x}");
            assert!(!bus.write(address, &data), "{address:#x}");
        }
        assert_eq!(data, [7; 4]);
    }

    #[test]
    fn overlaps_are_refused() {
        let mut bus = Bus::new();
        bus.insert(0x1000, 0x1000, recorder()).unwrap();
        bus.insert(0x3000, 0x1000, recorder()).unwrap();
        for (base, bytes) in [(0x1000, 1), (0x1fff, 1), (0x800, 0x801), (0x1800, 0x1900), (5, 0), (u64::MAX, 2)] {
            assert!(bus.insert(base, bytes, recorder()).is_err(), "{base:#x}");
        }
        bus.insert(0x2000, 0x1000, recorder()).unwrap();
    }
}
