//! Work on numbered pieces by all cores: threads that live as long as one call.

use std::num::NonZero;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// More threads than this only wait for memory.
const MAX_THREADS: usize = 8;

/// Does `work` for each number below `count`, in rising order of their beginnings, on up to [`MAX_THREADS`] threads. Each
/// thread makes its own `scratch` once. After an error no further piece is begun, and the first one seen is returned.
pub(super) fn for_each<S, E: Send>(
    count: usize,
    scratch: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, usize) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let threads = thread::available_parallelism().map_or(1, NonZero::get).min(MAX_THREADS).min(count);
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None);
    let run = || {
        let mut own = scratch();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return;
            }
            if let Err(error) = work(&mut own, index) {
                next.store(count, Ordering::Relaxed);
                failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(error);
                return;
            }
        }
    };
    thread::scope(|scope| {
        // A thread that cannot be started is missed by nobody: this one goes on until all pieces are done.
        for _ in 1..threads {
            let _ = thread::Builder::new().name("snapshot".into()).spawn_scoped(scope, run);
        }
        run();
    });
    failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_is_done_once() {
        let done: Vec<AtomicUsize> = (0..1000).map(|_| AtomicUsize::new(0)).collect();
        let count = |(): &mut (), index: usize| {
            done[index].fetch_add(1, Ordering::Relaxed);
            Ok::<(), ()>(())
        };
        for_each(done.len(), || (), count).unwrap();
        assert!(done.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        for_each(0, || (), |(), _| Err(())).unwrap();
    }

    #[test]
    fn after_an_error_nothing_is_begun() {
        let begun = AtomicUsize::new(0);
        let fail_late = |(): &mut (), index| {
            begun.fetch_add(1, Ordering::Relaxed);
            if index >= 10 { Err(index) } else { Ok(()) }
        };
        assert!(for_each(1_000_000, || (), fail_late).unwrap_err() >= 10);
        assert!(begun.load(Ordering::Relaxed) <= 10 + MAX_THREADS);
    }
}
