//! The users that sandboxes run as: one each, so that the kernel tells their processes and files apart.

use std::sync::{Arc, Mutex, PoisonError};

/// Where ranges begin and end on a host that has all users: above what hosts give to people, services and containers,
/// below what programs with signed numbers take for negative.
const PREFERRED: std::ops::Range<u32> = 1 << 30..1 << 31;
/// The user inside a user namespace, where only one can be mapped: Lambda's.
pub(super) use supervisor::MAPPED_UID;

/// Hands out the users of a range.
#[derive(Debug)]
pub(super) struct Identities {
    /// `None` without root: everything runs as one user, apart in user namespaces.
    first: Option<u32>,
    taken: Mutex<Vec<bool>>,
    max: u32,
}

/// A user while a sandbox has it.
#[derive(Debug)]
pub(super) struct Identity {
    identities: Arc<Identities>,
    slot: u32,
}

impl Identities {
    /// A range from `first` on, or else one among the users that `map` has, picked by `seed` (see [`free_range`]).
    pub fn new(root: bool, first: Option<u32>, map: &str, seed: u32, max: u32) -> Identities {
        let first = root.then(|| first.unwrap_or_else(|| free_range(map, seed, max)));
        Identities { first, taken: Mutex::default(), max }
    }

    /// The lowest user that no sandbox has. `None` if all have one.
    pub fn take(self: &Arc<Self>) -> Option<Identity> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = taken.iter().position(|taken| !taken).unwrap_or(taken.len());
        if slot >= self.max as usize {
            return None;
        }
        if slot == taken.len() {
            taken.push(true);
        } else {
            taken[slot] = true;
        }
        Some(Identity { identities: Arc::clone(self), slot: slot as u32 })
    }
}

impl Identity {
    /// The user to become, in the host's numbers; `None` if there is nothing to become.
    pub fn uid(&self) -> Option<u32> {
        self.identities.first.map(|first| first + self.slot)
    }

    /// The user as the sandbox sees it.
    pub fn uid_inside(&self) -> u32 {
        self.uid().unwrap_or(MAPPED_UID)
    }

    /// A host name in the form of Lambda's, different for sandboxes that live at the same time.
    pub fn hostname(&self) -> String {
        format!("169-254-{}-{}", (self.slot >> 8) & 0xff, self.slot & 0xff)
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        let mut taken = self.identities.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken[self.slot as usize] = false;
    }
}

/// The first user of a range of `length` among those that `map` (`/proc/self/uid_map`: inside, outside, count) has. The
/// process number of a supervisor as `seed` picks the range, so that two servers on a host do not share users.
fn free_range(map: &str, seed: u32, length: u32) -> u32 {
    let ends = map.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().map(str::parse::<u64>);
        let (Some(Ok(first)), Some(Ok(_)), Some(Ok(count))) = (fields.next(), fields.next(), fields.next()) else {
            return None;
        };
        Some(first.saturating_add(count))
    });
    let end = ends.max().unwrap_or(u64::from(u32::MAX));
    if end >= PREFERRED.end.into() {
        let ranges = (PREFERRED.end - PREFERRED.start) / length.max(1);
        return PREFERRED.start + seed % ranges.max(1) * length;
    }
    // In a container: the upper end, but never user 0.
    u32::try_from(end.saturating_sub(length.into()).max(1)).unwrap_or(PREFERRED.start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_is_one_of_many_on_a_host_that_has_all_users() {
        let all = "         0          0 4294967295\n";
        assert_eq!(free_range(all, 0, 16_384), 1 << 30);
        assert_eq!(free_range(all, 2, 16_384), (1 << 30) + 2 * 16_384);
        assert_eq!(free_range(all, 65_536 + 2, 16_384), (1 << 30) + 2 * 16_384);
        assert_eq!(free_range(all, 65_535, 16_384), (1 << 31) - 16_384);
    }

    #[test]
    fn range_ends_where_the_users_of_a_container_do() {
        assert_eq!(free_range("0 100000 65536\n", 7, 16_384), 65_536 - 16_384);
        assert_eq!(free_range("0 1000 1\n", 7, 16_384), 1);
    }

    #[test]
    fn users_are_unique_until_given_back() {
        let identities = Arc::new(Identities::new(true, Some(5000), "", 0, 2));
        let (one, two) = (identities.take().unwrap(), identities.take().unwrap());
        assert_eq!((one.uid(), two.uid()), (Some(5000), Some(5001)));
        assert!(identities.take().is_none());
        drop(one);
        assert_eq!(identities.take().unwrap().uid(), Some(5000));
    }
}
