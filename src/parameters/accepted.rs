//! What PostgreSQL made of the values that clients ask for in their startup packets.

use super::Values;
use hashbrown::HashMap;
use std::sync::Arc;

/// Values of startup packets that a route's servers have accepted, and as what: `iso` is `ISO, MDY` there. Who asks for one of
/// these need not be checked.
#[derive(Debug, Default)]
pub struct Accepted {
    by_wish: HashMap<(Arc<str>, Arc<str>), Arc<str>>,
}

impl Accepted {
    /// The values of a client that asks for `wishes` where `defaults` hold, and what of that `RESET` must bring back. False if
    /// a wish must be checked first: it stands there as it was written.
    pub fn resolve(&self, defaults: &Values, wishes: &Values) -> (Values, Values, bool) {
        let (mut values, mut startup, mut known) = (defaults.clone(), Values::default(), true);
        for (name, wish) in wishes.iter() {
            let value = if &**name == APPLICATION_NAME {
                clean(wish)
            } else if defaults.get(name) == Some(wish) {
                wish.clone()
            } else if let Some(value) = self.by_wish.get(&(name.clone(), wish.clone())) {
                value.clone()
            } else {
                known = false;
                wish.clone()
            };
            if defaults.get(name) != Some(&value) {
                values.set(name, value.clone());
                startup.set(name, value);
            }
        }
        (values, startup, known)
    }

    /// A server accepted a wish, as this value.
    pub fn learn(&mut self, name: &Arc<str>, wish: &Arc<str>, value: &Arc<str>) {
        if self.by_wish.len() >= WISHES_MAX {
            self.by_wish.clear();
        }
        self.by_wish.insert((name.clone(), wish.clone()), value.clone());
    }
}

/// As PostgreSQL does (`pg_clean_ascii`): any text will do.
fn clean(name: &Arc<str>) -> Arc<str> {
    let is_plain = |byte: &u8| (32..127).contains(byte);
    if name.len() < NAME_BYTES && name.as_bytes().iter().all(is_plain) {
        return name.clone();
    }
    let plain = name.bytes().take(NAME_BYTES - 1).map(|byte| if is_plain(&byte) { byte.into() } else { '?' });
    plain.collect::<String>().into()
}

const APPLICATION_NAME: &str = "application_name";

/// `NAMEDATALEN`, the final zero included: longer ones are cut.
const NAME_BYTES: usize = 64;

/// Applications have a handful; who tries many has them checked again.
const WISHES_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::super::tests::values;
    use super::*;

    #[test]
    fn a_wish_is_checked_once() {
        let mut accepted = Accepted::default();
        let defaults = values(&[("DateStyle", "ISO, MDY"), ("TimeZone", "UTC"), ("application_name", "")]);
        let wishes = values(&[("DateStyle", "iso"), ("TimeZone", "UTC"), ("application_name", "me")]);
        assert!(!accepted.resolve(&defaults, &wishes).2);
        accepted.learn(&"DateStyle".into(), &"iso".into(), &"ISO, MDY".into());
        let (resolved, startup, known) = accepted.resolve(&defaults, &wishes);
        assert!(known);
        assert_eq!(resolved, defaults.with("application_name", "me"));
        assert_eq!(startup, values(&[("application_name", "me")]), "the rest is so by default");
        assert!(!accepted.resolve(&defaults, &values(&[("DateStyle", "German")])).2);
    }

    #[test]
    fn names_of_applications_are_made_plain() {
        for (name, expected) in [("psql", "psql"), ("caf\u{e9}\n", "caf???"), ("", "")] {
            assert_eq!(&*clean(&name.into()), expected);
        }
        assert_eq!(clean(&"x".repeat(1000).into()).len(), 63);
    }

    #[test]
    fn memory_is_bounded() {
        let mut accepted = Accepted::default();
        for number in 0..10 * WISHES_MAX {
            accepted.learn(&"TimeZone".into(), &number.to_string().into(), &"UTC".into());
        }
        assert!(accepted.by_wish.len() <= WISHES_MAX);
    }
}
