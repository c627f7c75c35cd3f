//! What can happen when nothing goes wrong, one thing at a time.

use crate::network::End;
use crate::world::World;
use pgpinion::shard::{DialError, Party, Peer};
use pgpinion::time::Instant;
use std::time::Duration;

/// Something that can happen. Returns whether it did.
pub type Step = fn(&mut World) -> bool;

impl World {
    /// Everything that can happen.
    pub const KINDS: [Step; 13] = [
        Self::connect,
        Self::client_writes,
        Self::deliver,
        Self::flush,
        Self::dial,
        Self::close,
        Self::backend_exits,
        Self::tick,
        Self::take,
        Self::read_letter,
        Self::configure,
        Self::drain,
        Self::fault,
    ];

    /// One random thing that can happen now; false if there is none.
    pub fn act(&mut self) -> bool {
        let step = self.plan.step_max;
        self.now = self.now + self.chance.up_to(step);
        let first = self.kind_by_weight();
        let kinds = Self::KINDS.len();
        let happened =
            (0..kinds).map(|offset| (first + offset) % kinds).find(|&kind| Self::KINDS[kind](self));
        if let Some(kind) = happened {
            self.kinds[kind] += 1;
        }
        happened.is_some()
    }

    fn kind_by_weight(&mut self) -> usize {
        let mut drawn = self.chance.below(self.plan.weights.iter().sum());
        for (kind, &weight) in self.plan.weights.iter().enumerate() {
            match drawn.checked_sub(weight) {
                Some(left) => drawn = left,
                None => return kind,
            }
        }
        0
    }

    /// A client comes to some shard.
    fn connect(&mut self) -> bool {
        let coming: Vec<usize> = (0..self.clients.len())
            .filter(|&at| self.clients[at].socket.is_none() && !self.clients[at].is_over())
            .filter(|&at| self.clients[at].thinks_until <= self.now)
            .collect();
        let Some(number) = self.chance.pick(&coming) else { return false };
        let shards: Vec<usize> = (0..self.nodes.len()).filter(|&shard| !self.is_stalled(shard)).collect();
        let drawn = self.chance.pick(&shards);
        let home = self.plan.flock.then(|| self.plan.home(number));
        let Some(shard) = home.filter(|&shard| !self.is_stalled(shard)).or(drawn) else { return false };
        let socket = self.open_socket(shard, End::Client(number));
        self.clients[number].socket = Some(socket.slot);
        if self.nodes[shard].told_to_drain && self.nodes[shard].shard.is_empty() {
            // Nobody listens there any more.
            self.sockets.remove(&socket.slot);
            self.clients[number].lost = true;
            return true;
        }
        let owner = self.tell(shard, &[], |shard| shard.accepted(socket, Peer::Unix, false));
        if let Some(socket) = self.sockets.get_mut(&socket.slot) {
            socket.owner = owner;
        }
        true
    }

    /// A client sends a piece, or says goodbye when it is through.
    fn client_writes(&mut self) -> bool {
        let ready: Vec<usize> = (0..self.clients.len()).filter(|&at| self.can_write(at)).collect();
        let Some(number) = self.chance.pick(&ready) else { return false };
        let length = 1 + self.chance.below(60);
        let client = &mut self.clients[number];
        let Some(socket) = client.socket.and_then(|slot| self.sockets.get_mut(&slot)) else { return false };
        match client.write(length) {
            Some(piece) => socket.incoming.extend(piece),
            None => {
                socket.incoming.extend(crate::postgres::message(b'X', b""));
                socket.peer_ended = true;
            }
        }
        if client.unsent.is_empty() && self.chance.one_in(4) {
            client.thinks_until = self.now + self.chance.up_to(self.plan.think_max);
        }
        true
    }

    fn can_write(&self, number: usize) -> bool {
        let client = &self.clients[number];
        let socket = client.socket.and_then(|slot| self.sockets.get(&slot));
        client.may_write(self.now) && socket.is_some_and(|socket| !socket.peer_ended)
    }

    /// Bytes, or the end, reach a shard.
    fn deliver(&mut self) -> bool {
        let ready = self.sockets_where(|socket| {
            let arrived = socket.incoming.len() >= socket.low_water as usize || socket.peer_ended;
            let busy = match socket.peer {
                End::Server(endpoint, backend) => self.clusters[endpoint].is_busy(backend, self.now),
                End::Client(_) => false,
            };
            let open = socket.closing.is_none() && !socket.told_end && socket.receiving;
            open && arrived && !busy && !self.is_stalled(socket.shard)
        });
        let Some(slot) = self.chance.pick(&ready) else { return false };
        let length =
            if self.chance.one_in(4) { 1 + self.chance.below(8) } else { 1 + self.chance.below(4000) };
        let Some(socket) = self.sockets.get_mut(&slot) else { return false };
        let (shard, owner) = (socket.shard, socket.owner);
        let bytes: Vec<u8> = socket.incoming.drain(..length.min(socket.incoming.len())).collect();
        if bytes.is_empty() {
            socket.told_end = true;
            self.tell(shard, &[], |shard| shard.ended(owner, None));
        } else {
            self.tell(shard, &bytes, |shard| shard.received(owner, &bytes));
        }
        true
    }

    /// A send makes progress, and the peer reads it.
    fn flush(&mut self) -> bool {
        let ready = self.sockets_where(|socket| {
            let stalls = match socket.peer {
                End::Client(number) => self.clients[number].stalls_until > self.now,
                End::Server(..) => false,
            };
            !socket.unsent.is_empty() && !stalls && !self.is_stalled(socket.shard)
        });
        let Some(slot) = self.chance.pick(&ready) else { return false };
        let length = if self.chance.one_in(4) { 1 + self.chance.below(8) } else { usize::MAX };
        let take_back = self.chance.one_in(8);
        let Some(socket) = self.sockets.get_mut(&slot) else { return false };
        let (shard, owner, closing) = (socket.shard, socket.owner, socket.closing.is_some());
        if !closing && take_back {
            // Announced as sent, and taken back: the socket took nothing at once.
            let bytes = socket.unsent.len();
            self.tell(shard, &[], |shard| shard.sent(owner, bytes));
            self.tell(shard, &[], |shard| shard.unsent(owner, bytes));
            return true;
        }
        let bytes: Vec<u8> = socket.unsent.drain(..length.min(socket.unsent.len())).collect();
        match socket.peer {
            End::Server(endpoint, backend) => self.backend_reads(slot, endpoint, backend, &bytes),
            End::Client(number) => self.client_reads(number, &bytes),
        }
        if closing {
            let now = self.now;
            if let Some(socket) = self.sockets.get_mut(&slot) {
                socket.linger(now);
            }
        } else {
            self.tell(shard, &[], |shard| shard.sent(owner, bytes.len()));
        }
        true
    }

    fn backend_reads(&mut self, slot: u32, endpoint: usize, number: u32, bytes: &[u8]) {
        let dawdles = self.faults.servers_dawdle && self.chance.one_in(6);
        let now = self.now;
        // What is sent to a process that has ended is lost.
        let Some(backend) = self.clusters[endpoint].backend(number) else { return };
        let logs_in = !backend.postgres.is_logged_in();
        let longest = if logs_in { LOGIN_MAX } else { EXECUTION_MAX };
        let takes = if dawdles { self.chance.up_to(longest) } else { Duration::ZERO };
        backend.postgres.receive(bytes);
        assert!(backend.postgres.violations.is_empty(), "{:?}", backend.postgres.violations);
        backend.busy_until = backend.busy_until.max(now + takes);
        if logs_in {
            backend.logs_in_until = backend.busy_until;
        }
        let gone = backend.postgres.gone;
        let output = std::mem::take(&mut backend.postgres.output);
        if let Some(socket) = self.sockets.get_mut(&slot) {
            socket.incoming.extend(output);
        }
        self.trace(|| {
            format!("backend {endpoint}.{number} of socket {slot} reads {:?}", String::from_utf8_lossy(bytes))
        });
        if gone {
            self.backend_notices_the_end(endpoint, number);
        }
    }

    /// A backend that has no client any more ends: when it has executed what it executes, and then at its leisure.
    pub fn backend_notices_the_end(&mut self, endpoint: usize, number: u32) {
        let dawdles = self.faults.servers_dawdle && self.chance.one_in(2);
        let takes = if dawdles { self.chance.up_to(EXIT_MAX) } else { Duration::ZERO };
        let now = self.now;
        if let Some(backend) = self.clusters[endpoint].backend(number)
            && backend.exits_at == Instant::NEVER
        {
            backend.exits_at = backend.busy_until.max(now) + takes;
        }
    }

    /// A backend's process ends, and the pooler can see that.
    fn backend_exits(&mut self) -> bool {
        for endpoint in 0..self.clusters.len() {
            if let Some(number) = self.clusters[endpoint].exiting(self.now) {
                self.trace(|| format!("backend {endpoint}.{number} exits"));
                let socket = self.clusters[endpoint].exit(number);
                if let Some(socket) = socket.and_then(|slot| self.sockets.get_mut(&slot)) {
                    socket.peer_ended = true;
                }
                return true;
            }
        }
        false
    }

    fn client_reads(&mut self, number: usize, bytes: &[u8]) {
        let client = &mut self.clients[number];
        if let Some(told) = client.receive(bytes) {
            let expected = self.faults.refuse_clients() || self.draining;
            assert!(expected, "{} was refused: {told:?}", client.name);
            self.surplus += u64::from(told.contains("max_waiting_clients"));
            self.trace(|| format!("client {number} was refused: {told}"));
        }
    }

    /// A dial comes to its end.
    fn dial(&mut self) -> bool {
        let ready: Vec<usize> =
            (0..self.dials.len()).filter(|&at| !self.is_stalled(self.dials[at].shard)).collect();
        let Some(at) = self.chance.pick(&ready) else { return false };
        let dial = self.dials.remove(at);
        self.clusters[dial.endpoint].dialing -= 1;
        let outcome = if self.faults.dials_fail && self.chance.one_in(3) {
            Err(DialError("connection refused by chance".into()))
        } else {
            let slot = self.next_socket;
            let backend = self.clusters[dial.endpoint].open(slot);
            if self.faults.dials_fail && self.later.one_in(8) {
                self.turn_away(dial.endpoint, backend);
            }
            Ok(self.open_socket(dial.shard, End::Server(dial.endpoint, backend)))
        };
        if let Ok(socket) = outcome
            && let Some(socket) = self.sockets.get_mut(&socket.slot)
        {
            socket.owner = Party::Server(dial.server).to_owner();
        }
        self.tell(dial.shard, &[], |shard| shard.dialed(dial.server, outcome));
        true
    }

    /// PostgreSQL has no room, is starting, or does not want this user.
    fn turn_away(&mut self, endpoint: usize, number: u32) {
        let code = ["53300", "57P03", "28000"][self.later.below(3)];
        if let Some(backend) = self.clusters[endpoint].backend(number) {
            backend.postgres.turns_away = Some(code);
            self.turned_away += 1;
        }
    }

    /// The ring closes a connection, or the peer of one that is to be closed notices.
    fn close(&mut self) -> bool {
        let closable =
            self.sockets_where(|socket| socket.is_closable(self.now) && !self.is_stalled(socket.shard));
        if let Some(slot) = self.chance.pick(&closable) {
            self.close_socket(slot);
            return true;
        }
        let silent = self.sockets_where(|socket| {
            socket.closing.is_some() && socket.unsent.is_empty() && !socket.peer_ended
        });
        for slot in silent {
            if self.peer_notices_the_end(slot) {
                return true;
            }
        }
        false
    }

    fn close_socket(&mut self, slot: u32) {
        let Some(socket) = self.sockets.remove(&slot) else { return };
        self.trace(|| format!("socket {slot} of shard {} is closed", socket.shard));
        match socket.peer {
            End::Client(number) => {
                let by_fault = self.faults.refuse_clients() || self.draining;
                let client = &mut self.clients[number];
                client.lost |= !client.done;
                let expected = !client.lost || by_fault || client.condemned;
                assert!(expected, "{} was closed for no reason", client.name);
            }
            End::Server(endpoint, backend) => {
                if let Some(backend) = self.clusters[endpoint].backend(backend) {
                    backend.socket = None;
                }
                self.backend_notices_the_end(endpoint, backend);
            }
        }
        self.tell(socket.shard, &[], |shard| shard.closed(socket.owner));
    }

    /// We have said that no more will come. False: it knows already, or does not look.
    fn peer_notices_the_end(&mut self, slot: u32) -> bool {
        let Some(socket) = self.sockets.get_mut(&slot) else { return false };
        match socket.peer {
            End::Client(number) if self.clients[number].stalls_until > self.now => false,
            End::Client(_) => {
                socket.peer_ended = true;
                true
            }
            End::Server(endpoint, number) => {
                let knows = self.clusters[endpoint]
                    .backend(number)
                    .is_none_or(|each| each.exits_at != Instant::NEVER);
                if !knows {
                    self.backend_notices_the_end(endpoint, number);
                }
                !knows
            }
        }
    }

    /// A shard acts on its deadlines.
    fn tick(&mut self) -> bool {
        let due: Vec<usize> = (0..self.nodes.len())
            .filter(|&shard| self.nodes[shard].shard.next_deadline() <= self.now && !self.is_stalled(shard))
            .collect();
        let Some(shard) = self.chance.pick(&due) else { return false };
        self.tell(shard, &[], |shard| shard.tick());
        true
    }

    /// A shard hears that the process ends.
    fn drain(&mut self) -> bool {
        if !self.draining {
            return false;
        }
        let others: Vec<usize> = (0..self.nodes.len())
            .filter(|&shard| !self.nodes[shard].told_to_drain && !self.is_stalled(shard))
            .collect();
        let Some(shard) = self.chance.pick(&others) else { return false };
        self.nodes[shard].told_to_drain = true;
        self.tell(shard, &[], |shard| shard.drain());
        true
    }
}

/// The longest that a statement takes.
const EXECUTION_MAX: Duration = Duration::from_millis(300);

/// The longest that a login takes.
pub const LOGIN_MAX: Duration = Duration::from_secs(2);

/// The longest that a backend takes to end; with what it may be busy with, less than `server_close_timeout`.
const EXIT_MAX: Duration = Duration::from_millis(2500);
