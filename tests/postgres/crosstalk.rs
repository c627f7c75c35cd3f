//! No cross-talk (S27's heart): 200 clients do everything that the protocol has, on 8 servers over two shards, leave in any
//! state and cancel at any time. Every answer belongs to its question, every parameter is the client's own, nobody's
//! statement is another's, nobody finds himself in a transaction that he did not begin.
//!
//! `PGPINION_TEST_LONG=1` makes ten minutes of it. A failure tells the seed, the client, and what it did last.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::crowd::expect;
use crate::pooler::{Plan, Target};
use crate::random::{Random, seed};
use crate::scale::seconds;
use crate::wire::{Address, Client, Fault, Frames, Reply, cancel};

/// What was done, and how often.
type Tally = BTreeMap<&'static str, u64>;

#[test]
fn s27_no_cross_talk() {
    if !Target::is_pgpinion() {
        return;
    }
    let time = seconds(20.0, 600.0);
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    cluster.sql("create table if not exists crosstalk (owner text, number int)");
    cluster.sql(&format!("grant select, insert on crosstalk to {user}"));
    let pooler =
        Plan::new(cluster).shards(2).max_connections(SERVERS).set("max_prepared_statements", 20).start();
    let sampler = cluster.sample();
    let (stop, tally) = (AtomicBool::new(false), Mutex::new(Tally::new()));
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (stop, tally, address, user) = (&stop, &tally, &pooler.address, &user);
            let member = move || {
                let mut member = Member::new(number, address, user);
                while !stop.load(Ordering::Relaxed) {
                    member.act();
                }
                let mut all = tally.lock().expect("nobody panics with it");
                for (what, count) in std::mem::take(&mut member.done) {
                    *all.entry(what).or_default() += count;
                }
            };
            let builder = std::thread::Builder::new().stack_size(STACK_BYTES);
            // Who finds something ends the test for all.
            let watched = move || {
                let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(member));
                if let Err(panic) = outcome {
                    stop.store(true, Ordering::Relaxed);
                    std::panic::resume_unwind(panic);
                }
            };
            builder.spawn_scoped(scope, watched).expect("a thread");
        }
        let end = Instant::now() + time;
        while Instant::now() < end && !stop.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(50));
        }
        stop.store(true, Ordering::Relaxed);
    });
    let tally = tally.into_inner().expect("nobody panicked");
    println!("{tally:?}");
    for (what, _) in ACTS {
        assert!(tally.get(what).is_some_and(|&count| count > 0), "{what} never happened: {tally:?}");
    }
    assert_eq!(
        cluster.value("select count(*) from crosstalk"),
        "0",
        "a transaction of somebody was committed"
    );
    pooler.assert_capped(&sampler.finish(), &user, SERVERS);
    cluster.assert_quiet(&user, SERVERS);
    pooler.finish();
}

/// One client after the other of one thread.
struct Member<'a> {
    number: usize,
    address: &'a Address,
    user: &'a str,
    random: Random,
    client: Client,
    /// What its session's parameters are.
    settings: BTreeMap<&'static str, String>,
    /// Its statements: what the text of each has in it.
    statements: BTreeMap<String, String>,
    /// Those that it deallocated, all at once: it may go on to use them.
    released: BTreeSet<String>,
    history: VecDeque<String>,
    done: Tally,
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let history: Vec<&str> = self.history.iter().map(String::as_str).collect();
            eprintln!("SEED={}: client {} did last:\n  {}", seed(), self.number, history.join("\n  "));
        }
    }
}

type Act = fn(&mut Member<'_>) -> Result<(), Fault>;

const ACTS: [(&str, Act); 24] = [
    ("simple", |member| member.simple()),
    ("several", |member| member.several_statements()),
    ("named", |member| member.named()),
    ("redefined", |member| member.redefined()),
    ("unnamed", |member| member.unnamed()),
    ("no unnamed", |member| member.no_unnamed()),
    ("deallocated", |member| member.deallocate_all()),
    ("function call", |member| member.function_call()),
    ("left behind", |member| member.leave_behind()),
    ("found nothing", |member| member.find_nothing()),
    ("pipeline", |member| member.pipeline()),
    ("flush", |member| member.flush()),
    ("errors", |member| member.errors()),
    ("copy out", |member| member.copy_out()),
    ("copy in", |member| member.copy_in()),
    ("transaction", |member| member.transaction()),
    ("failed transaction", |member| member.failed_transaction()),
    ("set", |member| member.set()),
    ("settings", |member| member.check_settings()),
    ("cursor", |member| member.cursor()),
    ("savepoint", |member| member.savepoint()),
    ("portal", |member| member.portal()),
    ("large", |member| member.large()),
    ("cancel", |member| member.cancel()),
];

impl<'a> Member<'a> {
    fn new(number: usize, address: &'a Address, user: &'a str) -> Self {
        let mut member = Self {
            number,
            address,
            user,
            random: Random::new(0xc0 + number as u64),
            client: connect(address, user, number),
            settings: BTreeMap::new(),
            statements: BTreeMap::new(),
            released: BTreeSet::new(),
            history: VecDeque::new(),
            done: Tally::new(),
        };
        member.begin();
        member
    }

    fn begin(&mut self) {
        self.statements.clear();
        self.released.clear();
        for name in SETTINGS {
            let value = self.client.parameter(name).unwrap_or_else(|| panic!("{name} is reported"));
            self.settings.insert(name, value.to_owned());
        }
        let name = format!("client {}", self.number);
        assert_eq!(self.settings["application_name"], name, "it asked for that");
    }

    fn act(&mut self) {
        if self.random.chance(3) {
            self.note("leaves");
            self.leave();
            self.begin();
            *self.done.entry("left").or_default() += 1;
            return;
        }
        let (name, act) = *self.random.pick(&ACTS);
        self.note(name);
        self.client.forget_tokens();
        if let Err(fault) = act(self) {
            panic!("client {}: {name}: {fault}", self.number);
        }
        *self.done.entry(name).or_default() += 1;
        if self.random.chance(20) {
            sleep(Duration::from_millis(self.random.below(5)));
        }
    }

    fn note(&mut self, what: impl Into<String>) {
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(what.into());
    }

    fn query(&mut self, statement: &str) -> Result<Reply, Fault> {
        self.note(format!("query {}", &statement[..statement.len().min(200)]));
        let reply = self.client.query(statement)?;
        self.note(format!("  {} {:?}", reply.sequence.get(..40).unwrap_or(&reply.sequence), reply.errors));
        Ok(reply)
    }

    /// A simple query whose answer looks like this, and leaves this status.
    fn ask(&mut self, statement: &str, sequence: &str, status: u8) -> Result<Reply, Fault> {
        let reply = self.query(statement)?;
        expect(&reply, sequence)?;
        assert_eq!(reply.status as char, status as char, "after {statement}");
        Ok(reply)
    }

    fn send(&mut self, what: &str, frames: Frames) -> Result<(), Fault> {
        self.note(format!("sends {what}"));
        self.client.send(&frames.0)
    }

    /// The answer of a batch, in the open.
    fn collect(&mut self, sequence: &str) -> Result<Reply, Fault> {
        let reply = self.client.collect()?;
        self.note(format!("  {} {:?}", reply.sequence.get(..40).unwrap_or(&reply.sequence), reply.errors));
        expect(&reply, sequence)?;
        Ok(reply)
    }

    // ---- queries ----

    fn simple(&mut self) -> Result<(), Fault> {
        let token = self.client.token();
        let reply = self.ask(&format!("select '{token}'"), "TDCZ", b'I')?;
        assert_eq!(reply.value(), token);
        self.ask("", "IZ", b'I')?;
        let loud = format!("do $$ begin raise notice '{token}'; end $$");
        let reply = self.ask(&loud, "CZ", b'I')?;
        assert!(reply.notices.iter().any(|notice| notice.message == token), "{:?}", reply.notices);
        Ok(())
    }

    fn several_statements(&mut self) -> Result<(), Fault> {
        let tokens = [self.client.token(), self.client.token()];
        let text = format!("begin; select '{}'; commit; select '{}'", tokens[0], tokens[1]);
        let reply = self.ask(&text, "CTDCCTDCZ", b'I')?;
        assert_eq!(reply.text_rows().concat(), tokens);
        let text = format!("select '{}'; begin; select 1/0; select 2", tokens[0]);
        self.ask(&text, "TDCCEZ", b'E')?;
        self.ask("rollback", "CZ", b'I')?;
        Ok(())
    }

    /// Uses a statement, whose name others have given to others; defines it if it has not.
    fn named(&mut self) -> Result<(), Fault> {
        let name = format!("s{}", self.random.below(6));
        let token = self.client.token();
        let (mut frames, mut sequence) = (Frames::new(), String::new());
        let known = self.statements.contains_key(&name);
        if !known {
            if self.random.chance(30) && !self.released.contains(&name) {
                self.send(&format!("Bind of no {name}"), frames.bind("", &name, &["x"]).sync())?;
                let reply = self.collect("EZ")?;
                assert_eq!(reply.code(), "26000", "{name}");
                return Ok(());
            }
            let part = format!("{}.{}", self.number, self.random.below(1000));
            self.released.remove(&name);
            frames = frames.parse(&name, &format!("select '{part}', $1::text"));
            sequence.push('1');
            self.statements.insert(name.clone(), part);
        }
        frames = frames.bind("", &name, &[&token]).describe(b'P', "").execute("", 0).sync();
        self.send(&format!("{name}, known: {known}"), frames)?;
        let reply = self.collect(&(sequence + "2TDCZ"))?;
        assert_eq!(reply.text_rows(), [[self.statements[&name].clone(), token]], "{name}");
        Ok(())
    }

    /// Closes a statement, or defines one that is there, which is an error.
    fn redefined(&mut self) -> Result<(), Fault> {
        let Some(name) = self.statements.keys().next().cloned() else { return self.named() };
        if self.random.chance(50) {
            self.send(&format!("Close {name}"), Frames::new().close(b'S', &name).sync())?;
            self.collect("3Z")?;
            self.statements.remove(&name);
            return Ok(());
        }
        let frames = Frames::new().parse(&name, "select 'other'").unnamed("select 1", &[]).sync();
        self.send(&format!("Parse {name} again"), frames)?;
        let reply = self.collect("EZ")?;
        assert_eq!(reply.code(), "42P05", "{name}");
        Ok(())
    }

    /// The statement without a name is its own, whatever server it gets next.
    fn unnamed(&mut self) -> Result<(), Fault> {
        let part = format!("unnamed {}.{}", self.number, self.random.below(1000));
        let text = format!("select '{part}', $1::text");
        self.send("an unnamed Parse", Frames::new().parse("", &text).describe(b'S', "").sync())?;
        self.collect("1tTZ")?;
        for _ in 0..self.random.between(1, 3) {
            sleep(Duration::from_millis(self.random.below(3)));
            let token = self.client.token();
            self.send(
                "its Bind",
                Frames::new().bind("", "", &[&token]).describe(b'P', "").execute("", 0).sync(),
            )?;
            let reply = self.collect("2TDCZ")?;
            assert_eq!(reply.text_rows(), [[part.clone(), token]]);
        }
        Ok(())
    }

    /// Nor does it find somebody else's where it has none.
    fn no_unnamed(&mut self) -> Result<(), Fault> {
        self.ask("select 1", "TDCZ", b'I')?;
        self.send("a Bind of nothing", Frames::new().bind("", "", &[]).execute("", 0).sync())?;
        assert_eq!(self.collect("EZ")?.code(), "26000");
        Ok(())
    }

    fn deallocate_all(&mut self) -> Result<(), Fault> {
        match self.random.below(3) {
            0 => self.ask("deallocate all", "CZ", b'I').map(drop)?,
            1 => self.ask("select 1; deallocate all; select 2", "TDCCTDCZ", b'I').map(drop)?,
            _ => {
                self.send("deallocate all", Frames::new().unnamed("deallocate all", &[]).sync())?;
                self.collect("12nCZ")?;
            }
        }
        self.released.extend(std::mem::take(&mut self.statements).into_keys());
        Ok(())
    }

    /// int4pl.
    fn function_call(&mut self) -> Result<(), Fault> {
        let (one, other) = (self.random.below(1000) as u32, self.random.below(1000) as u32);
        let argument = |number: u32| [4_u32.to_be_bytes(), number.to_be_bytes()].concat();
        let body =
            [&177_u32.to_be_bytes()[..], &[0, 1, 0, 1, 0, 2], &argument(one), &argument(other), &[0, 1]]
                .concat();
        self.send(&format!("{one} + {other}"), Frames::new().frame(b'F', &[&body]))?;
        let answer = loop {
            let message = self.client.read()?;
            if message.tag == b'V' {
                break message.body;
            }
            assert!(b"NSA".contains(&message.tag), "{}", message.tag as char);
        };
        assert_eq!(answer, argument(one + other));
        self.collect("Z")?;
        Ok(())
    }

    /// What cannot follow a client is nobody's.
    fn leave_behind(&mut self) -> Result<(), Fault> {
        let statement = *self.random.pick(&[
            "set work_mem = '77kB'",
            "set statement_timeout = '1h'",
            "create temp table left_behind (a int)",
            "listen left_behind",
            "prepare left_behind as select 1",
            "declare left_behind cursor with hold for select 1",
        ]);
        self.ask(statement, "CZ", b'I')?;
        self.find_nothing()
    }

    fn find_nothing(&mut self) -> Result<(), Fault> {
        let found = "select current_setting('work_mem'), current_setting('statement_timeout'), \
            to_regclass('pg_temp.left_behind'), (select count(*) from pg_listening_channels()), \
            (select count(*) from pg_prepared_statements where name = 'left_behind'), \
            (select count(*) from pg_cursors)";
        let reply = self.ask(found, "TDCZ", b'I')?;
        assert_eq!(reply.text_rows().concat(), ["4MB", "0", "", "0", "0", "0"]);
        Ok(())
    }

    /// Groups with a Sync each, some of which fail, all sent at once.
    fn pipeline(&mut self) -> Result<(), Fault> {
        let tokens: Vec<String> = (0..self.random.between(2, 10)).map(|_| self.client.token()).collect();
        let fails: Vec<bool> = tokens.iter().map(|_| self.random.chance(25)).collect();
        let mut frames = Frames::new();
        for (token, &fails) in tokens.iter().zip(&fails) {
            if fails {
                frames = frames.unnamed(&format!("select '{token}'::int"), &[]);
            }
            frames = frames.unnamed("select $1::text", &[token]).sync();
        }
        self.send(&format!("a pipeline, failing: {fails:?}"), frames)?;
        for (token, &fails) in tokens.iter().zip(&fails) {
            if fails {
                let reply = self.client.collect()?;
                assert!(reply.sequence.ends_with("EZ"), "{}: {:?}", reply.sequence, reply.errors);
                assert_eq!(reply.code(), "22P02", "{:?}", reply.errors);
                assert!(reply.errors[0].message.contains(token), "{}", reply.errors[0]);
            } else {
                assert_eq!(&self.collect("12TDCZ")?.value(), token);
            }
        }
        Ok(())
    }

    /// An answer without Sync, and the rest of the batch later.
    fn flush(&mut self) -> Result<(), Fault> {
        let tokens = [self.client.token(), self.client.token()];
        self.send("a batch and Flush", Frames::new().unnamed("select $1::text", &[&tokens[0]]).flush())?;
        for expected in *b"12TDC" {
            let message = loop {
                let message = self.client.read()?;
                if !b"NSA".contains(&message.tag) {
                    break message;
                }
            };
            assert_eq!(message.tag as char, expected as char);
            if message.tag == b'D' {
                assert_eq!(message.row(), [Some(tokens[0].clone().into_bytes())]);
            }
        }
        self.send("the rest", Frames::new().unnamed("select $1::text", &[&tokens[1]]).sync())?;
        assert_eq!(self.collect("12TDCZ")?.value(), tokens[1]);
        Ok(())
    }

    fn errors(&mut self) -> Result<(), Fault> {
        let token = self.client.token();
        let reply = self.ask(&format!("select '{token}'::int"), "EZ", b'I')?;
        assert!(reply.errors[0].message.contains(&token), "{}", reply.errors[0]);
        let frames = Frames::new().unnamed(&format!("select \"{token}\""), &[]).sync();
        self.send("an unknown column", frames)?;
        let reply = self.collect("EZ")?;
        assert_eq!(reply.code(), "42703");
        assert!(reply.errors[0].message.contains(&token), "{}", reply.errors[0]);
        Ok(())
    }

    fn large(&mut self) -> Result<(), Fault> {
        let value = self.client.token() + &"v".repeat(1 << self.random.between(10, 18));
        self.send("a large value", Frames::new().unnamed("select $1::text || $1::text", &[&value]).sync())?;
        let reply = self.collect("12TDCZ")?;
        assert!(reply.value() == value.clone() + &value, "{} bytes differ", value.len());
        Ok(())
    }

    // ---- COPY ----

    fn copy_out(&mut self) -> Result<(), Fault> {
        let token = self.client.token();
        let rows = self.random.below(300) as usize;
        let fails = self.random.chance(30);
        let divisor = if fails { format!("(i - {rows})") } else { "1".into() };
        let text =
            format!("copy (select '{token}', i / {divisor} from generate_series(1, {rows}) i) to stdout");
        let reply = self.query(&text)?;
        if fails && rows > 0 {
            assert_eq!((reply.code(), reply.status), ("22012", b'I'));
            return Ok(());
        }
        expect(&reply, &format!("H{}cCZ", "d".repeat(rows)))?;
        let expected: String = (1..=rows).map(|i| format!("{token}\t{i}\n")).collect();
        assert!(reply.copied == expected.as_bytes(), "{rows} rows differ");
        Ok(())
    }

    /// Rows that nobody but this transaction ever sees.
    fn copy_in(&mut self) -> Result<(), Fault> {
        let token = self.client.token();
        self.ask("begin", "CZ", b'T')?;
        let reply = self.query("copy crosstalk from stdin")?;
        expect(&reply, "G")?;
        let rows = self.random.between(1, 200);
        let mut frames = Frames::new();
        for number in 0..rows {
            frames = frames.copy_data(format!("{token}\t{number}\n").as_bytes());
        }
        match self.random.below(3) {
            0 => {
                self.send("rows and CopyDone", frames.copy_done())?;
                let reply = self.collect("CZ")?;
                assert_eq!(reply.commands, [format!("COPY {rows}")]);
                let seen = self.ask("select count(*), count(distinct owner) from crosstalk", "TDCZ", b'T')?;
                assert_eq!(seen.text_rows(), [[rows.to_string(), "1".into()]]);
            }
            1 => {
                self.send("rows and CopyFail", frames.copy_fail(&token))?;
                let reply = self.collect("EZ")?;
                assert!(reply.errors[0].message.contains(&token), "{}", reply.errors[0]);
            }
            _ => {
                let bad = format!("{token}\tnone\n");
                self.send("a bad row", frames.copy_data(bad.as_bytes()).copy_done())?;
                assert_eq!(self.collect("EZ")?.code(), "22P02");
            }
        }
        self.ask("rollback", "CZ", b'I')?;
        Ok(())
    }

    // ---- transactions ----

    fn transaction(&mut self) -> Result<(), Fault> {
        self.ask("begin", "CZ", b'T')?;
        let identity = "select pg_backend_pid(), pg_current_xact_id()";
        let first = self.ask(identity, "TDCZ", b'T')?.text_rows();
        for _ in 0..self.random.below(4) {
            sleep(Duration::from_millis(self.random.below(3)));
            assert_eq!(self.ask(identity, "TDCZ", b'T')?.text_rows(), first, "another transaction");
        }
        let end = *self.random.pick(&["commit", "rollback"]);
        self.ask(end, "CZ", b'I')?;
        Ok(())
    }

    fn failed_transaction(&mut self) -> Result<(), Fault> {
        let token = self.client.token();
        self.ask("begin", "CZ", b'T')?;
        self.ask(&format!("insert into crosstalk values ('{token}', 1)"), "CZ", b'T')?;
        self.ask("select 1/0", "EZ", b'E')?;
        assert_eq!(self.ask("select 1", "EZ", b'E')?.code(), "25P02");
        let reply = self.ask("commit", "CZ", b'I')?;
        assert_eq!(reply.commands, ["ROLLBACK"]);
        Ok(())
    }

    fn savepoint(&mut self) -> Result<(), Fault> {
        let token = self.client.token();
        self.ask("begin", "CZ", b'T')?;
        self.ask(&format!("insert into crosstalk values ('{token}', 0)"), "CZ", b'T')?;
        self.ask("savepoint s", "CZ", b'T')?;
        self.ask(&format!("insert into crosstalk values ('{token}', 1)"), "CZ", b'T')?;
        self.ask("select 1/0", "EZ", b'E')?;
        self.ask("rollback to s", "CZ", b'T')?;
        let seen = self.ask("select owner, number from crosstalk", "TDCZ", b'T')?;
        assert_eq!(seen.text_rows(), [[token, "0".into()]]);
        self.ask("rollback", "CZ", b'I')?;
        Ok(())
    }

    fn cursor(&mut self) -> Result<(), Fault> {
        let token = self.client.token();
        self.ask("begin", "CZ", b'T')?;
        let declare = format!("declare c cursor for select '{token}', i from generate_series(1, 20) i");
        self.ask(&declare, "CZ", b'T')?;
        for round in 0..2 {
            let reply = self.ask("fetch 10 from c", "TDDDDDDDDDDCZ", b'T')?;
            for (row, i) in reply.text_rows().into_iter().zip(round * 10 + 1..) {
                assert_eq!(row, [token.clone(), i.to_string()]);
            }
        }
        self.ask("commit", "CZ", b'I')?;
        Ok(())
    }

    /// A portal with a name that others use too, a few rows at a time.
    fn portal(&mut self) -> Result<(), Fault> {
        let token = self.client.token();
        let statement = "select $1::text, i from generate_series(1, 7) i";
        let frames = Frames::new().parse("", statement).bind("p", "", &[&token]);
        self.send("a portal", frames.execute("p", 3).execute("p", 3).execute("p", 3).sync())?;
        let reply = self.collect("12DDDsDDDsDCZ")?;
        let expected: Vec<[String; 2]> = (1..=7).map(|i| [token.clone(), i.to_string()]).collect();
        assert_eq!(reply.text_rows(), expected);
        Ok(())
    }

    // ---- parameters ----

    fn set(&mut self) -> Result<(), Fault> {
        let (name, values) = *self.random.pick(&VALUES);
        let value = match values {
            [] => format!("client {} as {}", self.number, self.random.below(1000)),
            values => (*self.random.pick(values)).to_owned(),
        };
        let before = self.settings[name].clone();
        let rolled_back = match self.random.below(3) {
            0 => {
                self.ask(&format!("set {name} = '{value}'"), "CZ", b'I')?;
                false
            }
            end => {
                self.ask("begin", "CZ", b'T')?;
                let statement = format!("select set_config('{name}', $1, false)");
                self.send(&format!("{name} = {value}"), Frames::new().unnamed(&statement, &[&value]).sync())?;
                self.collect("12TDCZ")?;
                self.ask(if end == 1 { "commit" } else { "rollback" }, "CZ", b'I')?;
                end != 1
            }
        };
        self.settings.insert(name, if rolled_back { before } else { value });
        self.check_settings()
    }

    fn check_settings(&mut self) -> Result<(), Fault> {
        let columns: Vec<String> = SETTINGS.iter().map(|name| format!("current_setting('{name}')")).collect();
        let reply = self.ask(&format!("select {}", columns.join(", ")), "TDCZ", b'I')?;
        let expected: Vec<String> = SETTINGS.iter().map(|name| self.settings[name].clone()).collect();
        assert_eq!(reply.text_rows().concat(), expected, "PostgreSQL has other parameters");
        for (name, value) in SETTINGS.into_iter().zip(&expected) {
            assert_eq!(self.client.parameter(name), Some(value.as_str()), "it was told otherwise");
        }
        let name = *self.random.pick(&SETTINGS);
        let shown = self.ask(&format!("show {name}"), "TDCZ", b'I')?;
        assert_eq!(shown.value(), self.settings[name]);
        Ok(())
    }

    // ---- cancelling and leaving ----

    /// Cancels its own query at any time of its life. What it asks next is not hit.
    fn cancel(&mut self) -> Result<(), Fault> {
        let token = self.client.token();
        let sleeps =
            format!("select pg_sleep({}), '{token}'", ["0", "0.02", "0.3"][self.random.below(3) as usize]);
        if self.random.chance(50) {
            self.send(&sleeps, Frames::new().query(&sleeps))?;
        } else {
            self.send(&format!("a batch of {sleeps}"), Frames::new().unnamed(&sleeps, &[]).sync())?;
        }
        if self.random.chance(50) {
            sleep(Duration::from_millis(self.random.below(30)));
        }
        self.note("cancels");
        let (address, key) = (self.address, self.client.key());
        cancel(address, &key);
        let reply = self.client.collect()?;
        match reply.code() {
            "" => assert_eq!(reply.text_rows()[0][1], token),
            code => assert_eq!(code, "57014", "{:?}", reply.errors),
        }
        assert_eq!(reply.status, b'I');
        self.simple()
    }

    /// In whatever state, and comes anew.
    fn leave(&mut self) {
        self.client.forget_tokens();
        let token = self.client.token();
        let frames = match self.random.below(10) {
            0 => Frames::new(),
            1 => Frames::new().query("begin"),
            2 => Frames::new().query(&format!("begin; insert into crosstalk values ('{token}', 1)")),
            3 => Frames::new().query("begin; select 1/0"),
            4 => Frames::new().unnamed(&format!("insert into crosstalk values ('{token}', 1)"), &[]),
            5 => Frames::new().unnamed("select 1/0", &[]).unnamed("select 1", &[]),
            6 => Frames::new().query("begin").query("copy crosstalk from stdin").copy_data(b"half a row\t"),
            7 => Frames::new().query(&format!("select '{token}', i from generate_series(1, 30000) i")),
            8 => Frames::new().query("select pg_sleep(0.05)"),
            _ => {
                Frames::new().query("set timezone = 'Asia/Kathmandu'").query("set application_name = 'gone'")
            }
        };
        let mut bytes = frames.0;
        if self.random.chance(30) {
            bytes.truncate(self.random.below(bytes.len() as u64 + 1) as usize);
        }
        self.note(format!("sends {} bytes of {:?} and goes", bytes.len(), String::from_utf8_lossy(&bytes)));
        // It may not be read to its end, and need not.
        let sent = self.client.send(&bytes);
        assert!(sent.is_ok(), "{sent:?}");
        if self.random.chance(50) {
            sleep(Duration::from_millis(self.random.below(10)));
        }
        let next = connect(self.address, self.user, self.number);
        let gone = std::mem::replace(&mut self.client, next);
        match self.random.below(3) {
            0 => gone.terminate(),
            1 => gone.reset(),
            _ => drop(gone),
        }
    }
}

/// A client with a name of its own that waits as long as it has to.
fn connect(address: &Address, user: &str, number: usize) -> Client {
    let mut client = Client::dial(address).expect("it listens");
    client.set_timeout(PATIENCE);
    let name = format!("client {number}");
    let parameters = [("user", user), ("database", "app"), ("application_name", name.as_str())];
    client.log_in(&parameters).unwrap_or_else(|fault| panic!("login of client {number}: {fault}"));
    client
}

const CLIENTS: usize = 200;
const SERVERS: usize = 8;

/// Requests and answers of a client that are told when it finds something wrong.
const HISTORY: usize = 40;

/// A buffer of the client's is the largest thing on it.
const STACK_BYTES: usize = 512 * 1024;

/// 200 clients on 8 servers wait for each other, on a machine that does other things.
const PATIENCE: Duration = Duration::from_secs(60);

const SETTINGS: [&str; 4] = ["TimeZone", "DateStyle", "IntervalStyle", "application_name"];

/// As PostgreSQL writes them; a name is made up.
const VALUES: [(&str, &[&str]); 4] = [
    ("TimeZone", &["UTC", "PRC", "Asia/Tokyo", "Europe/Berlin"]),
    ("DateStyle", &["ISO, MDY", "German, DMY", "SQL, DMY", "Postgres, YMD"]),
    ("IntervalStyle", &["postgres", "iso_8601", "sql_standard"]),
    ("application_name", &[]),
];
