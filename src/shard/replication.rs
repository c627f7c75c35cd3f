//! Replication connections: a client that speaks to a WAL sender has a server of its own from login to end.
//!
//! A WAL sender takes no parameters but those of its startup packet, and no messages of the extended protocol. So the
//! client's packet goes to a connection that is opened for it, its greeting is made of what that one reports, and whatever
//! the pool's mode is, the two stay together. The client is a route of its own ([`RouteName::session`]): its server needs a
//! permit as all do, and can be nobody else's, on no shard, by construction.

use super::client::State as ClientState;
use super::server::Server;
use super::{ClientKey, RouteKey, ServerKey, Shard};
use crate::ids::{RouteName, SessionId};
use crate::wire::Refusal;
use crate::wire::startup::{Replication, Startup};

impl Shard {
    /// The route has one client, whose server is for nobody else.
    pub(super) fn is_own(&self, route: RouteKey) -> bool {
        self.routes.get(route).is_some_and(|route| route.own.is_some())
    }

    /// The name of the route of a replication connection.
    pub(super) fn own_route_name(
        &self,
        kind: Replication,
        database: &str,
        user: &str,
        session: SessionId,
    ) -> Result<RouteName, Refusal> {
        let shared = self.route_name(database, user).map_err(|refusal| match kind {
            Replication::Logical => refusal,
            Replication::Physical => refusal.hint(
                "A physical replication connection belongs to no database, but its name says which endpoint is meant: \
                 add [databases.replication] to pgpinion.toml, or name a database that is there.",
            ),
        })?;
        Ok(RouteName { session: Some(session), ..shared })
    }

    /// A replication client comes to its route, and waits for its server. Its wishes are for the startup packet.
    pub(super) fn enter_own_route(&mut self, client: ClientKey, key: RouteKey, startup: &Startup) {
        let wishes = self.clients.get(client).map(|client| client.values.clone()).unwrap_or_default();
        let replication = startup.get("replication").map(|value| ("replication".into(), value.into()));
        let wishes = wishes.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        let now = self.now;
        let Some(route) = self.routes.get_mut(key) else { return };
        route.own = Some(replication.into_iter().chain(wishes).collect());
        route.clients += 1;
        if let Some(client) = self.clients.get_mut(client) {
            client.since = now;
        }
        let until = self.begin_patience(client);
        self.set_client_deadline(client, until);
        self.enqueue(client, key);
    }

    /// A replication client has got its server: it is let in with what that one reports.
    pub(super) fn greet_owner(&mut self, client_key: ClientKey, server_key: ServerKey) {
        let Some(server) = self.servers.get(server_key) else { return };
        let parameters = self.routes.get(server.route).and_then(|route| route.parameters.clone());
        let (Some(client), Some(parameters)) = (self.clients.get_mut(client_key), parameters) else { return };
        client.state = ClientState::Linked(server_key);
        client.values = server.values.clone();
        self.greet(client_key, &parameters);
        self.resume_receiving(client_key);
    }

    /// A server has logged in for a client that has gone meanwhile, or has got another: it is closed as soon as it rests.
    pub(super) fn doom_ownerless(&mut self, key: ServerKey) {
        let Some(server) = self.servers.get_mut(key) else { return };
        let Some(route) = self.routes.get(server.route) else { return };
        if route.own.is_some() && route.pool.waiting() == 0 {
            server.doomed = Some("its client left");
        }
    }

    /// A replication connection that does not come to an end by itself, as the sending of a base backup does.
    pub(super) fn replicates_without_end(&self, server: &Server) -> bool {
        self.is_own(server.route) && !server.owed.copies_out()
    }
}
