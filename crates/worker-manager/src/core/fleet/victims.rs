//! Which idle environments go first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::books::Host;
use super::{Fleet, Key, Seat};
use crate::core::placement::{Load, Size};

/// The environments of a worker that may be given up, by what they were worth when last looked at; busy ones by what they
/// would be worth next. What they are worth grows with each use, so it is enough to correct the order from the front,
/// as far as it is looked at.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    heap: BinaryHeap<Reverse<Candidate>>,
    /// How many of them have left.
    left: usize,
}

#[derive(Debug)]
struct Candidate {
    worth: Worth,
    seat: Arc<Seat>,
}

impl Candidates {
    /// One that is idle.
    fn push(&mut self, seat: Arc<Seat>) {
        self.heap.push(Reverse(Candidate { worth: worth(&seat), seat }));
    }

    /// One that is busy, or may be.
    pub(super) fn push_busy(&mut self, seat: Arc<Seat>, clock: &AtomicU64) {
        let (_, since, key) = worth(&seat);
        self.heap.push(Reverse(Candidate { worth: (seat.next_worth(clock), since, key), seat }));
    }

    /// One of them has left; it is taken out when there are many.
    pub(super) fn left(&mut self) {
        self.left += 1;
        if self.left > 64 && self.left > self.heap.len() / 2 {
            self.heap.retain(|Reverse(candidate)| !has_left(&candidate.seat));
            self.left = 0;
        }
    }

    /// What the least valuable one that is idle is worth; it is in front then. Busy ones go to `busy`, to be put back.
    fn first(&mut self, busy: &mut Vec<Arc<Seat>>) -> Option<Worth> {
        loop {
            let mut front = self.heap.peek_mut()?;
            let Reverse(candidate) = &mut *front;
            if has_left(&candidate.seat) {
                PeekMut::pop(front);
            } else if !candidate.seat.idle.load(Ordering::Relaxed) {
                let Reverse(candidate) = PeekMut::pop(front);
                busy.push(candidate.seat);
            } else {
                let now = worth(&candidate.seat);
                if candidate.worth == now {
                    return Some(now);
                }
                candidate.worth = now;
            }
        }
    }

    /// Takes out the least valuable one that is idle.
    fn pop_idle(&mut self, busy: &mut Vec<Arc<Seat>>) -> Option<Arc<Seat>> {
        self.first(busy)?;
        self.heap.pop().map(|Reverse(candidate)| candidate.seat)
    }
}

/// The worker that loses the least, and the environments on it that have to go for `size`. They are no candidates any
/// more.
pub(super) fn choose(hosts: &mut [Host], fleet: &Fleet, size: Size) -> Option<Vec<Arc<Seat>>> {
    let mut busy = Vec::new();
    let mut open: Vec<(Worth, usize)> = Vec::new();
    for (index, host) in hosts.iter_mut().enumerate() {
        let fits_when_empty = Load::default().has_room(&host.limits, size);
        if fits_when_empty
            && fleet.idle[index].load(Ordering::Relaxed) > 0
            && let Some(first) = host.candidates.first(&mut busy)
        {
            open.push((first, index));
        }
    }
    let mut chosen = None;
    while chosen.is_none()
        && let Some(at) = (0..open.len()).min_by_key(|at| open[*at].0)
    {
        let (_, index) = open.swap_remove(at);
        chosen = enough(&mut hosts[index], size, &mut busy);
    }
    for seat in busy {
        hosts[seat.worker].candidates.push_busy(seat, &fleet.clock);
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

/// What comes first goes first: by worth, and the longest idle of those that are worth the same.
type Worth = (u64, u64, Key);

fn worth(seat: &Seat) -> Worth {
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
