-- psql's habits. Taken directly and through the pooler: every byte of output must be the same. :who and :file differ
-- from session to session.
\set VERBOSITY verbose
\pset null '(null)'
select :'who' as who, null as nothing, 1/2.0 as half;
select 1 as one, :'who' as two \gset own_
\echo :own_one :own_two
select 'begins' where false \; select 2 \; select :'who';
\set SHOW_ALL_RESULTS off
select 'hidden' \; select 'shown';
\set SHOW_ALL_RESULTS on

-- Errors, with their position and all fields.
select nothing
  from generate_series(1, 3);
\errverbose
select 1/0;
\echo :SQLSTATE :LAST_ERROR_SQLSTATE :ROW_COUNT
insert into psql_rows values (1, null, null);
do $$ begin raise notice 'noticed'; raise warning 'warned' using hint = 'a hint', detail = 'a detail'; end $$;

-- Descriptions: \gdesc prepares without a name and describes that in another batch.
select :'who'::text as name, 1::int8 as number, now() as time \gdesc
select nothing \gdesc
\d psql_rows
\dt psql_rows
\sf lower(text)
\dn public
\encoding LATIN1
select 'it is', octet_length(convert_to('ä', 'UTF8'));
\encoding UTF8
\encoding

-- Transactions, by hand, with savepoints of its own, and without autocommit.
begin;
insert into psql_rows values (1, :'who', 'begun');
select 1/0;
select 1;
rollback;
\set ON_ERROR_ROLLBACK on
begin;
insert into psql_rows values (2, :'who', 'before the error');
select 1/0;
insert into psql_rows values (3, :'who', 'behind it');
select id, text from psql_rows where owner = :'who' order by id;
commit;
\set ON_ERROR_ROLLBACK off
\set AUTOCOMMIT off
insert into psql_rows values (4, :'who', 'lost');
rollback;
select count(*) from psql_rows where owner = :'who';
commit;
\set AUTOCOMMIT on

-- COPY, both ways, from and to files, in the script, and to a bad end.
begin;
copy psql_rows from stdin;
10	copied	x
11	copied	\N
\.
select count(*), count(text) from psql_rows where owner = 'copied';
rollback;
copy psql_rows from stdin;
12	copied	x
none	copied	y
\.
copy (select i, :'who', 'to a file' from generate_series(100, 599) i) to stdout \g :file
\copy (select 1) to stdout
copy (select 'binary', 2) to stdout (format csv);

-- Fetched in parts, which declares a cursor.
\set FETCH_COUNT 7
select i, :'who' from generate_series(1, 20) i;
select 1/(10 - i) from generate_series(1, 20) i;
\set FETCH_COUNT 0

-- Commands made of rows, and tables made of others.
select format('select %L, %s', :'who', i) from generate_series(1, 3) i \gexec
select i % 2 as odd, i % 3 as third, i from generate_series(0, 5) i \crosstabview
select 'expanded' as how, :'who' as who \gx

-- Large objects, by function calls.
begin;
\lo_import :file
select oid is not null as is_there from pg_largeobject_metadata where oid = :LASTOID;
\lo_unlink :LASTOID
commit;

-- Prepared by SQL, within a transaction; parameters that follow.
begin;
prepare own (int, text) as select $1 + 1, $2;
execute own (1, :'who');
deallocate own;
commit;
set application_name = :'who';
set timezone = 'Asia/Tokyo';
set datestyle = 'German';
show application_name;
show timezone;
select '2026-11-21 00:00+00'::timestamptz;
reset timezone;
show timezone;
delete from psql_rows where owner = :'who';
select 'the end of ' || :'who';
