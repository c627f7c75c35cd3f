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

/// What each of the routes would have if all of them wanted all they can get: `limit` by weight, but none below its
/// floor or above its ceiling.
pub fn quotas(limit: u32, routes: &[Terms]) -> Vec<f64> {
    let at = |level: f64| {
        let part = move |terms: &Terms| {
            (level * f64::from(terms.weight))
                .clamp(f64::from(terms.floor.min(terms.ceiling)), f64::from(terms.ceiling))
        };
        routes.iter().map(part)
    };
    let (mut low, mut high) = (0.0, f64::from(limit));
    // Halving 64 times leaves nothing of an interval of at most 2^32.
    for _ in 0..64 {
        let level = (low + high) / 2.0;
        if at(level).sum::<f64>() > f64::from(limit) { high = level } else { low = level }
    }
    at(high).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(weight: u32, floor: u32, ceiling: u32) -> Terms {
        Terms { weight, floor, ceiling, administrator: false }
    }

    fn assert_quotas(limit: u32, routes: &[Terms], expected: &[f64]) {
        let quotas = quotas(limit, routes);
        let close = quotas.iter().zip(expected).all(|(is, should)| (is - should).abs() < 1e-3);
        assert!(close && quotas.len() == expected.len(), "{quotas:?} instead of {expected:?}");
    }

    #[test]
    fn quotas_follow_weights_between_floor_and_ceiling() {
        let free = |weight| terms(weight, 0, u32::MAX);
        assert_quotas(20, &[free(1), free(1)], &[10.0, 10.0]);
        assert_quotas(21, &[free(1), free(2), free(4)], &[3.0, 6.0, 12.0]);
        assert_quotas(20, &[free(1), free(1), terms(1, 10, 20)], &[5.0, 5.0, 10.0]);
        assert_quotas(20, &[free(1), free(1), terms(1, 0, 2)], &[9.0, 9.0, 2.0]);
        assert_quotas(4, &[free(1); 8], &[0.5; 8]);
        assert_quotas(10, &[terms(1, 0, 3)], &[3.0]);
        assert_quotas(10, &[], &[]);
    }
}
