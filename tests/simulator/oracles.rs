//! What is held against every run.

use crate::world::World;
use pgpinion::mail::Letter;

impl World {
    /// After each step.
    pub fn check(&self) {
        for cluster in &self.clusters {
            let (open, dialing) = (cluster.open_connections(), cluster.dialing);
            assert!(
                open + dialing <= cluster.max_connections,
                "{open} open and {dialing} dialled of {}",
                cluster.max_connections
            );
        }
        self.check_shard(self.touched);
    }

    /// When a shard is about to open a connection. While the limit is divided evenly, a lowered one holds on each shard
    /// by itself, and over all of them when the last has come down to it.
    pub fn check_dial(&self, endpoint: usize) {
        let cluster = &self.clusters[endpoint];
        let (open, dialing, most) = (cluster.open_connections(), cluster.dialing, cluster.max_connections);
        assert!(open + dialing < most, "one more than {open} open and {dialing} dialled, of {most}");
    }

    fn check_shard(&self, number: usize) {
        let shard = &self.nodes[number].shard;
        let census = shard.census();
        assert_eq!(census.permits, census.servers, "shard {number}: each server holds one permit");
        for route in shard.routes() {
            assert!(
                route.waiting == 0 || route.idle == 0,
                "shard {number}: clients wait beside idle servers of their route: {route:?}"
            );
        }
        let (clients, servers) = shard.strays();
        assert!(clients.is_empty() && servers.is_empty(), "shard {number}: strays {clients:?} {servers:?}");
    }

    /// When nothing can happen until some time has passed.
    pub fn check_rest(&self) {
        for number in 0..self.nodes.len() {
            self.check_shard(number);
        }
        let here: usize = self.nodes.iter().map(|node| node.shard.census().servers).sum();
        let letters = self.nodes.iter().flat_map(|node| &node.inbox);
        let servers = here + letters.filter(|(_, letter, _)| matches!(letter, Letter::Server(..))).count();
        let sockets = self.sockets.values().filter(|socket| socket.is_server()).count();
        assert_eq!(servers, sockets + self.dials.len(), "every server is somewhere");
    }

    /// When all that could happen has.
    pub fn check_clients(&self) {
        for client in &self.clients {
            let ended = client.is_over() || client.condemned;
            assert!(ended, "{client} was left waiting");
        }
    }

    /// When all shards were drained.
    pub fn check_end(&self) {
        for (number, node) in self.nodes.iter().enumerate() {
            let census = node.shard.census();
            assert!(node.shard.is_empty() && census.permits == 0, "shard {number} is left with {census:?}");
        }
        assert!(self.sockets.is_empty() && self.dials.is_empty(), "a socket is left");
    }
}
