//! How an endpoint's permits are to be shared.

use crate::ids::RouteName;
use std::fmt;
use std::sync::Arc;

/// How an endpoint's permits are to be shared. May change at any time; what is held already follows.
#[derive(Clone)]
pub struct Policy {
    /// Permits there are.
    pub limit: u32,
    /// Of these, only for routes of administrators.
    pub reserve: u32,
    /// Connections may move between shards. Without, they are closed here and opened there.
    pub hand_over: bool,
    /// What each route may have.
    pub terms: Arc<dyn Fn(&RouteName) -> Terms + Send + Sync>,
}

/// What one route may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Its part, against those of others. At least 1.
    pub weight: u32,
    /// So many it can always have.
    pub floor: u32,
    /// And so many at most.
    pub ceiling: u32,
    /// It may use the reserve.
    pub administrator: bool,
}

impl Policy {
    /// All are equal, up to `limit`.
    pub fn even(limit: u32) -> Self {
        Self { limit, reserve: 0, hand_over: true, terms: Arc::new(|_| Terms::default()) }
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { limit, reserve, hand_over, .. } = self;
        write!(f, "Policy {{ limit: {limit}, reserve: {reserve}, hand_over: {hand_over} }}")
    }
}

impl Default for Terms {
    fn default() -> Self {
        Self { weight: 1, floor: 0, ceiling: u32::MAX, administrator: false }
    }
}

/// What a unit of weight comes to, in permits, while all routes that use an endpoint want all they can get. All have it, but
/// for those that their floor gives more, or their ceiling less.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Levels {
    users: f64,
    /// The same, unless the reserve leaves them more.
    administrators: f64,
}

impl Levels {
    /// Those of these routes, at this limit and reserve.
    pub fn of(limit: u32, reserve: u32, routes: &[Terms]) -> Self {
        let level = level_for(f64::from(limit), routes);
        let (administrators, users): (Vec<Terms>, Vec<Terms>) =
            routes.iter().partition(|terms| terms.administrator);
        let for_users = f64::from(limit.saturating_sub(reserve));
        if at(level, &users) <= for_users {
            return Self { users: level, administrators: level };
        }
        let of_users = level_for(for_users, &users);
        let rest = f64::from(limit) - at(of_users, &users);
        Self { users: of_users, administrators: level_for(rest, &administrators) }
    }

    /// What a route on these terms can insist on.
    pub fn quota(&self, terms: &Terms) -> f64 {
        part(if terms.administrator { self.administrators } else { self.users }, terms)
    }
}

impl Default for Levels {
    /// Nobody else is known of.
    fn default() -> Self {
        Self { users: f64::INFINITY, administrators: f64::INFINITY }
    }
}

fn part(level: f64, terms: &Terms) -> f64 {
    let ceiling = f64::from(terms.ceiling);
    (level * f64::from(terms.weight)).clamp(f64::from(terms.floor).min(ceiling), ceiling)
}

/// What routes have at a level, added up.
fn at(level: f64, routes: &[Terms]) -> f64 {
    routes.iter().map(|terms| part(level, terms)).sum()
}

/// The highest level at which these routes have no more than `permits`.
fn level_for(permits: f64, routes: &[Terms]) -> f64 {
    let (mut low, mut high) = (0.0, permits);
    for _ in 0..HALVINGS {
        let middle = (low + high) / 2.0;
        if at(middle, routes) > permits { high = middle } else { low = middle }
    }
    low
}

/// Leaves so little of an interval of 2^16 that no hundredth of a permit hangs on it.
const HALVINGS: usize = 48;

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(weight: u32, floor: u32, ceiling: u32) -> Terms {
        Terms { weight, floor, ceiling, administrator: false }
    }

    fn assert_quotas(limit: u32, reserve: u32, routes: &[Terms], expected: &[f64]) {
        let levels = Levels::of(limit, reserve, routes);
        let quotas: Vec<f64> = routes.iter().map(|terms| levels.quota(terms)).collect();
        let close = quotas.iter().zip(expected).all(|(is, should)| (is - should).abs() < 1e-3);
        assert!(close && quotas.len() == expected.len(), "{quotas:?} instead of {expected:?}");
        assert!(quotas.iter().sum::<f64>() <= f64::from(limit), "{quotas:?}");
    }

    #[test]
    fn quotas_follow_weights_between_floor_and_ceiling() {
        let free = |weight| terms(weight, 0, u32::MAX);
        assert_quotas(20, 0, &[free(1), free(1)], &[10.0, 10.0]);
        assert_quotas(21, 0, &[free(1), free(2), free(4)], &[3.0, 6.0, 12.0]);
        assert_quotas(20, 0, &[free(1), free(1), terms(1, 10, 20)], &[5.0, 5.0, 10.0]);
        assert_quotas(20, 0, &[free(1), free(1), terms(1, 0, 2)], &[9.0, 9.0, 2.0]);
        assert_quotas(4, 0, &[free(1); 8], &[0.5; 8]);
        assert_quotas(10, 0, &[terms(1, 0, 3)], &[3.0]);
        assert_quotas(10, 0, &[], &[]);
    }

    #[test]
    fn the_reserve_is_left_to_administrators() {
        let user = terms(1, 0, u32::MAX);
        let administrator = Terms { administrator: true, ..user };
        assert_quotas(10, 2, &[user, user], &[4.0, 4.0]);
        assert_quotas(10, 2, &[user, administrator], &[5.0, 5.0]);
        assert_quotas(10, 6, &[user, user, administrator], &[2.0, 2.0, 6.0]);
        assert_quotas(10, 6, &[user, user, administrator, administrator], &[2.0, 2.0, 3.0, 3.0]);
        assert_quotas(10, 2, &[administrator], &[10.0]);
    }
}
