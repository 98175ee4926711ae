//! Few things, small bounds, and times that are counted from one start.

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const BOUNDS: Bounds = Bounds { count: 6, bytes: 100, patience: Duration::from_secs(10) };

/// Makes what is wanted until nothing is; each thing uses `bytes`.
fn fill(stock: &mut Stock<&'static str, u32>, now: Instant, bytes: u64) -> Vec<u32> {
    let mut given_up = Vec::new();
    for number in 0..100 {
        let (wanted, dropped) = stock.wanted(now, |_| false);
        given_up.extend(dropped);
        let Some(key) = wanted else { return given_up };
        given_up.extend(stock.put(&key, number, bytes));
    }
    panic!("it never has enough");
}

#[test]
fn goals_double_with_every_miss_and_halve_with_time() {
    let (mut stock, start) = (Stock::new(BOUNDS), Instant::now());
    assert_eq!(stock.wanted(start, |_| false).0, None);
    stock.expect(&"a", start);
    fill(&mut stock, start, 1);
    assert_eq!(stock.len(), 1);
    assert_eq!(stock.take(&"a", start), Some(0));
    // Nobody had to do without: one is enough.
    fill(&mut stock, start, 1);
    assert_eq!(stock.len(), 1);
    assert!(
        stock.take(&"a", start).is_some() && stock.take(&"a", start).is_none() && stock.take(&"a", start).is_none()
    );
    fill(&mut stock, start, 1);
    assert_eq!(stock.len(), 4);

    assert_eq!(stock.next_change(start), Some(start + 10 * SECOND));
    assert_eq!(stock.next_change(start + 10 * SECOND), None);
    assert_eq!(fill(&mut stock, start + 9 * SECOND, 1).len(), 0);
    assert_eq!(fill(&mut stock, start + 10 * SECOND, 1).len(), 2);
    assert_eq!(fill(&mut stock, start + 20 * SECOND, 1).len(), 1);
    assert_eq!((fill(&mut stock, start + 30 * SECOND, 1).len(), stock.len(), stock.next_change(start)), (1, 0, None));
}

#[test]
fn what_was_wanted_longer_ago_makes_room() {
    let (mut stock, start) = (Stock::new(BOUNDS), Instant::now());
    for _ in 0..3 {
        stock.take(&"old", start);
    }
    fill(&mut stock, start, 1);
    assert_eq!(stock.len(), 6);
    stock.take(&"new", start + SECOND);
    assert_eq!(fill(&mut stock, start + SECOND, 1).len(), 2);
    assert_eq!(stock.len(), 6);
    assert!(stock.take(&"new", start + SECOND).is_some() && stock.take(&"old", start + SECOND).is_some());
}

#[test]
fn memory_is_bounded_too() {
    let (mut stock, start) = (Stock::new(BOUNDS), Instant::now());
    for _ in 0..3 {
        stock.take(&"large", start);
    }
    fill(&mut stock, start, 50);
    assert_eq!(stock.len(), 2);
}

#[test]
fn a_kind_that_cannot_be_made_rests() {
    let bounds = Bounds { patience: 600 * SECOND, ..BOUNDS };
    let (mut stock, start) = (Stock::<_, u32>::new(bounds), Instant::now());
    stock.take(&"bad", start);
    let mut now = start;
    let rests = [250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000].map(Duration::from_millis);
    for rest in rests {
        stock.rest(&"bad", now);
        assert_eq!(stock.wanted(now, |_| false).0, None);
        assert_eq!(stock.next_change(now), Some(now + rest));
        now += rest;
        // Nobody has lost interest meanwhile.
        stock.take(&"bad", now);
        assert_eq!(stock.wanted(now, |_| false).0, Some("bad"));
    }
    // Once one could be made, the next failure is the first again.
    assert_eq!(stock.put(&"bad", 1, 1), None);
    stock.take(&"bad", now);
    stock.rest(&"bad", now);
    assert_eq!(stock.next_change(now), Some(now + rests[0]));
}

#[test]
fn what_is_put_unasked_or_found_dead_comes_back() {
    let (mut stock, start) = (Stock::new(BOUNDS), Instant::now());
    assert_eq!(stock.put(&"a", 1, 1), Some(1));
    stock.take(&"a", start);
    fill(&mut stock, start, 1);
    assert_eq!(stock.put(&"a", 7, 1), Some(7));
    assert_eq!(stock.sift(|thing| *thing != 0), [0]);
    assert_eq!((stock.len(), stock.wanted(start, |_| false).0), (1, Some("a")));
    assert_eq!((stock.clear(), stock.wanted(start, |_| false).0), (vec![1], None));
}

#[test]
fn of_size_zero_it_wants_nothing() {
    let (mut stock, now) = (Stock::<_, u32>::new(Bounds { count: 0, ..BOUNDS }), Instant::now());
    assert_eq!((stock.take(&"a", now), stock.wanted(now, |_| false).0, stock.next_change(now)), (None, None, None));
}

#[test]
fn among_equals_what_is_soon_made_comes_first() {
    let (mut stock, start) = (Stock::<_, u8>::new(Bounds::default()), Instant::now());
    for (after, key) in [(0, "quick"), (1, "slow")] {
        assert_eq!(stock.take(&key, start + after * SECOND), None);
    }
    let now = start + 2 * SECOND;
    assert_eq!(stock.wanted(now, |_| false).0, Some("slow"), "the one wanted last");
    assert_eq!(stock.wanted(now, |key| *key == "quick").0, Some("quick"));
    // What lacks more comes first all the same.
    assert_eq!(stock.put(&"quick", 1, 1), None);
    assert_eq!(stock.wanted(now, |key| *key == "quick").0, Some("slow"));
}
