//! Places against a model that counts them one by one.

use proptest::prelude::*;

use super::*;

#[test]
fn a_reservation_is_a_ceiling_and_a_floor() {
    let account = Arc::new(Account::new(10));
    let (reserved, other) = (Gate::new(&account), Gate::new(&account));
    reserved.set(Concurrency::Reserved(3));
    account.keep(3);
    let pooled: Vec<Ticket> = std::iter::from_fn(|| other.enter().ok()).collect();
    assert_eq!(pooled.len(), 7);
    assert_eq!(other.enter().unwrap_err(), ThrottleReason::AccountConcurrency);
    let own: Vec<Ticket> = std::iter::from_fn(|| reserved.enter().ok()).collect();
    assert_eq!(own.len(), 3);
    assert_eq!(reserved.enter().unwrap_err(), ThrottleReason::FunctionConcurrency);
    assert_eq!(account.in_flight(), 10);
    drop((pooled, own));
    assert_eq!(account.in_flight(), 0);
}

#[test]
fn zero_lets_nothing_in_and_its_end_everything() {
    let account = Arc::new(Account::new(10));
    let gate = Gate::new(&account);
    let before = gate.enter().unwrap();
    gate.set(Concurrency::Reserved(0));
    assert_eq!(gate.enter().unwrap_err(), ThrottleReason::FunctionConcurrency);
    gate.set(Concurrency::default());
    let after = gate.enter().unwrap();
    drop((before, after));
    assert_eq!(account.in_flight(), 0);
}

#[test]
fn kept_places_come_before_those_of_the_pool() {
    let account = Arc::new(Account::new(5));
    let (keeper, other) = (Gate::new(&account), Gate::new(&account));
    keeper.set(Concurrency::Shared { kept: 2 });
    account.keep(2);
    let mut tickets: Vec<Ticket> = std::iter::from_fn(|| other.enter().ok()).collect();
    assert_eq!(tickets.len(), 3);
    tickets.extend(std::iter::from_fn(|| keeper.enter().ok()));
    assert_eq!(tickets.len(), 5);
    assert_eq!(keeper.enter().unwrap_err(), ThrottleReason::AccountConcurrency);
    drop(tickets.remove(0));
    assert!(keeper.enter().is_ok(), "more than it keeps comes from the pool");
}

#[derive(Debug, Clone)]
enum Step {
    Enter(usize),
    /// Ends the invocation with this index among those in flight.
    Leave(usize),
    Set(usize, Concurrency),
}

const LIMIT: u32 = 8;
const FUNCTIONS: usize = 3;

fn step() -> impl Strategy<Value = Step> {
    let setting = prop_oneof![
        Just(Concurrency::default()),
        (0..4_u32).prop_map(|kept| Concurrency::Shared { kept }),
        (0..4_u32).prop_map(Concurrency::Reserved),
    ];
    prop_oneof![
        6 => (0..FUNCTIONS).prop_map(Step::Enter),
        4 => (0..32_usize).prop_map(Step::Leave),
        1 => (0..FUNCTIONS, setting).prop_map(|(function, setting)| Step::Set(function, setting)),
    ]
}

proptest! {
    #[test]
    fn behaves_as_the_model(steps in proptest::collection::vec(step(), 1..120)) {
        let account = Arc::new(Account::new(LIMIT));
        let gates: Vec<Arc<Gate>> = (0..FUNCTIONS).map(|_| Gate::new(&account)).collect();
        let mut settings = [Concurrency::default(); FUNCTIONS];
        // Of each in flight: its function, and whether its place is the function's own.
        let mut flights: Vec<(usize, bool, Ticket)> = Vec::new();
        for step in steps {
            match step {
                Step::Enter(function) => {
                    let of = |own: bool| flights.iter().filter(|(f, o, _)| *f == function && *o == own).count() as u32;
                    let pooled = flights.iter().filter(|(_, own, _)| !own).count() as u32;
                    let kept: u32 = settings.iter().map(|setting| setting.kept()).sum();
                    let full = flights.len() as u32 >= LIMIT;
                    let pool_left = pooled < LIMIT.saturating_sub(kept);
                    let expected = match settings[function] {
                        Concurrency::Reserved(places) if of(true) + of(false) >= places =>
                            Err(ThrottleReason::FunctionConcurrency),
                        Concurrency::Reserved(_) if full => Err(ThrottleReason::AccountConcurrency),
                        Concurrency::Reserved(_) => Ok(true),
                        Concurrency::Shared { kept } if of(true) < kept && !full => Ok(true),
                        Concurrency::Shared { kept } if of(true) >= kept && pool_left && !full => Ok(false),
                        Concurrency::Shared { .. } => Err(ThrottleReason::AccountConcurrency),
                    };
                    let entered = gates[function].enter();
                    prop_assert_eq!(entered.as_ref().map(|ticket| ticket.own).map_err(|reason| *reason), expected);
                    if let Ok(ticket) = entered {
                        flights.push((function, ticket.own, ticket));
                    }
                }
                Step::Leave(index) if index < flights.len() => drop(flights.swap_remove(index)),
                Step::Leave(_) => {}
                Step::Set(function, setting) => {
                    settings[function] = setting;
                    gates[function].set(setting);
                    account.keep(settings.iter().map(|setting| setting.kept()).sum());
                }
            }
            prop_assert_eq!(account.in_flight() as usize, flights.len());
            prop_assert!(account.in_flight() <= LIMIT);
        }
        flights.clear();
        let counters = gates.iter().flat_map(|gate| [&gate.in_flight, &gate.own]).chain([&account.pooled]);
        prop_assert!(counters.into_iter().all(|counter| counter.load(Ordering::SeqCst) == 0));
    }
}
