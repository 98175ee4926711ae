//! Which idle environments go first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Host, Key, Seat};
use crate::core::placement::{Load, Size};

/// The environments of a worker that may be given up, by what they were worth when last looked at. An environment's
/// worth grows when it is used and at no other time, so the order is corrected from the front as far as it is looked at.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    heap: BinaryHeap<Reverse<Candidate>>,
    /// How many of them have left.
    left: usize,
}

#[derive(Debug)]
struct Candidate {
    worth: (u64, u64, Key),
    seat: Arc<Seat>,
}

impl Candidates {
    pub(super) fn push(&mut self, seat: Arc<Seat>) {
        self.heap.push(Reverse(Candidate { worth: worth(&seat), seat }));
    }

    /// One of them has left; it is taken out when there are many.
    pub(super) fn left(&mut self) {
        self.left += 1;
        if self.left > 64 && self.left > self.heap.len() / 2 {
            self.heap.retain(|Reverse(candidate)| !has_left(&candidate.seat));
            self.left = 0;
        }
    }

    /// Takes out the least valuable one that is idle. Busy ones go to `busy`, to be put back.
    fn pop_idle(&mut self, busy: &mut Vec<Arc<Seat>>) -> Option<Arc<Seat>> {
        loop {
            let Reverse(candidate) = self.heap.pop()?;
            if has_left(&candidate.seat) {
                continue;
            }
            if !candidate.seat.idle.load(Ordering::Relaxed) {
                busy.push(candidate.seat);
            } else if worth(&candidate.seat) == candidate.worth {
                return Some(candidate.seat);
            } else {
                self.push(candidate.seat);
            }
        }
    }
}

/// The worker that loses the least, and the environments on it that have to go for `size`. They are no candidates any
/// more.
pub(super) fn choose(hosts: &mut [Host], idle: &[AtomicU32], size: Size) -> Option<Vec<Arc<Seat>>> {
    let mut busy = Vec::new();
    let mut order: Vec<((u64, u64, Key), usize)> = Vec::new();
    for (index, host) in hosts.iter_mut().enumerate() {
        let fits_when_empty = Load::default().has_room(&host.limits, size);
        if !fits_when_empty || idle[index].load(Ordering::Relaxed) == 0 {
            continue;
        }
        if let Some(first) = host.candidates.pop_idle(&mut busy) {
            order.push((worth(&first), index));
            host.candidates.push(first);
        }
    }
    order.sort_unstable();
    let chosen = order.into_iter().find_map(|(_, index)| enough(&mut hosts[index], size, &mut busy));
    for seat in busy {
        hosts[seat.worker].candidates.push(seat);
    }
    chosen
}

/// The least valuable environments of a worker that make room for `size` together; none where all of them do not.
fn enough(host: &mut Host, size: Size, busy: &mut Vec<Arc<Seat>>) -> Option<Vec<Arc<Seat>>> {
    let mut load = host.load;
    let mut chosen = Vec::new();
    while !load.has_room(&host.limits, size) {
        let Some(next) = host.candidates.pop_idle(busy) else {
            chosen.into_iter().for_each(|seat| host.candidates.push(seat));
            return None;
        };
        load.remove(next.want.size);
        chosen.push(next);
    }
    Some(chosen)
}

fn has_left(seat: &Seat) -> bool {
    seat.leaving.load(Ordering::Relaxed)
}

/// What comes first goes first.
fn worth(seat: &Seat) -> (u64, u64, Key) {
    (seat.worth.load(Ordering::Relaxed), seat.since.load(Ordering::Relaxed), seat.key())
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.worth.cmp(&other.worth)
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.worth == other.worth
    }
}

impl Eq for Candidate {}
