//! The users that VMM processes run as: one each, so that the kernel tells them apart.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// Hands out the users of a range.
#[derive(Debug)]
pub(super) struct Users {
    range: Range<u32>,
    taken: Mutex<Vec<bool>>,
}

/// A user while a process has it.
#[derive(Debug)]
pub(super) struct User {
    users: Arc<Users>,
    slot: usize,
}

impl Users {
    pub fn new(range: Range<u32>) -> Arc<Users> {
        Arc::new(Users { range, taken: Mutex::default() })
    }

    /// The lowest user that no process has. `None` if all have one.
    pub fn take(self: &Arc<Self>) -> Option<User> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = taken.iter().position(|taken| !taken).unwrap_or(taken.len());
        if slot >= self.range.len() {
            return None;
        }
        if slot == taken.len() {
            taken.push(true);
        } else {
            taken[slot] = true;
        }
        Some(User { users: Arc::clone(self), slot })
    }
}

impl User {
    pub fn id(&self) -> u32 {
        self.users.range.start + self.slot as u32
    }
}

impl Drop for User {
    fn drop(&mut self) {
        self.users.taken.lock().unwrap_or_else(PoisonError::into_inner)[self.slot] = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_unique_until_given_back() {
        let users = Users::new(5000..5002);
        let (one, two) = (users.take().unwrap(), users.take().unwrap());
        assert_eq!((one.id(), two.id()), (5000, 5001));
        assert!(users.take().is_none());
        drop(one);
        assert_eq!(users.take().unwrap().id(), 5000);
    }
}
