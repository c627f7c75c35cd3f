//! What clients leave in the sessions of servers that they share (`leak_policy`).
//!
//! A command that leaves something is recognised on its way to the server ([`crate::guard`]), and the server is marked before
//! it has read it. A marked server is given to nobody before it was washed.
//!
//! ```text
//!              at the end of the transaction            when the client leaves
//!   reset      Linked -> Cleaning -> Idle               Draining -> Cleaning -> Idle
//!   pin        Linked, and pinned for the ledger        Draining -> Cleaning -> Idle
//!   refuse     (only what is not refused) as reset
//! ```

use super::server::Cleaning;
use super::{ClientKey, ServerKey, Shard};
use crate::config::{LeakPolicy, LogLevel, PoolMode};
use crate::guard::{Kind, Kinds};
use crate::ids::RouteName;

impl Shard {
    /// A client's commands of these kinds are on their way to its server, or were refused.
    #[cold]
    pub(super) fn leaks_seen(&mut self, client_key: ClientKey, key: ServerKey, seen: Kinds) {
        let policy = self.leak_policy(key);
        let Some(server) = self.servers.get_mut(key) else { return };
        let connection = server.id;
        if !matches!(policy, LeakPolicy::Allow | LeakPolicy::Log) {
            server.leaks |= seen - refused(policy);
        }
        let Some(client) = self.clients.get_mut(client_key) else { return };
        let session = client.session_id;
        let new = seen - client.leaves;
        client.leaves |= seen;
        for kind in new.iter() {
            let (level, what) = said(policy, kind);
            self.log(level, Some(session), Some(connection), || format!("leak_policy: {kind}: {what}"));
        }
    }

    /// The transaction is over on a server in whose session its client has left something.
    #[cold]
    pub(super) fn release_leaking(&mut self, key: ServerKey, client: ClientKey) {
        if !self.is_kept(key) {
            self.unlink_client(client);
            self.clean(key);
            return self.open_pending(client);
        }
        if self.draining {
            return self.drain_client(client);
        }
        let Some(server) = self.servers.get(key) else { return };
        if !server.pinned {
            let (id, session) = (server.id, server.last_session);
            self.log(LogLevel::Info, session, Some(id), || "pinned to its client".into());
            self.pin(key);
        }
        self.set_client_deadline(client, self.now.deadline(self.config.timeouts.client_idle));
    }

    /// The server stays with its client, for what that has left there.
    pub(super) fn is_kept(&self, key: ServerKey) -> bool {
        let leaks = self.servers.get(key).map_or(Kinds::NONE, |server| server.leaks);
        !(leaks & pinning(self.leak_policy(key))).is_empty()
    }

    /// Makes a server at rest forget what was left in its session. What it had prepared and what its parameters are is
    /// learned from what it says to that.
    pub(super) fn wash(&mut self, key: ServerKey) {
        let Some(server) = self.servers.get(key) else { return };
        let only_sequences = server.leaks == Kind::Sequence.into();
        let route = self.routes.get(server.route);
        if !only_sequences && route.is_some_and(|route| self.runs_connect_query(&route.name)) {
            return self.close_server(key, "cleaning it would undo connect_query");
        }
        // `server_reset_query` may be less than all.
        self.tell(key, Cleaning::Reset, if only_sequences { "DISCARD SEQUENCES" } else { "DISCARD ALL" });
    }

    fn runs_connect_query(&self, route: &RouteName) -> bool {
        !self.config.databases[route.section].connect_query.is_empty()
    }

    fn leak_policy(&self, key: ServerKey) -> LeakPolicy {
        let route = self.servers.get(key).and_then(|server| self.routes.get(server.route));
        let shared = route.filter(|route| route.mode != PoolMode::Session);
        shared.map_or(LeakPolicy::Allow, |route| route.leak_policy)
    }
}

/// What is refused.
pub(super) fn refused(policy: LeakPolicy) -> Kinds {
    match policy {
        LeakPolicy::Refuse => Kind::ALL.into_iter().collect::<Kinds>() - forgotten_always(),
        _ => Kinds::NONE,
    }
}

/// What keeps a server with its client. A lock that is lost without a word is worse than a server that is kept: who holds one
/// counts on being alone.
fn pinning(policy: LeakPolicy) -> Kinds {
    match policy {
        LeakPolicy::Pin => Kind::ALL.into_iter().collect::<Kinds>() - forgotten_always(),
        LeakPolicy::Reset => Kind::Lock.into(),
        _ => Kinds::NONE,
    }
}

/// Not worth a server, and not to be refused: every use of a sequence leaves its last value, which is seldom asked for in
/// another transaction; and a long text is likely to leave nothing.
fn forgotten_always() -> Kinds {
    [Kind::Sequence, Kind::Unread].into_iter().collect()
}

fn said(policy: LeakPolicy, kind: Kind) -> (LogLevel, &'static str) {
    let is_in = |kinds: Kinds| !(kinds & kind.into()).is_empty();
    match policy {
        LeakPolicy::Allow | LeakPolicy::Log => {
            (LogLevel::Warn, "it stays on the server, for whoever gets that next")
        }
        _ if is_in(refused(policy)) => (LogLevel::Info, "refused"),
        _ if is_in(pinning(policy)) => (LogLevel::Info, "the server stays with its client"),
        _ => (LogLevel::Debug, "the server forgets it after the transaction"),
    }
}
