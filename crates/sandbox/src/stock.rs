//! What is kept ready, of several kinds at once: how many of which, and which to give up.
//!
//! Decides and holds; makes nothing and drops nothing of what it gives back. The owner asks [`Stock::wanted`], makes one, and hands it in with
//! [`Stock::put`]. Time comes in as an argument.
//!
//! A kind begins with one. Each time none is left when one is wanted, the goal doubles; while nobody takes any, it halves after each
//! period of [`Bounds::patience`], and a kind whose goal was one is forgotten. A kind that could not be made rests, twice as long each time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long a kind rests that could not be made, at first: what was in the way is often gone at once.
const SHORTEST_REST: Duration = Duration::from_millis(250);
/// How long it rests at most.
const LONGEST_REST: Duration = Duration::from_secs(60);

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Most things of all kinds together.
    pub count: usize,
    /// Most memory that they may use together, in bytes.
    pub bytes: u64,
    /// After how long without demand a kind has its goal halved.
    pub patience: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds { count: 16, bytes: 1 << 30, patience: Duration::from_secs(600) }
    }
}

/// Ready things of type `T`, each of a kind `K`.
#[derive(Debug)]
pub(crate) struct Stock<K, T> {
    bounds: Bounds,
    kinds: Vec<Kind<K, T>>,
}

#[derive(Debug)]
struct Kind<K, T> {
    key: K,
    /// The oldest in front, with the bytes that each uses.
    ready: VecDeque<(T, u64)>,
    goal: usize,
    /// When one was wanted last, or the goal was halved.
    touched: Instant,
    /// Not to be made before this time: it failed.
    resting: Option<Instant>,
    /// How long it rested last; zero if one was made since.
    rest: Duration,
}

impl<K: Clone + PartialEq, T> Stock<K, T> {
    /// Nothing, which wants nothing.
    pub fn new(bounds: Bounds) -> Self {
        Stock { bounds, kinds: Vec::new() }
    }

    /// Remembers that there will be a demand for `key`.
    pub fn expect(&mut self, key: &K, now: Instant) {
        if self.bounds.count > 0 && !self.kinds.iter().any(|kind| kind.key == *key) {
            let (key, ready) = (key.clone(), VecDeque::new());
            self.kinds.push(Kind { key, ready, goal: 1, touched: now, resting: None, rest: Duration::ZERO });
        }
    }

    /// Takes one, the oldest first; remembers the demand.
    pub fn take(&mut self, key: &K, now: Instant) -> Option<T> {
        self.expect(key, now);
        let most = self.bounds.count;
        let kind = self.kinds.iter_mut().find(|kind| kind.key == *key)?;
        kind.touched = now;
        let taken = kind.ready.pop_front();
        if taken.is_none() {
            kind.goal = (kind.goal * 2).min(most);
        }
        taken.map(|(thing, _)| thing)
    }

    /// Of which kind there should be one more: the one that lacks most, in proportion; among equals, one that is soon made, as the
    /// others would wait for the rest; then the one wanted last. Makes room for it by giving up others that were wanted longer ago:
    /// they come back to be dropped.
    pub fn wanted(&mut self, now: Instant, is_soon_made: impl Fn(&K) -> bool) -> (Option<K>, Vec<T>) {
        let mut given_up = self.age(now);
        let lacking = self
            .kinds
            .iter()
            .enumerate()
            .filter(|(_, kind)| kind.ready.len() < kind.goal && kind.resting.is_none_or(|until| until <= now));
        // Fractions compared without division: ready / goal.
        let most = lacking.min_by(|(_, one), (_, two)| {
            let (left, right) = (one.ready.len() * two.goal, two.ready.len() * one.goal);
            let soon = is_soon_made(&two.key).cmp(&is_soon_made(&one.key));
            left.cmp(&right).then(soon).then(two.touched.cmp(&one.touched))
        });
        let Some((wanted, touched)) = most.map(|(at, kind)| (at, kind.touched)) else { return (None, given_up) };
        while self.is_full() {
            let others = self
                .kinds
                .iter_mut()
                .enumerate()
                .filter(|(at, kind)| *at != wanted && kind.touched < touched && !kind.ready.is_empty());
            let Some((_, oldest)) = others.min_by_key(|(_, kind)| kind.touched) else { return (None, given_up) };
            given_up.extend(oldest.ready.pop_front().map(|(thing, _)| thing));
            oldest.goal = oldest.ready.len().max(1);
        }
        (Some(self.kinds[wanted].key.clone()), given_up)
    }

    /// Adds one, with the memory that it uses; comes back when it is not wanted any more.
    pub fn put(&mut self, key: &K, thing: T, bytes: u64) -> Option<T> {
        let is_full = self.is_full();
        match self.kinds.iter_mut().find(|kind| kind.key == *key) {
            Some(kind) if kind.ready.len() < kind.goal && !is_full => {
                kind.ready.push_back((thing, bytes));
                (kind.resting, kind.rest) = (None, Duration::ZERO);
                None
            }
            _ => Some(thing),
        }
    }

    /// One could not be made: none of its kind is wanted for a while.
    pub fn rest(&mut self, key: &K, now: Instant) {
        if let Some(kind) = self.kinds.iter_mut().find(|kind| kind.key == *key) {
            kind.rest = (kind.rest * 2).clamp(SHORTEST_REST, LONGEST_REST);
            kind.resting = Some(now + kind.rest);
        }
    }

    /// When after `now` [`Stock::wanted`] has something new to say although nobody has asked for anything.
    pub fn next_change(&self, now: Instant) -> Option<Instant> {
        let ages = self.kinds.iter().map(|kind| kind.touched + self.bounds.patience);
        ages.chain(self.kinds.iter().filter_map(|kind| kind.resting)).filter(|at| *at > now).min()
    }

    /// Gives everything up and forgets all kinds.
    pub fn clear(&mut self) -> Vec<T> {
        self.kinds.drain(..).flat_map(|kind| kind.ready).map(|(thing, _)| thing).collect()
    }

    /// Gives up what `keep` does not want to keep.
    pub fn sift(&mut self, mut keep: impl FnMut(&mut T) -> bool) -> Vec<T> {
        let mut given_up = Vec::new();
        for kind in &mut self.kinds {
            for _ in 0..kind.ready.len() {
                let Some((mut thing, bytes)) = kind.ready.pop_front() else { break };
                if keep(&mut thing) {
                    kind.ready.push_back((thing, bytes));
                } else {
                    given_up.push(thing);
                }
            }
        }
        given_up
    }

    /// The kinds for which there is a demand.
    pub fn kinds(&self) -> impl Iterator<Item = &K> {
        self.kinds.iter().map(|kind| &kind.key)
    }

    /// How many things are ready.
    pub fn len(&self) -> usize {
        self.kinds.iter().map(|kind| kind.ready.len()).sum()
    }

    fn is_full(&self) -> bool {
        let bytes: u64 = self.kinds.iter().flat_map(|kind| &kind.ready).map(|(_, bytes)| bytes).sum();
        self.len() >= self.bounds.count || bytes >= self.bounds.bytes
    }

    fn age(&mut self, now: Instant) -> Vec<T> {
        let mut given_up = Vec::new();
        for kind in &mut self.kinds {
            kind.resting = kind.resting.filter(|until| *until > now);
            while now >= kind.touched + self.bounds.patience && kind.goal > 0 {
                kind.touched += self.bounds.patience;
                kind.goal /= 2;
            }
            while kind.ready.len() > kind.goal {
                given_up.extend(kind.ready.pop_front().map(|(thing, _)| thing));
            }
        }
        self.kinds.retain(|kind| kind.goal > 0);
        given_up
    }
}

#[cfg(test)]
mod tests;
