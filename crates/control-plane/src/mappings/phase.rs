//! The state of a mapping, which moves by time.
//!
//! ```text
//!  create            change (Updating, or Enabling/Disabling)
//!    |                 +-------------------------+
//!    v                 |                         v
//! Creating ---time--> Enabled | Disabled <-time- Moving
//!                      |
//!                      | delete
//!                      v
//!                     Deleting ---time---> gone
//! ```
//!
//! Nobody has to be there when the time has come: whoever reads asks [`Phase::step`] what the state is by now.

use serde::{Deserialize, Serialize};

use crate::record::Timestamp;

/// How long a mapping stays between two states, in ms. On Lambda it is seconds to a minute.
pub(crate) const TRANSITION_MS: i64 = 2_000;

/// Where a mapping comes to rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rest {
    Enabled,
    Disabled,
}

/// On the way to where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Motion {
    Creating,
    Enabling,
    Disabling,
    Updating,
}

/// The state of a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    Resting(Rest),
    Moving {
        through: Motion,
        to: Rest,
        /// When it arrives.
        until: Timestamp,
    },
    Deleting {
        /// When it is gone.
        until: Timestamp,
    },
}

/// A mapping that is between two states takes no change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Busy;

impl Phase {
    /// Of a mapping that is created now.
    pub(crate) fn create(to: Rest, now: Timestamp) -> Self {
        Self::Moving { through: Motion::Creating, to, until: later(now) }
    }

    /// What it is by now; `None` when it is gone.
    pub fn step(self, now: Timestamp) -> Option<Self> {
        match self {
            Self::Moving { to, until, .. } if due(until, now) => Some(Self::Resting(to)),
            Self::Deleting { until } if due(until, now) => None,
            Self::Resting(_) | Self::Moving { .. } | Self::Deleting { .. } => Some(self),
        }
    }

    /// When [`Phase::step`] will say something else.
    pub fn until(self) -> Option<Timestamp> {
        match self {
            Self::Resting(_) => None,
            Self::Moving { until, .. } | Self::Deleting { until } => Some(until),
        }
    }

    /// After a change that was asked for now, with `to` if it enables or disables.
    pub(crate) fn change(self, to: Option<Rest>, now: Timestamp) -> Result<Self, Busy> {
        let Self::Resting(at) = self else { return Err(Busy) };
        let to = to.unwrap_or(at);
        let through = match (at, to) {
            (Rest::Disabled, Rest::Enabled) => Motion::Enabling,
            (Rest::Enabled, Rest::Disabled) => Motion::Disabling,
            (Rest::Enabled, Rest::Enabled) | (Rest::Disabled, Rest::Disabled) => Motion::Updating,
        };
        Ok(Self::Moving { through, to, until: later(now) })
    }

    /// After a deletion that was asked for now.
    pub(crate) fn delete(self, now: Timestamp) -> Result<Self, Busy> {
        match self {
            Self::Resting(_) => Ok(Self::Deleting { until: later(now) }),
            Self::Moving { .. } | Self::Deleting { .. } => Err(Busy),
        }
    }

    /// As the API spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Resting(Rest::Enabled) => "Enabled",
            Self::Resting(Rest::Disabled) => "Disabled",
            Self::Moving { through: Motion::Creating, .. } => "Creating",
            Self::Moving { through: Motion::Enabling, .. } => "Enabling",
            Self::Moving { through: Motion::Disabling, .. } => "Disabling",
            Self::Moving { through: Motion::Updating, .. } => "Updating",
            Self::Deleting { .. } => "Deleting",
        }
    }
}

fn later(now: Timestamp) -> Timestamp {
    Timestamp(now.0.saturating_add(TRANSITION_MS))
}

/// A clock that was put back must not hold a mapping in its state for longer than a transition takes.
fn due(until: Timestamp, now: Timestamp) -> bool {
    now >= until || until.0.saturating_sub(now.0) > TRANSITION_MS
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000);

    #[test]
    fn a_mapping_is_created_changed_and_deleted_in_time() {
        let after = |ms: i64| Timestamp(NOW.0 + ms);
        let created = Phase::create(Rest::Enabled, NOW);
        assert_eq!(created.step(after(TRANSITION_MS - 1)).unwrap().name(), "Creating");
        let enabled = created.step(after(TRANSITION_MS)).unwrap();
        assert_eq!(enabled, Phase::Resting(Rest::Enabled));
        for (to, name) in [(None, "Updating"), (Some(Rest::Enabled), "Updating"), (Some(Rest::Disabled), "Disabling")] {
            assert_eq!(enabled.change(to, NOW).unwrap().name(), name);
        }
        let disabled = Phase::Resting(Rest::Disabled);
        assert_eq!(disabled.change(None, NOW).unwrap().step(after(TRANSITION_MS)), Some(disabled));
        assert_eq!(disabled.change(Some(Rest::Enabled), NOW).unwrap().name(), "Enabling");
        let deleting = disabled.delete(NOW).unwrap();
        assert_eq!((deleting.name(), deleting.step(after(TRANSITION_MS))), ("Deleting", None));
    }

    #[test]
    fn nothing_changes_what_is_between_two_states() {
        let deleting = Phase::Resting(Rest::Enabled).delete(NOW).unwrap();
        for phase in [Phase::create(Rest::Enabled, NOW), deleting] {
            assert_eq!((phase.change(None, NOW), phase.delete(NOW)), (Err(Busy), Err(Busy)));
        }
    }

    #[test]
    fn a_clock_that_was_put_back_holds_nothing_up() {
        let created = Phase::create(Rest::Disabled, NOW);
        assert_eq!(created.step(Timestamp(0)), Some(Phase::Resting(Rest::Disabled)));
    }

    proptest! {
        /// Whenever one looks, and however often, every state ends where it was going, and stays there.
        #[test]
        fn every_movement_ends(looks in prop::collection::vec(0i64..4_000, 0..8), enabled: bool, delete: bool) {
            let to = if enabled { Rest::Enabled } else { Rest::Disabled };
            let begun = match delete {
                true => Phase::Resting(to).delete(NOW).unwrap(),
                false => Phase::create(to, NOW),
            };
            let mut now = NOW;
            let mut phase = Some(begun);
            for look in looks {
                now = Timestamp(now.0 + look);
                phase = phase.and_then(|phase| phase.step(now));
                let over = now.0 >= NOW.0 + TRANSITION_MS;
                let expected = match (over, delete) {
                    (false, _) => Some(begun),
                    (true, true) => None,
                    (true, false) => Some(Phase::Resting(to)),
                };
                prop_assert_eq!(phase, expected);
            }
        }
    }
}
