//! Clients that are administrators: the sessions of the console.
//!
//! What commands mean and how answers look is in `admin`. Here commands are read one after the other, and the reports of
//! all shards are asked for in rounds: one is under way at a time, with at most one inquiry unanswered for each other
//! shard. A round ends with the last report, or without those that are still missing after [`REPORT_MAX`].

use super::client::State;
use super::{Alarm, ClientKey, Deadline, Effect, Shard};
use crate::admin::{self, Answer, Command, Reading, show};
use crate::config::{CONSOLE_NAMES, LogLevel};
use crate::ids::ShardId;
use crate::limits::UNSENT_BYTES_HIGH;
use crate::mail::Letter;
use crate::metrics::{CoreReport, ShardReport};
use crate::time::Instant;
use crate::wire::startup::Startup;
use crate::wire::{Refusal, SqlState, backend};
use bytes::{Bytes, BytesMut};
use std::time::Duration;

/// Who asks, and what has been told.
#[derive(Debug, Default)]
pub(super) struct Console {
    /// The clients of the round that is under way.
    asking: Vec<(ClientKey, Command)>,
    /// Those that came after it began.
    next: Vec<(ClientKey, Command)>,
    /// What it has been told.
    told: Vec<ShardReport>,
    /// Shards that owe an answer, be it to an earlier round.
    owing: Vec<ShardId>,
    /// The own report is still to be made for this round.
    owes_itself: bool,
    /// Shards that wait for the own report.
    askers: Vec<ShardId>,
    deadline: Deadline,
}

/// The client wants the console.
pub(super) fn is_wanted(startup: &Startup) -> bool {
    let database = startup.get("database").filter(|name| !name.is_empty()).or(startup.get("user"));
    database.is_some_and(|name| CONSOLE_NAMES.contains(&name))
}

impl Shard {
    // ---- sessions ----

    /// An administrator logs in. Even when there are too many clients: somebody has to see why.
    pub(super) fn enter_console(&mut self, key: ClientKey, startup: &Startup) {
        if !self.config.is_admin(startup.get("user").unwrap_or_default()) {
            return self.refuse(key, admin::not_allowed());
        }
        let mut greeting = BytesMut::with_capacity(512);
        backend::put_authentication_ok(&mut greeting);
        for (name, value) in admin::STATUS {
            backend::put_parameter_status(&mut greeting, name, value);
        }
        self.put_cancel_key(key, &mut greeting);
        backend::put_ready_for_query(&mut greeting);
        let Some(client) = self.clients.get_mut(key) else { return };
        client.state = State::Console;
        client.deadline.clear();
        self.stats.logins += 1;
        self.send_to_client(key, greeting.freeze());
        self.read_commands(key);
    }

    /// Answers what has come, one command after the other, as long as the client reads the answers.
    pub(super) fn read_commands(&mut self, key: ClientKey) {
        loop {
            let Some(client) = self.clients.get_mut(key) else { return };
            if client.state != State::Console {
                return;
            }
            if client.unsent as usize > UNSENT_BYTES_HIGH {
                return self.pause_client(key);
            }
            match admin::read(&client.pending) {
                Reading::Incomplete => return self.resume_receiving(key),
                Reading::Query(text, used) => {
                    client.pending.drain(..used);
                    self.run_command(key, &text);
                }
                Reading::Terminate => return self.leave(key, None, "client close request"),
                Reading::Broken(refusal) => return self.refuse(key, refusal),
            }
        }
    }

    fn run_command(&mut self, key: ClientKey, text: &str) {
        let answer = match admin::parse(text) {
            Err(refusal) => Answer::default().error(&refusal),
            Ok(command @ (Command::Quota | Command::Shards)) => return self.ask_shards(key, command),
            Ok(Command::Reload) => return self.ask_reload(key),
            Ok(Command::Empty) => Answer::default().empty(),
            Ok(Command::Config) => Answer::default().table(&show::config(&self.config), SHOW),
            Ok(Command::Version) => Answer::default().table(&show::version(), SHOW),
            Ok(Command::Help) => show::help(),
            Ok(Command::Parameter(name, value)) => {
                Answer::default().table(&show::parameter(name, value), SHOW)
            }
            Ok(Command::SetIgnored) => Answer::default().notice("SET ignored", "").complete("SET"),
        };
        self.send_to_client(key, answer);
    }

    /// The answer to a command that had to be waited for.
    fn answer_command(&mut self, key: ClientKey, answer: Bytes) {
        let Some(client) = self.clients.get_mut(key) else { return };
        if client.state != State::ConsoleWaiting {
            return;
        }
        client.state = State::Console;
        client.deadline.clear();
        self.send_to_client(key, answer);
        self.read_commands(key);
    }

    /// The client leaves while it waits for an answer.
    pub(super) fn forget_asking(&mut self, key: ClientKey) {
        self.console.asking.retain(|&(client, _)| client != key);
        self.console.next.retain(|&(client, _)| client != key);
    }

    // ---- reload ----

    fn ask_reload(&mut self, key: ClientKey) {
        let Some(client) = self.clients.get_mut(key) else { return };
        client.state = State::ConsoleWaiting;
        self.set_client_deadline(key, self.now + RELOAD_MAX);
        let session = self.session_of(key);
        self.log(LogLevel::Info, session, None, || "console: RELOAD".into());
        self.effects.push(Effect::Reload { client: key });
    }

    /// The reload that a client asked for is applied on all shards, or refused.
    pub fn reloaded(&mut self, client: ClientKey, good: bool) {
        self.answer_command(client, admin::reloaded(good));
    }

    /// Whatever comes after this must not be taken for the answer to another command: the session ends.
    pub(super) fn reload_took_too_long(&mut self, key: ClientKey) {
        let text = format!("RELOAD: not all shards have answered within {} s", RELOAD_MAX.as_secs());
        self.refuse(key, Refusal::new(SqlState::INTERNAL_ERROR, text).hint("The log says which."));
    }

    // ---- reports ----

    fn ask_shards(&mut self, key: ClientKey, command: Command) {
        let Some(client) = self.clients.get_mut(key) else { return };
        client.state = State::ConsoleWaiting;
        self.console.next.push((key, command));
        self.begin_round();
    }

    /// Begins a round if somebody waits for one and none is under way.
    fn begin_round(&mut self) {
        if !self.console.asking.is_empty() || self.console.next.is_empty() {
            return;
        }
        self.console.asking = std::mem::take(&mut self.console.next);
        self.console.told.clear();
        for shard in (0..self.shards).map(|number| ShardId(number as u16)) {
            if shard != self.id && !self.console.owing.contains(&shard) {
                self.console.owing.push(shard);
                self.effects.push(Effect::Mail { to: shard, letter: Letter::Inquire });
            }
        }
        self.console.owes_itself = true;
        self.deadlines.set(Alarm::Console, &mut self.console.deadline, self.now + REPORT_MAX);
        self.effects.push(Effect::Observe);
    }

    /// Another shard asks for the report of this one.
    pub(super) fn inquired(&mut self, by: ShardId) {
        self.console.askers.push(by);
        self.effects.push(Effect::Observe);
    }

    /// What the engine knows of this core: with it the report is complete.
    pub fn observed(&mut self, core: CoreReport) {
        let report = self.report(core);
        for to in std::mem::take(&mut self.console.askers) {
            let letter = Letter::Report(Box::new(report.clone()));
            self.effects.push(Effect::Mail { to, letter });
        }
        if std::mem::take(&mut self.console.owes_itself) {
            self.console.told.push(report);
            self.end_round_if_complete();
        }
    }

    /// Another shard has answered.
    pub(super) fn told(&mut self, report: ShardReport) {
        self.console.owing.retain(|&shard| shard != report.shard);
        if !self.console.asking.is_empty() {
            self.console.told.push(report);
            self.end_round_if_complete();
        }
    }

    fn end_round_if_complete(&mut self) {
        if self.console.owing.is_empty() && !self.console.owes_itself {
            self.end_round();
        }
    }

    pub(super) fn console_alarm(&mut self, rang: Instant) {
        if self.deadlines.is_due(Alarm::Console, &mut self.console.deadline, rang, self.now) {
            self.end_round();
        }
    }

    fn end_round(&mut self) {
        self.console.deadline.clear();
        let mut told = std::mem::take(&mut self.console.told);
        told.sort_by_key(|report| report.shard);
        for (client, command) in std::mem::take(&mut self.console.asking) {
            let answer = self.answer_from(&told, command);
            self.answer_command(client, answer);
        }
        self.begin_round();
    }

    fn answer_from(&self, told: &[ShardReport], command: Command) -> Bytes {
        let mut answer = Answer::default();
        for shard in &self.console.owing {
            let text = format!(
                "shard {shard} did not answer within {} s: its rows are missing",
                REPORT_MAX.as_secs()
            );
            answer = answer.notice(&text, "");
        }
        if command == Command::Shards {
            return answer.table(&show::shards(told), SHOW);
        }
        for report in told.iter().filter(|report| report.routes_left_out > 0) {
            let text = format!("shard {} has {} more routes", report.shard, report.routes_left_out);
            answer = answer.notice(&text, "");
        }
        answer.table(&show::quota(told), SHOW)
    }
}

/// The tag of all `SHOW` commands.
const SHOW: &str = "SHOW";

/// A shard answers within a turn. One that has not after this is stuck, and the others are all the more of interest.
const REPORT_MAX: Duration = Duration::from_secs(1);

/// Reading the files and a turn of each shard, with patience.
const RELOAD_MAX: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cancel_key::Secret;
    use crate::config::Config;
    use crate::ids::{Owner, SocketId};
    use crate::shard::{Peer, Piece};
    use std::sync::Arc;

    /// A shard of three, its clients, and what they were sent.
    struct World {
        shard: Shard,
        sent: Vec<(SocketId, String)>,
        inquiries: Vec<ShardId>,
        reports: Vec<(ShardId, ShardReport)>,
        reloads: Vec<ClientKey>,
        closed: Vec<SocketId>,
        now: u64,
    }

    impl World {
        fn new() -> Self {
            let mut config = Config::upstream("127.0.0.1:5432", &[0, 1, 2]).unwrap();
            config.admin_users = vec!["dba".into()];
            let mut shard = Shard::new(Arc::new(config), ShardId(1), 3, 1, Secret::new([7; 32]));
            shard.set_time(Instant::from_nanos(1));
            let (sent, inquiries, reports, reloads, closed) = Default::default();
            Self { shard, sent, inquiries, reports, reloads, closed, now: 1 }
        }

        fn client(&mut self, slot: u32, user: &str, surplus: bool) -> Owner {
            let owner = self.shard.accepted(SocketId { slot, generation: 0 }, Peer::Unix, surplus);
            let body = format!("\0\x03\0\0user\0{user}\0database\0pgpinion\0\0");
            self.send(owner, [&(body.len() as u32 + 4).to_be_bytes()[..], body.as_bytes()].concat());
            owner
        }

        fn query(&mut self, owner: Owner, text: &str) {
            let length = (text.len() as u32 + 5).to_be_bytes();
            self.send(owner, [b"Q", &length[..], text.as_bytes(), b"\0"].concat());
        }

        fn send(&mut self, owner: Owner, bytes: Vec<u8>) {
            self.shard.received(owner, &bytes);
            self.apply();
        }

        fn apply(&mut self) {
            loop {
                let mut effects = Vec::new();
                self.shard.take_effects(&mut effects);
                if effects.is_empty() {
                    return;
                }
                for effect in effects {
                    match effect {
                        Effect::Send { socket, piece: Piece::Own(bytes) } => {
                            self.sent.push((socket, String::from_utf8_lossy(&bytes).into_owned()));
                        }
                        Effect::Observe => {
                            self.shard.observed(CoreReport { cpu: 77, ..CoreReport::default() })
                        }
                        Effect::Mail { to, letter: Letter::Inquire } => self.inquiries.push(to),
                        Effect::Mail { to, letter: Letter::Report(report) } => {
                            self.reports.push((to, *report))
                        }
                        Effect::Reload { client } => self.reloads.push(client),
                        Effect::Close { socket, .. } => self.closed.push(socket),
                        _ => {}
                    }
                }
            }
        }

        fn advance(&mut self, time: Duration) {
            self.now += time.as_nanos() as u64;
            self.shard.set_time(Instant::from_nanos(self.now));
            self.shard.tick();
            self.apply();
        }

        fn answers(&mut self, slot: u32) -> Vec<String> {
            let of_it: Vec<_> = self.sent.extract_if(.., |(socket, _)| socket.slot == slot).collect();
            of_it.into_iter().map(|(_, text)| text).collect()
        }

        fn report_of(&self, shard: u16) -> ShardReport {
            let mut report = self.shard.report(CoreReport::default());
            report.shard = ShardId(shard);
            report
        }
    }

    #[test]
    fn administrators_are_greeted_and_others_are_not() {
        let mut world = World::new();
        world.client(1, "dba", true);
        let greeting = world.answers(1).concat();
        assert!(greeting.contains("server_version") && greeting.ends_with("Z\0\0\0\x05I"), "{greeting:?}");
        world.client(2, "app", false);
        let refusal = world.answers(2).concat();
        assert!(refusal.contains("FATAL") && refusal.contains("42501") && refusal.contains("not allowed"));
        assert_eq!(world.closed, [SocketId { slot: 2, generation: 0 }]);
    }

    #[test]
    fn a_round_ends_with_the_last_report() {
        let mut world = World::new();
        let (one, two) = (world.client(1, "dba", false), world.client(2, "dba", false));
        world.sent.clear();
        world.query(one, "show shards");
        assert_eq!(world.inquiries, [ShardId(0), ShardId(2)]);
        // The second one's question is answered by a round that begins after it.
        world.query(two, "show quota");
        assert_eq!(world.inquiries.len(), 2, "an inquiry at a time");
        for shard in [2, 0] {
            assert!(world.answers(1).is_empty());
            let report = world.report_of(shard);
            world.shard.mail(report.shard, Letter::Report(Box::new(report)));
            world.apply();
        }
        let answer = world.answers(1).concat();
        assert_eq!(answer.matches('D').count(), 3, "{answer:?}");
        assert!(answer.contains("77"), "what the engine knows of the core");
        assert!(world.answers(2).is_empty());
        assert_eq!(world.inquiries, [0, 2, 0, 2].map(ShardId));
    }

    #[test]
    fn a_round_goes_on_without_a_shard_that_is_stuck() {
        let mut world = World::new();
        let one = world.client(1, "dba", false);
        world.query(one, "show shards");
        let report = world.report_of(0);
        world.shard.mail(report.shard, Letter::Report(Box::new(report)));
        world.advance(REPORT_MAX - Duration::from_millis(1));
        world.sent.clear();
        world.advance(Duration::from_millis(1));
        let answer = world.answers(1).concat();
        assert!(answer.contains("shard 2 did not answer within 1 s"), "{answer:?}");
        // It is not asked again before it has answered; its late answer is as good as another.
        world.query(one, "show shards");
        assert_eq!(world.inquiries, [0, 2, 0].map(ShardId));
        for shard in [2, 0] {
            let report = world.report_of(shard);
            world.shard.mail(report.shard, Letter::Report(Box::new(report)));
            world.apply();
        }
        assert_eq!(world.answers(1).concat().matches("did not answer").count(), 0);
    }

    #[test]
    fn others_are_answered() {
        let mut world = World::new();
        world.shard.mail(ShardId(2), Letter::Inquire);
        world.apply();
        let (to, report) = &world.reports[0];
        assert_eq!((*to, report.shard, report.core.cpu), (ShardId(2), ShardId(1), 77));
    }

    #[test]
    fn commands_wait_for_the_answer_of_the_one_before() {
        let mut world = World::new();
        let one = world.client(1, "dba", false);
        world.sent.clear();
        world.query(one, "reload");
        world.query(one, "show version");
        assert!(world.answers(1).is_empty());
        let client = world.reloads[0];
        world.shard.reloaded(client, true);
        world.apply();
        let answers = world.answers(1);
        assert_eq!(answers.len(), 2);
        assert!(answers[0].contains("RELOAD") && answers[1].contains("pgpinion 0."), "{answers:?}");
        world.query(one, "reload");
        world.advance(RELOAD_MAX);
        assert!(world.answers(1).concat().contains("not all shards have answered"));
        world.shard.reloaded(client, true);
        world.apply();
        assert!(world.answers(1).is_empty(), "nothing after the end");
    }

    #[test]
    fn who_leaves_while_it_waits_is_forgotten() {
        let mut world = World::new();
        let one = world.client(1, "dba", false);
        world.query(one, "show quota");
        world.sent.clear();
        world.shard.ended(one, None);
        world.apply();
        world.advance(REPORT_MAX);
        assert!(world.sent.is_empty());
        assert!(world.shard.console.asking.is_empty());
    }
}
