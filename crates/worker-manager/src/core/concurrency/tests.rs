//! Places against a model that counts them one by one.

use proptest::prelude::*;

use super::*;

fn account(limit: u32) -> Arc<Account> {
    let rules = Rules { account_concurrency: limit, requests_per_unit: u32::MAX, ..Rules::default() };
    Arc::new(Account::new(&rules))
}

fn function(account: &Arc<Account>) -> Arc<Function> {
    Function::new(FunctionId(0), account)
}

/// Lets one in at the beginning of time.
fn enter(function: &Arc<Function>) -> Result<Ticket, ThrottleReason> {
    function.enter(0).map_err(|throttle| throttle.reason)
}

#[test]
fn a_reservation_is_a_ceiling_and_a_floor() {
    let account = account(10);
    let (reserved, other) = (function(&account), function(&account));
    reserved.set_concurrency(Concurrency::Reserved(3));
    let pooled: Vec<Ticket> = std::iter::from_fn(|| enter(&other).ok()).collect();
    assert_eq!(pooled.len(), 7);
    assert_eq!(enter(&other).unwrap_err(), ThrottleReason::AccountConcurrency);
    let own: Vec<Ticket> = std::iter::from_fn(|| enter(&reserved).ok()).collect();
    assert_eq!(own.len(), 3);
    assert_eq!(enter(&reserved).unwrap_err(), ThrottleReason::FunctionConcurrency);
    assert_eq!(account.in_flight(), 10);
    drop((pooled, own));
    assert_eq!(account.in_flight(), 0);
}

#[test]
fn zero_lets_nothing_in_and_its_end_everything() {
    let account = account(10);
    let function = function(&account);
    let before = enter(&function).unwrap();
    function.set_concurrency(Concurrency::Reserved(0));
    assert_eq!(enter(&function).unwrap_err(), ThrottleReason::FunctionConcurrency);
    function.set_concurrency(Concurrency::default());
    let after = enter(&function).unwrap();
    drop((before, after));
    assert_eq!(account.in_flight(), 0);
}

#[test]
fn kept_places_come_before_those_of_the_pool() {
    let account = account(5);
    let (keeper, other) = (function(&account), function(&account));
    keeper.set_concurrency(Concurrency::Shared { kept: 2 });
    let mut tickets: Vec<Ticket> = std::iter::from_fn(|| enter(&other).ok()).collect();
    assert_eq!(tickets.len(), 3);
    tickets.extend(std::iter::from_fn(|| enter(&keeper).ok()));
    assert_eq!(tickets.len(), 5);
    assert_eq!(enter(&keeper).unwrap_err(), ThrottleReason::AccountConcurrency);
    drop(tickets.remove(0));
    assert!(enter(&keeper).is_ok(), "more than it keeps comes from the pool");
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

#[test]
fn requests_a_second_follow_from_the_concurrency_that_they_have() {
    let rules = Rules { account_concurrency: 100, ..Rules::default() };
    let account = Arc::new(Account::new(&rules));
    let [reserved, first, second] = [0, 1, 2].map(|id| Function::new(FunctionId(id), &account));
    reserved.set_concurrency(Concurrency::Reserved(3));
    // Answered at once, so that concurrency is never short.
    let entered = |function: &Arc<Function>, now| std::iter::from_fn(|| function.enter(now).ok().map(drop)).count();
    assert_eq!(entered(&reserved, 0), 30);
    let throttle = reserved.enter(0).unwrap_err();
    assert_eq!(throttle.reason, ThrottleReason::FunctionRate);
    assert!(throttle.retry_after > Duration::from_millis(30) && throttle.retry_after < Duration::from_millis(40));
    assert_eq!(entered(&first, 0), 1_000);
    assert_eq!(second.enter(0).unwrap_err().reason, ThrottleReason::AccountRate, "it is for all others together");
    let (half, reserved_half) = (entered(&second, 500_000_000), entered(&reserved, 500_000_000));
    assert_eq!((half, reserved_half), (500, 15));
    let figures = reserved.figures();
    assert_eq!((figures.invocations, figures.in_flight, figures.peak), (45, 0, 1));
    assert_eq!(figures.throttles.by(ThrottleReason::FunctionRate), 3);
    assert_eq!(account.in_flight(), 0);
}

proptest! {
    #[test]
    fn behaves_as_the_model(steps in proptest::collection::vec(step(), 1..120)) {
        let account = account(LIMIT);
        let functions: Vec<Arc<Function>> = (0..FUNCTIONS).map(|_| function(&account)).collect();
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
                    let entered = enter(&functions[function]);
                    prop_assert_eq!(entered.as_ref().map(|ticket| ticket.own).map_err(|reason| *reason), expected);
                    if let Ok(ticket) = entered {
                        flights.push((function, ticket.own, ticket));
                    }
                }
                Step::Leave(index) if index < flights.len() => drop(flights.swap_remove(index)),
                Step::Leave(_) => {}
                Step::Set(function, setting) => {
                    settings[function] = setting;
                    functions[function].set_concurrency(setting);
                }
            }
            prop_assert_eq!(account.in_flight() as usize, flights.len());
            prop_assert!(account.in_flight() <= LIMIT);
        }
        flights.clear();
        let counters = functions.iter().flat_map(|one| [&one.in_flight, &one.own]).chain([&account.pooled]);
        prop_assert!(counters.into_iter().all(|counter| counter.load(Ordering::SeqCst) == 0));
    }
}
