//! A server connection: its login, the exact account of what it still owes, what it said about itself.
//!
//! Pure: knows no pool and no client. The shard feeds it what was sent and what came back.

mod login;
mod owed;

pub use login::{Credentials, Login, LoginError, LoginStep, ScramResult, ScramWork};
pub use owed::{Nonsense, Owed, Receipt};

use std::sync::Arc;

/// What a server tells each client that logs in: the parameters it reports, in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parameters(Vec<(Arc<str>, Arc<str>)>);

impl Parameters {
    /// Takes over a reported value.
    pub fn set(&mut self, name: &str, value: &str) {
        match self.0.iter().position(|(each, _)| &**each == name) {
            Some(at) if &*self.0[at].1 == value => {}
            Some(at) => self.0[at].1 = value.into(),
            None if self.0.len() < PARAMETERS_MAX => self.0.push((name.into(), value.into())),
            None => {}
        }
    }

    /// All of them, in the order of the first report.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }
}

/// PostgreSQL 18 reports 15. Extensions may add some; nobody adds hundreds.
const PARAMETERS_MAX: usize = 256;
