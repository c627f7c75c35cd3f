//! The parameters of sessions (`SET TimeZone ...`): what clients have, what servers have, and how a server gets those of
//! its client.
//!
//! Pure: knows neither clients nor servers. PostgreSQL reports the values of some parameters (ParameterStatus); those follow
//! a client from server to server. Values are shared: all clients and servers that have the same ones have the
//! same [`Values`], so that the question whether a server has its client's is a comparison of two pointers.

mod accepted;
mod replay;
mod startup;

pub use accepted::Accepted;
pub use replay::Replay;
pub use startup::{Policy, wishes};

use hashbrown::HashSet;
use std::sync::Arc;

/// A parameter's name and value.
pub type Setting = (Arc<str>, Arc<str>);

/// Values of some parameters, in the order of their names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Values {
    settings: Vec<Setting>,
    /// What the client asked for in its startup packet: what `RESET` goes back to.
    startup: Option<Arc<Values>>,
}

impl Values {
    /// Of what a server reports, those that follow a client.
    pub fn reported<'a>(all: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        let mut values = Self::default();
        for (name, value) in all.filter(|(name, _)| is_followed(name)) {
            values.set(&name.into(), value.into());
        }
        values
    }

    /// A parameter's value. Names are the same in any case.
    pub fn get(&self, name: &str) -> Option<&Arc<str>> {
        self.settings.iter().find(|(each, _)| each.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Setting> {
        self.settings.iter()
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.settings.is_empty()
    }

    /// Sets a parameter, whose name stays as it was written first.
    pub fn set(&mut self, name: &Arc<str>, value: Arc<str>) {
        match self.settings.iter_mut().find(|(each, _)| each.eq_ignore_ascii_case(name)) {
            Some((_, old)) => *old = value,
            None => {
                let at = self.settings.partition_point(|(each, _)| **each < **name);
                self.settings.insert(at, (name.clone(), value));
            }
        }
    }

    /// The same with one parameter changed.
    pub fn with(&self, name: &str, value: &str) -> Self {
        let mut values = self.clone();
        values.set(&name.into(), value.into());
        values
    }

    /// The same, of a client that asked for this in its startup packet.
    pub fn with_startup(mut self, startup: Arc<Values>) -> Self {
        self.startup = Some(startup);
        self
    }

    /// What the client asked for in its startup packet.
    pub fn startup(&self) -> Option<&Arc<Values>> {
        self.startup.as_ref()
    }

    /// The same, but nobody knows any more what those are that are not in `reported`: the session was reset, and nothing
    /// is said of them.
    pub fn forget_unreported(&self, reported: &Values) -> Self {
        let mut values = self.clone();
        for (name, value) in &mut values.settings {
            if reported.get(name).is_none() {
                *value = UNKNOWN.into();
            }
        }
        values
    }

    /// After `RESET` on a server that logged in with `defaults` and has `now`: what went back to the server's default goes
    /// back to what the client asked for. The settings that change.
    pub fn restored(&self, defaults: &Values, now: &Values) -> Vec<Setting> {
        let asked = self.startup.iter().flat_map(|startup| startup.iter());
        let went_back = asked.filter(|(name, value)| {
            now.get(name) == defaults.get(name) && self.get(name).is_none_or(|current| current != value)
        });
        went_back.cloned().collect()
    }
}

/// All values that a shard's clients and servers have.
#[derive(Debug, Default)]
pub struct Registry {
    known: HashSet<Arc<Values>>,
    sweep_at: usize,
}

impl Registry {
    /// The shared copy.
    pub fn share(&mut self, values: Values) -> Arc<Values> {
        if let Some(known) = self.known.get(&values) {
            return known.clone();
        }
        if self.known.len() >= self.sweep_at {
            self.known.retain(|values| Arc::strong_count(values) > 1);
            self.sweep_at = (2 * self.known.len()).max(SWEEP_MIN);
        }
        let values = Arc::new(values);
        self.known.insert(values.clone());
        values
    }

    /// How many different ones there are, unused ones included.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}

/// Whether a parameter that a server reports is its client's, and not the server's own.
pub fn is_followed(name: &str) -> bool {
    !FIXED.contains(&name) && !ROLE.contains(&name)
}

/// Whether a parameter tells that the session acts as somebody else.
pub fn is_role(name: &str) -> bool {
    ROLE.contains(&name)
}

/// Reported, and nobody can set them.
const FIXED: [&str; 4] = ["server_version", "server_encoding", "integer_datetimes", "in_hot_standby"];

/// Reported, and set by `SET SESSION AUTHORIZATION` and `SET ROLE` only.
const ROLE: [&str; 2] = ["session_authorization", "is_superuser"];

/// No value has a zero byte.
const UNKNOWN: &str = "\0";

/// Below this it is not worth looking which are unused.
const SWEEP_MIN: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    pub fn values(settings: &[(&str, &str)]) -> Values {
        let mut values = Values::default();
        for (name, value) in settings {
            values.set(&(*name).into(), (*value).into());
        }
        values
    }

    #[test]
    fn the_same_values_are_one() {
        let mut registry = Registry::default();
        let one = registry.share(values(&[("TimeZone", "UTC"), ("DateStyle", "ISO, MDY")]));
        let same = registry.share(values(&[("DateStyle", "ISO, MDY"), ("TimeZone", "UTC")]));
        assert!(Arc::ptr_eq(&one, &same));
        let other = registry.share(one.with("timezone", "PRC"));
        assert!(!Arc::ptr_eq(&one, &other));
        assert_eq!(other.get("TIMEZONE").map(|value| &**value), Some("PRC"));
        assert_eq!(other.iter().count(), 2);
    }

    #[test]
    fn values_that_nobody_has_are_forgotten() {
        let mut registry = Registry::default();
        let kept = registry.share(values(&[("TimeZone", "kept")]));
        for number in 0..100_000 {
            registry.share(values(&[("application_name", &number.to_string())]));
        }
        assert!(registry.len() <= 2 * SWEEP_MIN, "{}", registry.len());
        assert!(Arc::ptr_eq(&kept, &registry.share(values(&[("TimeZone", "kept")]))));
    }

    #[test]
    fn what_belongs_to_the_server_is_not_followed() {
        let reported = [("server_version", "15"), ("TimeZone", "UTC"), ("is_superuser", "on")];
        assert_eq!(Values::reported(reported.into_iter()), values(&[("TimeZone", "UTC")]));
    }

    #[test]
    fn reset_goes_back_to_what_the_client_asked_for() {
        let defaults = values(&[("TimeZone", "UTC"), ("DateStyle", "ISO, MDY")]);
        let startup = Arc::new(values(&[("TimeZone", "PRC"), ("extra_float_digits", "3")]));
        let client = |zone: &str| {
            let settings = [("TimeZone", zone), ("DateStyle", "ISO, MDY"), ("extra_float_digits", "3")];
            values(&settings).with_startup(startup.clone())
        };
        // RESET ALL: the server says that its zone is UTC, and the client's follows.
        let restored = client("UTC").restored(&defaults, &values(&[("TimeZone", "UTC")]));
        assert_eq!(restored, [("TimeZone".into(), "PRC".into())]);
        // RESET of something else.
        assert_eq!(client("Asia/Tokyo").restored(&defaults, &values(&[("TimeZone", "Asia/Tokyo")])), []);
        let forgotten = client("PRC").forget_unreported(&defaults);
        assert_ne!(forgotten.get("extra_float_digits").map(|value| &**value), Some("3"));
        assert_eq!(forgotten.get("TimeZone").map(|value| &**value), Some("PRC"));
    }
}
