use super::*;

fn kinds(text: &str) -> Vec<Kind> {
    let followed = ["timezone", "application_name", "client_encoding", "default_transaction_read_only"];
    let follows = |name: &str| followed.iter().any(|each| each.eq_ignore_ascii_case(name));
    let found = look(text.as_bytes(), Session { follows: &follows, escapes: &|| false });
    let closely = look_closely(text.as_bytes(), Session { follows: &follows, escapes: &|| false });
    assert_eq!(found, closely, "the first glance at {text:?} misses nothing");
    found.iter().collect()
}

fn check(cases: &[(&str, &[Kind])]) {
    for (text, expected) in cases {
        assert_eq!(kinds(text), *expected, "{text}");
    }
}

const NOTHING: &[Kind] = &[];

#[test]
fn settings() {
    use Kind::{Parameter, Role};
    check(&[
        ("SET work_mem = '1MB'", &[Parameter]),
        ("  \n set\tWORK_MEM to 1000", &[Parameter]),
        ("set session work_mem = 1", &[Parameter]),
        ("set \"work_mem\" = 1", &[Parameter]),
        ("SET/**/statement_timeout=5", &[Parameter]),
        ("set my.own = 'x'", &[Parameter]),
        ("set session.own = 'x'", &[Parameter]),
        ("set local.own = 'x'", &[Parameter]),
        ("set my.own to default", NOTHING),
        ("set search_path to a, b", &[Parameter]),
        ("set schema 'a'", &[Parameter]),
        ("set seed to 0.5", &[Parameter]),
        ("set xml option document", &[Parameter]),
        ("set local work_mem = 1", NOTHING),
        ("set work_mem to default", NOTHING),
        ("set work_mem = default;", NOTHING),
        ("set timezone = 'PRC'", NOTHING),
        ("set \"TimeZone\" = 'PRC'", NOTHING),
        ("set time zone 'PRC'", NOTHING),
        ("set session time zone 'PRC'", NOTHING),
        ("set names 'utf8'", NOTHING),
        ("set application_name = 'work_mem'", NOTHING),
        ("set transaction isolation level serializable", NOTHING),
        ("set constraints all deferred", NOTHING),
        ("set session characteristics as transaction read only", NOTHING),
        ("set session characteristics as transaction isolation level read committed", &[Parameter]),
        ("set session characteristics as transaction read write, deferrable", &[Parameter]),
        ("set role joe", &[Role]),
        ("set role = 'joe'", &[Role]),
        ("set \"role\" to 'joe'", &[Role]),
        ("set session role joe", &[Role]),
        ("set local role joe", NOTHING),
        ("set role none", NOTHING),
        ("set session authorization joe", &[Role]),
        ("set session session authorization 'joe'", &[Role]),
        ("set session_authorization to joe", &[Role]),
        ("set session authorization default", NOTHING),
        ("reset work_mem", NOTHING),
        ("settle", NOTHING),
        ("set", NOTHING),
        ("update t set work_mem = 1", NOTHING),
        ("alter system set work_mem = 1", NOTHING),
    ]);
}

#[test]
fn set_config_says_itself_what_it_leaves() {
    use Kind::{Parameter, Role};
    check(&[
        ("select set_config('work_mem', '1MB', false)", &[Parameter]),
        ("SELECT pg_catalog.SET_CONFIG ('work_mem', '1MB', false)", &[Parameter]),
        ("select \"set_config\"('work_mem', '1MB', false)", &[Parameter]),
        ("select set_config /* ( */ -- )\n ('work_mem', '1MB', false)", &[Parameter]),
        ("select set_config('work_mem', f(1, (2)), true)", NOTHING),
        ("select set_config('work_mem', '1MB', true or false)", &[Parameter]),
        ("select set_config('work_mem', '1MB', $1)", &[Parameter]),
        ("select set_config($1, $2, false)", &[Parameter]),
        ("select set_config('time' || 'zone', 'PRC', false)", &[Parameter]),
        ("select set_config(f('a', b), true, false)", &[Parameter]),
        ("select set_config('TimeZone', 'PRC', false)", NOTHING),
        ("select set_config('TimeZone', 'PRC', false), set_config('work_mem', '1', false)", &[Parameter]),
        ("select set_config('role', 'joe', false)", &[Role]),
        ("select 'set_config(''work_mem'', 1, false)'", NOTHING),
        ("select set_config from t", NOTHING),
        ("select reset_config('a')", NOTHING),
        ("select set_config(", &[Parameter]),
    ]);
}

#[test]
fn locks_and_sequences() {
    use Kind::{Lock, Sequence};
    check(&[
        ("select pg_advisory_lock(1)", &[Lock]),
        ("select 1 where PG_TRY_ADVISORY_LOCK(1, 2)", &[Lock]),
        ("select pg_advisory_lock_shared(1)", &[Lock]),
        ("with x as (select pg_catalog.pg_try_advisory_lock_shared(1)) select * from x", &[Lock]),
        ("(select pg_advisory_lock(1))", &[Lock]),
        ("insert into t select pg_advisory_lock(1), nextval('s')", &[Lock, Sequence]),
        ("select pg_advisory_xact_lock(1), pg_try_advisory_xact_lock_shared(2)", NOTHING),
        ("select pg_advisory_unlock(1), pg_advisory_unlock_all()", NOTHING),
        ("select * from pg_advisory_locks", NOTHING),
        ("select nextval('s')", &[Sequence]),
        ("select setval('s', 1)", &[Sequence]),
        ("select currval('s'), lastval()", NOTHING),
        ("select interval '1 day'", NOTHING),
    ]);
}

#[test]
fn objects_of_the_session() {
    use Kind::{Cursor, Listen, Prepared, Temporary};
    check(&[
        ("listen news", &[Listen]),
        ("LISTEN \"News\";", &[Listen]),
        ("unlisten *", NOTHING),
        ("notify listen", NOTHING),
        ("prepare p as select 1", &[Prepared]),
        ("prepare transaction 'x'", NOTHING),
        ("execute p", NOTHING),
        ("declare c cursor with hold for select 1", &[Cursor]),
        ("declare c binary no scroll cursor\nwith /**/ hold for select 1", &[Cursor]),
        ("declare c cursor without hold for select 1", NOTHING),
        ("declare c cursor for with hold as (select 1) select * from hold", NOTHING),
        ("create temp table t (a int)", &[Temporary]),
        ("create local temporary table if not exists t as select 1", &[Temporary]),
        ("create temp table t (a int) on commit drop", NOTHING),
        ("create temp table t (a int) on commit delete rows", &[Temporary]),
        ("create table pg_temp.t (a int)", &[Temporary]),
        ("create function pg_temp.f() returns int language sql as 'select 1'", &[Temporary]),
        ("create or replace temp view v as select 1", &[Temporary]),
        ("create temp sequence s", &[Temporary]),
        ("create table temp (a int)", NOTHING),
        ("create table t (temp int)", NOTHING),
        ("create unlogged table t (a int)", NOTHING),
        ("explain analyze create temp table t as select 1", &[Temporary]),
        ("explain (analyze, buffers) select temp from t", NOTHING),
        ("select 1 into temp t", &[Temporary]),
        ("select 1 into pg_temp.t", &[Temporary]),
        ("select 1 into temporary_things", NOTHING),
        ("insert into temp values (1)", NOTHING),
    ]);
}

#[test]
fn each_command_of_a_text_counts() {
    use Kind::{Listen, Parameter, Prepared};
    check(&[
        ("select 1; listen a; set work_mem = 1", &[Parameter, Listen]),
        (";;listen a", &[Listen]),
        ("begin;\nset local work_mem = 1; commit;", NOTHING),
        ("select ';listen a'; select $$;listen a$$; select $x$;listen a$$;$x$", NOTHING),
        ("select 1 /* ; listen a /* nested */ ; listen a */ ; -- ; listen a\n select 2", NOTHING),
        ("-- a comment\nlisten a", &[Listen]),
        ("/* a */ /* b */ prepare p as select 1", &[Prepared]),
        ("select \"a;listen\"; select 'it''s;listen a'", NOTHING),
        (r"select E'\';listen a;'; select 1", NOTHING),
        (r"select '\'; listen a; --'", &[Listen]),
        ("select u&'a', b'1', x'f', n'n', $1, $2; listen a", &[Listen]),
        ("select 'open; listen a", NOTHING),
        ("select \"open; listen a", NOTHING),
        ("select 1; /* open listen a", NOTHING),
        ("select $$ open; listen a", NOTHING),
        ("", NOTHING),
        (";", NOTHING),
        ("\u{0b}listen a", &[Listen]),
        ("select 1; ", NOTHING),
    ]);
}

#[test]
fn where_backslashes_escape_strings_are_longer() {
    let escaping = Session { follows: &|_| false, escapes: &|| true };
    assert!(look(br"select '\'; listen a; --'", escaping).is_empty());
}

#[test]
fn functions_called_by_number() {
    assert_eq!(look_at_function(2880), Kind::Lock.into());
    assert_eq!(look_at_function(2078), Kind::Parameter.into());
    assert!(look_at_function(2884).is_empty(), "pg_advisory_unlock");
    assert!(look_at_function(1575).is_empty(), "currval");
}

#[test]
fn nothing_is_too_odd_to_be_taken_apart() {
    let parts =
        ["set", " ", ";", "'", "\"", "$$", "$a", "--", "/*", "*/", "\n", "(", ",", "e'", "\\", "temp"];
    let mut state = 1_u64;
    for _ in 0..20_000 {
        let mut text = String::new();
        for _ in 0..12 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            text += parts[(state >> 33) as usize % parts.len()];
        }
        let _ = kinds(&text);
    }
}
