//! The right to hold one server connection.

/// The right to hold one server connection of the endpoint whose ledger gave it. Whoever closes the connection gives it
/// back, and not before PostgreSQL has closed it too. One that is dropped counts as given for ever.
#[must_use = "a permit that is dropped is lost"]
#[derive(Debug)]
pub struct Permit(());

impl Permit {
    /// Only a ledger makes permits, and counts them.
    pub(super) fn mint() -> Self {
        Self(())
    }

    /// Only a ledger takes them back.
    pub(super) fn spend(self) {}
}
