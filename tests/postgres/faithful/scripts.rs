//! The table. All sessions find the same tables and functions ([`super::setup`]) and leave them as they were.

use super::setup::{bind_as, call};
use crate::streams::Step;
use crate::wire::Frames;

/// A session.
pub struct Script {
    pub name: &'static str,
    pub steps: Vec<Step>,
    /// It leaves something on its server that cannot follow a client.
    pub leaves: bool,
    /// It has transactions open between two ReadyForQuery.
    pub stays_open: bool,
}

impl Script {
    fn new<S: Into<Step>>(name: &'static str, steps: Vec<S>) -> Self {
        let steps = steps.into_iter().map(Into::into).collect();
        Self { name, steps, leaves: false, stays_open: false }
    }

    fn stays_open(mut self) -> Self {
        self.stays_open = true;
        self
    }

    fn leaves(mut self) -> Self {
        self.leaves = true;
        self.stays_open = true;
        self
    }
}

/// `tell_all` is the number of the function of that name.
pub fn scripts(tell_all: u32) -> Vec<Script> {
    vec![
        simple_queries(),
        transactions_in_one_query(),
        transactions(),
        savepoints(),
        two_phases(),
        binary_formats(),
        portals(),
        portals_of_a_transaction(),
        unnamed_statements(),
        function_calls(tell_all),
        function_calls_in_transactions(),
        errors(),
        notices(tell_all),
        parameters(),
        parameters_in_transactions(),
        cursors(),
        procedures(),
        session_state(),
        notifications(),
        the_end_of_a_session(),
    ]
}

fn new() -> Frames {
    Frames::new()
}

fn queries(list: &[&str]) -> Vec<Frames> {
    list.iter().map(|query| new().query(query)).collect()
}

fn simple_queries() -> Script {
    let unnamed = |query: &str| new().unnamed(query, &[]).sync();
    let mut steps = queries(&[
        "",
        ";",
        " ; ;; ",
        "-- nothing",
        "/* nothing */;",
        "select",
        "select from generate_series(1, 3)",
        "select null, '', 1",
        "select 1 as \"a column with a name of more than sixty-three bytes, which is cut off by PostgreSQL\"",
        "values (1), (2); table kept; show server_encoding",
        "insert into kept values (1), (2) returning a; update kept set a = a + 1; delete from kept where a = 99",
        "merge into kept using (select 2 as a) m on kept.a = m.a when matched then delete",
        "insert into kept select 1 where false; truncate kept",
        "explain (costs off) select * from kept",
        "vacuum kept",
        "select 1; vacuum kept",
        "create table made as select 1 as a; drop table made",
        "drop table if exists nobody",
        "select repeat('x', 1000000)",
        "select i, repeat('y', i) from generate_series(1, 3000) i",
        "selec",
        "select \u{1}",
    ]);
    steps.extend(
        ["", ";", "-- nothing", "select", "explain (costs off) select 1", "vacuum kept"].map(unnamed),
    );
    steps.push(new().parse("", "select 1; select 2").sync());
    steps.push(new().unnamed("", &[]).unnamed("select 1", &[]).unnamed("", &[]).sync());
    Script::new("simple queries", steps)
}

/// All of these end where they began: statement mode has them too.
fn transactions_in_one_query() -> Script {
    let steps = queries(&[
        "select 1; begin; select 2; commit; select 3",
        "begin; insert into kept values (1); commit; begin; insert into kept values (2); rollback; table kept",
        "begin; insert into kept values (3); savepoint s; insert into kept values (4); rollback to s; commit",
        "table kept",
        "insert into kept values (5); select 1/0; insert into kept values (6)",
        "table kept",
        "begin; insert into kept values (7); commit; select 1/0; select 2",
        "begin; begin; commit; commit",
        "rollback",
        "savepoint s",
        "select 1; savepoint s",
        "begin isolation level serializable, read only, deferrable; show transaction_isolation; commit",
        "begin; commit and chain; select 2; rollback",
        "set transaction read only",
        "set local work_mem = '1MB'; show work_mem",
        "lock table kept",
        "begin; lock table kept; rollback",
        "truncate kept",
    ]);
    Script::new("transactions in one query", steps)
}

fn transactions() -> Script {
    let mut steps = queries(&[
        "begin",
        "insert into kept values (1)",
        "select 1/0",
        "select 1",
        "",
        "commit",
        "begin read only",
        "insert into kept values (1)",
        "rollback",
        "begin; insert into kept values (1); select 1/0; commit",
        "rollback",
        "begin; commit and chain",
        "rollback and chain",
        "rollback",
    ]);
    let unnamed = |frames: Frames, text: &str| frames.unnamed(text, &[]);
    steps.extend([
        unnamed(new(), "begin").sync(),
        unnamed(unnamed(new(), "select 1"), "select 2").flush().sync().sync(),
        unnamed(unnamed(new(), "select 1/0"), "select 2").sync(),
        unnamed(new(), "select 1").sync(),
        unnamed(new(), "").sync(),
        new().parse("", "rollback").sync(),
        unnamed(new(), "commit").sync(),
        // A batch is a transaction, and one that is begun in it goes on.
        unnamed(unnamed(new(), "insert into kept values (2)"), "begin").sync(),
        new().query("select a from kept").query("rollback"),
        unnamed(unnamed(new(), "insert into kept values (3)"), "select 1/0").sync().query("table kept"),
        unnamed(unnamed(unnamed(new(), "begin"), "insert into kept values (4)"), "commit").sync(),
        unnamed(unnamed(new(), "select 1").query("select 'between'"), "select 2").sync(),
        new().query("begin").query("select 1").query("select 1/0").query("commit").query("table kept"),
        new().query("begin; call commits(1)").query("rollback"),
    ]);
    Script::new("transactions", steps).stays_open()
}

fn savepoints() -> Script {
    let steps = queries(&[
        "begin",
        "insert into kept values (1)",
        "savepoint a",
        "insert into kept values (2)",
        "savepoint b; select 1/0",
        "release b",
        "rollback to b",
        "release savepoint a",
        "rollback to b",
        "rollback to nobody",
        "rollback",
        "table kept",
        "begin; savepoint a; insert into kept values (3)",
        "rollback to savepoint a; release a; insert into kept values (4)",
        "commit",
        "table kept",
        "release a",
        "rollback to a",
    ]);
    Script::new("savepoints", steps).stays_open()
}

/// What one session prepares another may commit, so all of this may run on any server.
fn two_phases() -> Script {
    let steps = queries(&[
        "begin; insert into kept values (1); prepare transaction 'one'",
        "begin; insert into kept values (2); prepare transaction 'two'",
        "begin; insert into kept values (3); prepare transaction 'one'",
        "select gid from pg_prepared_xacts order by gid",
        "table kept",
        "commit prepared 'one'",
        "commit prepared 'one'",
        "rollback prepared 'two'",
        "table kept",
        "prepare transaction 'none'",
        "begin",
        "insert into kept values (4)",
        "prepare transaction 'three'",
        "begin; select 1/0",
        "prepare transaction 'four'",
        "begin; commit prepared 'three'",
        "rollback",
        "commit prepared 'three'",
        "table kept",
    ]);
    Script::new("two-phase commit", steps).stays_open()
}

fn binary_formats() -> Script {
    let ask = |text: &str, formats: &[u16], values: &[Option<&[u8]>], results: &[u16]| {
        bind_as(new().parse("", text), formats, values, results).describe(b'P', "").execute("", 0).sync()
    };
    let every = "select true, 1::int2, 2::int4, 3::int8, 1.5::float4, 2.5::float8, 12345.6789::numeric, 'text', \
        '\\x00ff00'::bytea, '2026-11-21 12:00:00+00'::timestamptz, '2026-11-21'::date, '1 day 2 h'::interval, \
        'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid, '{\"a\": [1, null]}'::jsonb, array[1, null, 3], \
        row(1, 'x'), '10.0.0.0/8'::inet, null::int, 'char'::\"char\", '[1,5)'::int4range, '101'::bit(3)";
    let pair = "select $1::int4, $2::text";
    let (forty_two, word) = (Some(&[0, 0, 0, 42][..]), Some(&b"word"[..]));
    let steps = vec![
        ask(every, &[], &[], &[1]),
        ask(every, &[], &[], &[0]),
        ask(every, &[], &[], &[]),
        ask(pair, &[1], &[forty_two, word], &[1]),
        ask(pair, &[1, 0], &[forty_two, word], &[0, 1]),
        ask(pair, &[0, 1], &[Some(b"42"), word], &[1, 0]),
        ask(pair, &[1], &[None, None], &[1]),
        ask("select $1::bytea", &[1], &[Some(b"\0\x01Q\0\0\0\x05\0Z\0\0\0\x05I")], &[1]),
        ask("select $1::float8[], $2::numeric", &[0, 0], &[Some(b"{1,NaN,-0}"), Some(b"1e100")], &[1]),
        // Wrong in several ways.
        ask(pair, &[1], &[Some(&[0, 42]), word], &[1]),
        ask(pair, &[1], &[Some(&[0, 0, 0, 0, 42]), word], &[1]),
        ask(pair, &[1, 1], &[forty_two, Some(b"\xff\xfe")], &[1]),
        ask(pair, &[2], &[forty_two, word], &[]),
        ask(pair, &[], &[Some(b"42"), word], &[7]),
        ask(pair, &[1, 1, 1], &[forty_two, word], &[]),
        ask(pair, &[1], &[forty_two, word], &[1, 1, 1]),
        ask(pair, &[1], &[forty_two], &[1]),
        ask("copy (select 1, 'x') to stdout (format binary)", &[], &[], &[]),
        ask("select 'still here'", &[], &[], &[1]),
    ];
    Script::new("binary formats", steps)
}

/// Portals that are fetched from between Flushes, within one batch.
fn portals() -> Script {
    let series =
        |frames: Frames| frames.parse("", "select i from generate_series(1, 7) i").bind("p", "", &[]);
    let until = |frames: Frames, tag| Step::Until(frames.flush(), tag);
    let steps = vec![
        until(series(new()).describe(b'P', "p").execute("p", 2), b's'),
        until(new().execute("p", 1), b's'),
        until(new().execute("p", 0), b'C'),
        until(new().execute("p", 5), b'C'),
        new().close(b'P', "p").sync().into(),
        until(series(new()).execute("p", 7), b's'),
        until(new().execute("p", 7), b'C'),
        new().sync().execute("p", 1).sync().into(),
        // Two at once, in turn.
        until(series(new()).parse("", "select 'other' from generate_series(1, 3)").bind("q", "", &[]), b'2'),
        until(new().execute("p", 3).execute("q", 1).execute("p", 3).execute("q", 1), b's'),
        until(new().describe(b'P', "q").describe(b'P', "p").close(b'P', "q").execute("p", 1), b's'),
        until(new().execute("q", 1), b'E'),
        new().execute("p", 1).sync().into(),
        // The name is taken; a command that gives no rows; one that gives them when it is done.
        series(series(new())).sync().into(),
        new().unnamed("insert into kept values (1), (2)", &[]).execute("", 1).sync().into(),
        new()
            .parse("", "insert into kept values (3), (4) returning a")
            .bind("r", "", &[])
            .execute("r", 1)
            .execute("r", 1)
            .execute("r", 1)
            .sync()
            .into(),
        new().query("truncate kept").into(),
        // An error in the middle of the rows.
        until(
            new()
                .parse("", "select 6 / (4 - i) from generate_series(1, 7) i")
                .bind("p", "", &[])
                .execute("p", 3),
            b's',
        ),
        until(new().execute("p", 3), b'E'),
        new().execute("p", 3).sync().into(),
        // Answers are flushed without a Sync, and then never used.
        until(new().unnamed("select 1", &[]), b'C'),
        until(new().unnamed("select 1/0", &[]), b'E'),
        new()
            .unnamed("select 'skipped'", &[])
            .flush()
            .query("select 'skipped, too'")
            .sync()
            .query("select 'seen'")
            .into(),
    ];
    Script::new("portals", steps)
}

fn portals_of_a_transaction() -> Script {
    let series = |frames: Frames, name: &str| {
        frames.parse("", "select i from generate_series(1, 7) i").bind(name, "", &[])
    };
    let steps = vec![
        new().query("begin"),
        series(new(), "p").execute("p", 2).sync(),
        new().execute("p", 2).sync().query("select name, is_holdable from pg_cursors order by name"),
        series(new(), "q").sync().query("fetch 1 from q").query("move 2 in q").execute("q", 1).sync(),
        new().query("declare c cursor for values (1), (2), (3)").execute("c", 1).describe(b'P', "c").sync(),
        new().query("savepoint s"),
        series(new(), "r").execute("r", 1).execute("nobody", 1).execute("r", 1).sync(),
        new().query("rollback to s").execute("r", 1).sync(),
        new().query("rollback to s").execute("p", 1).close(b'P', "p").sync().query("fetch 1 from c"),
        new().query("commit").execute("q", 1).sync(),
    ];
    Script::new("portals of a transaction", steps).stays_open()
}

/// Used in other batches than the one that prepared them, as lib/pq, pgx and libpq's PQprepare do.
fn unnamed_statements() -> Script {
    let prepared = |text: &str| new().parse("", text).describe(b'S', "").sync();
    let run = |values: &[&str]| new().bind("", "", values).describe(b'P', "").execute("", 0).sync();
    let steps = vec![
        run(&[]),
        new().describe(b'S', "").sync(),
        prepared("select 'one', $1::text"),
        run(&["a"]),
        new().describe(b'S', "").sync(),
        run(&["b"]).bind("portal", "", &["c"]).execute("portal", 0).sync(),
        new().bind("portal", "", &["d"]).execute("portal", 0).sync(),
        prepared("select 'two'"),
        run(&["of too many"]),
        run(&[]),
        // It is there after an error that has nothing to do with it, and gone after one of its own.
        prepared("select 6 / $1::int"),
        run(&["0"]),
        run(&["2"]),
        new().query("select 1/0"),
        run(&["2"]),
        prepared("select 'good'"),
        prepared("selec"),
        run(&[]),
        prepared("select 'good'"),
        new().unnamed("select 1/0", &[]).sync(),
        run(&[]),
        // Simple queries and Close drop it, a FunctionCall and named statements do not.
        prepared("select 'dropped'"),
        new().query("select 'dropped by this'"),
        run(&[]),
        prepared("select 'dropped'"),
        new().query(""),
        new().describe(b'S', "").sync(),
        prepared("select 'closed'"),
        new().close(b'S', "").sync(),
        run(&[]),
        prepared("select 'kept'"),
        call(new(), INT4_PLUS, &[0], &[Some(b"1"), Some(b"2")], 0),
        new().parse("named", "select 'named'").sync(),
        new().bind("", "named", &[]).execute("", 0).sync().close(b'S', "named").sync(),
        run(&[]),
        // Types as they were given, another encoding, a value in another batch than its text.
        new().frame(b'P', &[b"\0select $1, $2\0\0\x02\0\0\0\x17\0\0\0\x19"]).sync(),
        bind_as(new(), &[1, 0], &[Some(&[0, 0, 0, 42]), Some(b"text")], &[1]).execute("", 0).sync(),
        prepared("set timezone = 'PRC'"),
        run(&[]),
        prepared("show timezone"),
        run(&[]),
        prepared(""),
        run(&[]),
        prepared(&format!("select length('{}')", "x".repeat(300_000))),
        run(&[]),
        // Sent all at once.
        prepared("select 'last', $1::text"),
        [run(&["e"]), run(&["f"]), prepared("select 'very last'"), run(&[])]
            .into_iter()
            .fold(new(), |all, frames| Frames([all.0, frames.0].concat())),
        run(&[]),
    ];
    Script::new("unnamed statements", steps)
}

fn function_calls(tell_all: u32) -> Script {
    let (five, zero) = (Some(&[0, 0, 0, 5][..]), Some(&[0, 0, 0, 0][..]));
    let steps = vec![
        call(new(), INT4_PLUS, &[1], &[five, five], 1),
        call(new(), INT4_PLUS, &[1, 0], &[five, Some(b"-7")], 0),
        call(new(), INT4_PLUS, &[], &[Some(b"1"), Some(b"2")], 0),
        call(new(), INT4_PLUS, &[1], &[five, None], 1),
        call(new(), REPEAT, &[0], &[Some(b"xyz"), Some(b"100000")], 0),
        // Each of these fails.
        call(new(), INT4_DIV, &[1], &[five, zero], 1),
        call(new(), INT4_PLUS, &[1], &[five], 1),
        call(new(), INT4_PLUS, &[1, 1, 1], &[five, five], 1),
        call(new(), INT4_PLUS, &[9], &[five, five], 1),
        call(new(), INT4_PLUS, &[1], &[five, five], 9),
        call(new(), INT4_PLUS, &[1], &[Some(b"\0"), five], 1),
        call(new(), INT4_PLUS, &[0], &[Some(b"no"), Some(b"number")], 0),
        call(new(), 0, &[], &[], 0),
        call(new(), tell_all, &[0], &[Some(b"exception")], 0),
        // What it says on the way.
        call(new(), tell_all, &[0], &[Some(b"notice")], 0),
        // Among others: it ends a batch that has no Sync, and is skipped where all is.
        call(new().unnamed("select 1", &[]), INT4_PLUS, &[1], &[five, five], 1)
            .unnamed("select 2", &[])
            .sync(),
        call(new().unnamed("select 1/0", &[]), INT4_PLUS, &[1], &[five, five], 1).sync(),
        call(call(new(), INT4_DIV, &[1], &[five, zero], 1), INT4_PLUS, &[1], &[five, five], 1)
            .query("select 3"),
    ];
    Script::new("function calls", steps)
}

fn function_calls_in_transactions() -> Script {
    let five = Some(&[0, 0, 0, 5][..]);
    let plus = |frames: Frames| call(frames, INT4_PLUS, &[1], &[five, five], 1);
    let steps = vec![
        plus(new().query("begin")),
        plus(plus(new())).query("savepoint s"),
        call(new(), INT4_DIV, &[1], &[five, Some(&[0; 4])], 1),
        plus(new()),
        plus(new().query("rollback to s")).query("commit"),
    ];
    Script::new("function calls in transactions", steps).stays_open()
}

const INT4_PLUS: u32 = 177;
const INT4_DIV: u32 = 154;
const REPEAT: u32 = 1622;

/// Statements that fail, with every field that an error can have.
const FAILING: &[&str] = &[
    "select tell_all('exception')",
    "select tell_deeper()",
    "select tell_parse_error()",
    "do $$ begin raise exception 'plain' using hint = 'a hint'; end $$",
    "do $$ begin assert false, 'asserted'; end $$",
    "do $$ begin raise exception using errcode = 'division_by_zero'; end $$",
    "do $$ begin raise sqlstate 'ABCDE'; end $$",
    "insert into strict values (1, 1, 1)",
    "insert into strict values (null, 1, 1)",
    "insert into strict values (2, -1, 1)",
    "insert into strict values (3, 1, 99)",
    "insert into strict values (4, 1, 1, 1)",
    "select 'x'::small_number, (-1)::small_number",
    "select (-1)::small_number",
    "select * from nowhere",
    "select kepd.a from kept",
    "select 1 +",
    "select 'unterminated",
    "select nothing_such(1)",
    "select '\u{e4}\u{20ac}', nothing_such",
    "select repeat('x', 2000000000)",
    "create table kept (a int)",
    "set statement_timeout = 'long'",
    "select json_parse('{')",
    "select '{\"a\": nope}'::json",
];

fn errors() -> Script {
    let simple = FAILING.iter().map(|text| new().query(text));
    let behind = FAILING.iter().map(|text| new().query(&format!("select 1; {text}; select 2")));
    let unnamed = FAILING.iter().map(|text| new().unnamed("select 1", &[]).unnamed(text, &[]).sync());
    let named = FAILING.iter().map(|text| {
        new().parse("named", text).bind("", "named", &[]).execute("", 0).sync().close(b'S', "named").sync()
    });
    let portal = FAILING.iter().map(|text| {
        new()
            .parse("named", text)
            .bind("a portal", "named", &[])
            .describe(b'P', "a portal")
            .execute("a portal", 1)
            .sync()
            .close(b'S', "named")
            .sync()
    });
    Script::new("errors", simple.chain(behind).chain(unnamed).chain(named).chain(portal).collect())
}

fn notices(tell_all: u32) -> Script {
    let mut steps = queries(&[
        "select tell_all('notice')",
        "select tell_all('warning'), tell_all('info'), tell_all('log')",
        "select i, tell_all('notice') from generate_series(1, 50) i",
        "select 1; select tell_all('notice'); select 1/0",
        "create table if not exists kept (a int)",
        "do $$ begin for i in 1..200 loop raise notice '%: %', i, repeat('n', 5000); end loop; end $$",
    ]);
    steps.push(
        new().unnamed("select tell_all('notice')", &[]).unnamed("select tell_all('exception')", &[]).sync(),
    );
    steps.push(call(new().unnamed("select 1", &[]).sync(), tell_all, &[0], &[Some(b"warning")], 0));
    Script::new("notices", steps)
}

fn parameters() -> Script {
    let mut steps = queries(&[
        "set timezone = 'PRC'",
        "show timezone; select '2026-11-21 00:00+00'::timestamptz",
        "set datestyle = 'German'; set intervalstyle = 'iso_8601'; select '2026-11-21'::date, '1 h'::interval",
        "select '2026-11-21'::date, '1 h'::interval",
        "select 1, set_config('timezone', 'Asia/Tokyo', false), i from generate_series(1, 3) i",
        "set timezone = 'UTC'; select 1/0",
        "show timezone",
        "begin; set timezone = 'UTC'; rollback; show timezone",
        "begin; set local timezone = 'UTC'; show timezone; commit; show timezone",
        "set application_name = 'it''s \u{e4} \\ \"me\"'",
        "show application_name",
        "set client_encoding = 'LATIN1'",
        "select 'it is', convert_from('\\xc3a4', 'UTF8')",
        "set client_encoding = 'UTF8'",
        "set timezone = 'Nowhere/Land'",
        "set standard_conforming_strings = off",
        "select 'a\\\\b'",
        "set standard_conforming_strings = on; set default_transaction_read_only = on",
        "insert into kept values (1)",
        "set default_transaction_read_only = off; insert into kept values (1); truncate kept",
        "reset timezone",
        "reset all",
        "show timezone; show datestyle; show application_name",
        "set timezone = 'PRC'",
        "discard all",
        "show timezone",
    ]);
    steps.extend([
        new().unnamed("set timezone = 'PRC'", &[]).unnamed("show timezone", &[]).sync(),
        new().unnamed("show timezone", &[]).sync(),
        new()
            .unnamed("select set_config('timezone', $1, false)", &["UTC"])
            .flush()
            .unnamed("show timezone", &[])
            .sync(),
        new().unnamed("set timezone = 'PRC'", &[]).unnamed("select 1/0", &[]).sync().query("show timezone"),
        new()
            .query("set timezone = 'PRC'")
            .query("show timezone")
            .query("set timezone = 'UTC'")
            .query("show timezone"),
    ]);
    Script::new("parameters", steps)
}

fn parameters_in_transactions() -> Script {
    let steps = queries(&[
        "begin",
        "set timezone = 'PRC'",
        "set local intervalstyle = 'iso_8601'",
        "select '1 h'::interval",
        "savepoint s; set timezone = 'UTC'",
        "rollback to s",
        "show timezone",
        "commit",
        "show timezone; show intervalstyle",
        "begin; set timezone = 'UTC'",
        "select 1/0",
        "rollback",
        "show timezone",
    ]);
    Script::new("parameters in transactions", steps).stays_open()
}

fn cursors() -> Script {
    let steps = queries(&[
        "begin",
        "insert into kept select generate_series(1, 10)",
        "declare c scroll cursor for select a from kept order by a",
        "fetch c",
        "fetch forward 3 from c",
        "fetch backward 2 from c; fetch absolute 7 from c; fetch relative -1 from c; fetch last from c",
        "move first in c; move all in c; fetch c",
        "declare b binary cursor for select a from kept order by a",
        "fetch 2 from b",
        "declare u cursor for select a from kept for update",
        "fetch u; update kept set a = 100 where current of u returning a",
        "fetch all from u",
        "declare c cursor for select 1",
        "rollback",
        "fetch c",
        "begin; declare c no scroll cursor for select 1/(i-2) from generate_series(1, 3) i",
        "fetch backward 1 from c",
        "rollback; begin; declare c no scroll cursor for select 1/(i-2) from generate_series(1, 3) i",
        "fetch all from c",
        "rollback",
        "declare c cursor for select 1",
        "begin; declare c cursor for values (1), (2); fetch c; close c; fetch c",
        "rollback; close c",
    ]);
    let mut script = Script::new("cursors", steps).stays_open();
    script.steps.push(new().query("begin; declare d cursor for values (1), (2), (3)").into());
    script.steps.push(new().unnamed("fetch 1 from d", &[]).unnamed("fetch 5 from d", &[]).sync().into());
    script.steps.push(new().unnamed("close all", &[]).unnamed("commit", &[]).sync().into());
    script
}

/// They end transactions and begin them anew.
fn procedures() -> Script {
    let mut steps = queries(&[
        "call commits(3)",
        "select count(*) from kept",
        "call commits(0)",
        "select count(*) from kept",
        "select 1; call commits(1)",
        "do $$ begin insert into kept values (1); commit; insert into kept values (2); rollback; end $$",
        "table kept",
    ]);
    steps.push(new().unnamed("call commits($1)", &["2"]).sync());
    steps.push(new().unnamed("select 1", &[]).unnamed("call commits($1)", &["2"]).sync());
    Script::new("procedures", steps)
}

fn session_state() -> Script {
    let steps = queries(&[
        "set work_mem = '77kB'",
        "show work_mem",
        "create temp table own (a int); insert into own values (1)",
        "select a + 0 from own",
        "declare held cursor with hold for select generate_series(1, 5)",
        "fetch 2 from held",
        "begin; select 1/0",
        "rollback",
        "fetch 2 from held; close held",
        "begin; declare held cursor with hold for select a + 0 from own; commit",
        "fetch all from held",
        "prepare by_name(int) as select $1 + 1",
        "execute by_name(1)",
        "deallocate by_name",
        "execute by_name(1)",
        "select pg_advisory_lock(7, 8)",
        "select pg_advisory_unlock(7, 8), pg_advisory_unlock(7, 8)",
        "select nextval('numbers') > 0",
        "select currval('numbers') > 0",
        "load 'plpgsql'",
        "discard temp",
        "table own",
        "discard all",
        "show work_mem",
    ]);
    Script::new("state of the session", steps).leaves()
}

fn notifications() -> Script {
    let mut steps = queries(&[
        "listen news",
        "notify news, 'hello'",
        "select pg_notify('news', i::text) from generate_series(1, 20) i",
        "begin; notify news, 'one'; notify news, 'one'; notify other, 'two'; commit",
        "begin; notify news, 'lost'; rollback",
        "begin",
        "notify news",
        "select 'not yet'",
        "commit",
        "select pg_listening_channels()",
    ]);
    steps.push(new().unnamed("notify news, 'in a batch'", &[]).unnamed("select 1", &[]).sync());
    steps.extend(queries(&["unlisten news", "notify news", "unlisten *"]));
    Script::new("notifications", steps).leaves()
}

fn the_end_of_a_session() -> Script {
    let end = new().query("select pg_terminate_backend(pg_backend_pid())");
    Script::new("the end of a session", vec![new().query("select 1").into(), Step::Until(end, b'E')])
}
