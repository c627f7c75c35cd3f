//! What all sessions find, and messages that are rarely sent.

use crate::wire::Frames;

/// Run as the user of all sessions, once.
pub const SETUP: &[&str] = &[
    "create table kept (a int)",
    "create table parents (id int primary key); insert into parents values (1)",
    "create table strict (id int primary key, positive int check (positive > 0), parent int references parents)",
    "insert into strict values (1, 1, 1)",
    "create domain small_number as int constraint is_small check (value between 0 and 9)",
    "create sequence numbers",
    "create function tell_all(level text) returns int language plpgsql as $$
        begin
            execute format('do $do$ begin raise %s using message = %L, errcode = %L, detail = %L, hint = %L, column = %L,
                constraint = %L, datatype = %L, table = %L, schema = %L; end $do$', level, 'the message', 'UE123',
                'a detail', 'a hint', 'a column', 'a constraint', 'a type', 'a table', 'a schema');
            return 1;
        end $$",
    "create function tell_deeper() returns int language plpgsql as $$
        declare x int; begin x := tell_all('exception') + 1; return x; end $$",
    "create function tell_parse_error() returns int language plpgsql as $$
        begin execute 'select 1 frm nowhere'; return 1; end $$",
    "create procedure commits(count int) language plpgsql as $$
        begin for i in 1..count loop insert into kept values (i); commit; end loop; insert into kept values (1/count); end $$",
];

/// Bind with a format for each parameter and each column, or one for all, or none; a value may be NULL.
pub fn bind_as(frames: Frames, formats: &[u16], values: &[Option<&[u8]>], results: &[u16]) -> Frames {
    let mut body = vec![0, 0];
    put_formats(&mut body, formats);
    put_values(&mut body, values);
    put_formats(&mut body, results);
    frames.frame(b'B', &[&body])
}

fn put_formats(body: &mut Vec<u8>, formats: &[u16]) {
    body.extend_from_slice(&(formats.len() as u16).to_be_bytes());
    body.extend(formats.iter().flat_map(|format| format.to_be_bytes()));
}

fn put_values(body: &mut Vec<u8>, values: &[Option<&[u8]>]) {
    body.extend_from_slice(&(values.len() as u16).to_be_bytes());
    for value in values {
        match value {
            Some(bytes) => {
                body.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
                body.extend_from_slice(bytes);
            }
            None => body.extend_from_slice(&u32::MAX.to_be_bytes()),
        }
    }
}

/// A FunctionCall, with a format for each argument, or one for all, or none.
pub fn call(frames: Frames, oid: u32, formats: &[u16], values: &[Option<&[u8]>], result: u16) -> Frames {
    let mut body = oid.to_be_bytes().to_vec();
    put_formats(&mut body, formats);
    put_values(&mut body, values);
    body.extend_from_slice(&result.to_be_bytes());
    frames.frame(b'F', &[&body])
}

/// Requests whose answers, or which themselves, are of so many bytes and some more.
pub fn very_large(bytes: usize) -> Vec<Frames> {
    let new = Frames::new;
    let long = "v".repeat(bytes);
    let repeated = format!("repeat('x', {bytes})");
    vec![
        new().query(&format!("select {repeated}")),
        new().query(&format!("copy (select {repeated}) to stdout")),
        new().query(&format!("select {repeated}::int")),
        new().unnamed(&format!("select {repeated}::int"), &[]).sync(),
        new().parse("s", &format!("select {repeated}::int")).bind("", "s", &[]).execute("", 0).sync(),
        new().query(&format!("do $$ begin raise notice '%', {repeated}; end $$")),
        new().query(&format!("do $$ begin raise exception 'short' using detail = {repeated}; end $$")),
        // repeat(text, integer).
        call(new(), 1622, &[0], &[Some(b"x"), Some(bytes.to_string().as_bytes())], 0),
        new().query(&format!("select length('{long}')")),
        new().unnamed(&format!("select length('{long}')"), &[]).sync(),
        new().unnamed("select length($1)", &[&long]).sync(),
        new().parse("s", "select length($1)").sync().bind("", "s", &[&long]).execute("", 0).sync(),
        new()
            .query("begin; create temp table t (a text) on commit drop; copy t from stdin")
            .copy_data(long.as_bytes())
            .copy_done()
            .query("select length(a) from t; commit"),
    ]
}
