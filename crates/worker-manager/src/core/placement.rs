//! Which worker an environment goes to: the fullest that still has room, so that what is left stays in one piece.

/// What an environment takes of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Memory in MiB, the function's configured size.
    pub memory_mb: u32,
    /// Thousandths of a processor.
    pub cpu_millis: u32,
}

impl Size {
    /// An environment with so much memory; processor time follows from it, as Lambda has it: one at 1,769 MB.
    pub fn of_memory(memory_mb: u32) -> Self {
        let cpu_millis = u64::from(memory_mb) * 1_000 / 1_769;
        Self { memory_mb, cpu_millis: u32::try_from(cpu_millis).unwrap_or(u32::MAX) }
    }

    /// Whether whatever has room for `other` has room for this.
    pub(crate) fn is_within(self, other: Self) -> bool {
        self.memory_mb <= other.memory_mb && self.cpu_millis <= other.cpu_millis
    }
}

/// What a worker can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerLimits {
    /// Environments.
    pub environments: u32,
    /// Memory in MiB that may be promised to environments; `u64::MAX` where it does not matter how much is.
    pub memory_mb: u64,
    /// Thousandths of processors that may be promised; `u64::MAX` where it does not matter.
    pub cpu_millis: u64,
    /// So many environments may be on their way out without counting, so that a full worker does not make the next
    /// one wait for a teardown. 0 keeps the limits strictly.
    pub overlap: u32,
}

impl WorkerLimits {
    /// No limit but the number of environments.
    pub fn of_environments(environments: u32) -> Self {
        Self { environments, memory_mb: u64::MAX, cpu_millis: u64::MAX, overlap: 0 }
    }
}

/// What is taken of a worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) environments: u32,
    pub(crate) memory_mb: u64,
    pub(crate) cpu_millis: u64,
}

impl Load {
    pub(crate) fn add(&mut self, size: Size) {
        self.environments += 1;
        self.memory_mb += u64::from(size.memory_mb);
        self.cpu_millis += u64::from(size.cpu_millis);
    }

    pub(crate) fn remove(&mut self, size: Size) {
        self.environments -= 1;
        self.memory_mb -= u64::from(size.memory_mb);
        self.cpu_millis -= u64::from(size.cpu_millis);
    }

    /// Whether there is room for one more.
    pub(crate) fn has_room(&self, limits: &WorkerLimits, size: Size) -> bool {
        self.environments < limits.environments
            && self.memory_mb.saturating_add(u64::from(size.memory_mb)) <= limits.memory_mb
            && self.cpu_millis.saturating_add(u64::from(size.cpu_millis)) <= limits.cpu_millis
    }

    /// How much is left, as a share of the whole: 0 when full, of the resource that is scarcest.
    fn left(&self, limits: &WorkerLimits) -> f64 {
        let share = |used: u64, limit: u64| 1.0 - used as f64 / limit.max(1) as f64;
        share(u64::from(self.environments), u64::from(limits.environments))
            .min(share(self.memory_mb, limits.memory_mb))
            .min(share(self.cpu_millis, limits.cpu_millis))
    }
}

/// The fullest worker with room for `size`; the first among equals.
pub(crate) fn best_fit<'a>(workers: impl Iterator<Item = (&'a WorkerLimits, &'a Load)>, size: Size) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (index, (limits, load)) in workers.enumerate() {
        if load.has_room(limits, size) {
            let left = load.left(limits);
            if best.is_none_or(|(_, least)| left < least) {
                best = Some((index, left));
            }
        }
    }
    best.map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_follows_memory() {
        assert_eq!(Size::of_memory(1_769).cpu_millis, 1_000);
        assert_eq!(Size::of_memory(128).cpu_millis, 72);
        assert_eq!(Size::of_memory(10_240).cpu_millis, 5_788);
    }

    #[test]
    fn the_fullest_with_room_is_taken_so_that_a_large_one_still_finds_a_place() {
        let limits = WorkerLimits { environments: 10, memory_mb: 1_024, cpu_millis: u64::MAX, overlap: 0 };
        let mut loads = [Load::default(); 3];
        let place = |loads: &mut [Load; 3], memory_mb: u32| {
            let size = Size::of_memory(memory_mb);
            let found = best_fit(loads.iter().map(|load| (&limits, load)), size)?;
            loads[found].add(size);
            Some(found)
        };
        assert_eq!(place(&mut loads, 512), Some(0));
        assert_eq!(place(&mut loads, 1_024), Some(1));
        assert_eq!(place(&mut loads, 256), Some(0));
        assert_eq!(place(&mut loads, 512), Some(2));
        assert_eq!(place(&mut loads, 256), Some(0));
        assert_eq!(place(&mut loads, 1_024), None);
        assert_eq!(place(&mut loads, 512), Some(2));
        assert_eq!(place(&mut loads, 1), None);
    }

    #[test]
    fn the_number_of_environments_is_a_limit_as_memory_is() {
        let limits = WorkerLimits::of_environments(1);
        let mut load = Load::default();
        assert!(load.has_room(&limits, Size::of_memory(10_240)));
        load.add(Size::of_memory(128));
        assert!(!load.has_room(&limits, Size::of_memory(128)));
        load.remove(Size::of_memory(128));
        assert_eq!(load, Load::default());
    }
}
