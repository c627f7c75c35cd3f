//! What is shown as quota is what the ledger enforces.

use crate::world::{MS, Plan, S, US, World, route_name, set_terms};
use pgpinion::ledger::Terms;

/// Between two transactions of a busy client.
const THINK: u64 = 150 * US;

/// Routes that all want all they can get, on these terms, at this limit and reserve: after two seconds each has its quota,
/// give or take what cannot be divided.
fn assert_enforced(limit: u32, reserve: u32, terms: &[Terms]) {
    let routes = 0..terms.len();
    let mut plan = routes.fold(Plan::new(2, limit), |plan, route| plan.clients(route, 50, 10 * MS, THINK, 0));
    plan.policy.reserve = reserve;
    for (route, &terms) in terms.iter().enumerate() {
        set_terms(&mut plan.policy, &route_name(route).user, move |of_route| *of_route = terms);
    }
    let mut world = World::new(plan, 1);
    world.run(2 * S);
    let quotas: Vec<f64> = (0..terms.len())
        .map(|route| {
            let name = route_name(route);
            world.ledger.quotas().find(|(each, _)| **each == name).expect("it is active").1
        })
        .collect();
    let held: Vec<u32> = (0..terms.len()).map(|route| world.held(route)).collect();
    println!("of {limit}, {reserve} reserved: quotas {quotas:.2?}, held {held:?}");
    let all: f64 = quotas.iter().sum();
    assert!(all <= f64::from(limit), "{quotas:?}");
    for (quota, held) in quotas.iter().zip(&held) {
        assert!((quota - f64::from(*held)).abs() < 1.0, "{quotas:?} are not {held:?}");
    }
}

#[test]
fn each_route_has_its_quota_when_all_want_more() {
    let plain = Terms::default();
    let administrator = Terms { administrator: true, ..plain };
    let various =
        [Terms { weight: 2, ..plain }, Terms { floor: 10, ..plain }, Terms { ceiling: 2, ..plain }, plain];
    assert_enforced(24, 0, &[plain, plain, plain]);
    assert_enforced(20, 0, &various);
    assert_enforced(20, 5, &[plain, plain, plain]);
    assert_enforced(20, 9, &[plain, plain, administrator]);
}
