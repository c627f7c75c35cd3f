"""asyncpg as it is: its statement cache on, its pool resetting connections, its introspection of types."""

import asyncio
import os
import sys

import asyncpg

CLIENTS = 8


def check(got, expected):
    assert got == expected, f"{got!r} instead of {expected!r}"


async def tokens(connection, who):
    for number in range(60):
        check(await connection.fetchval("select $1::text", f"{who}-{number}"), f"{who}-{number}")
        check(await connection.fetchval("select $1::int + 1", number), number + 1)


async def errors(connection, who):
    for _ in range(10):
        try:
            await connection.fetchval("select 1 / $1::int", 0)
            raise AssertionError("divided by zero")
        except asyncpg.DivisionByZeroError:
            pass
        try:
            await connection.fetchval("select * from nowhere where a = $1", who)
            raise AssertionError("nowhere exists")
        except asyncpg.UndefinedTableError:
            pass
        check(await connection.fetchval("select $1::text", who), who)


async def transactions(connection, who):
    for number in range(10):
        async with connection.transaction():
            statement = await connection.prepare("select generate_series(1, $1::int)")
            check(sum([row[0] async for row in statement.cursor(200)]), 20100)
            try:
                async with connection.transaction():
                    await connection.execute("insert into nowhere values ($1)", number)
            except asyncpg.UndefinedTableError:
                pass
            check(await connection.fetchval("select $1::text", who), who)


async def types(connection, who):
    # Arrays and records of types that it does not know make it ask the catalogue.
    check(await connection.fetchval("select array[$1::oid::regclass]::text[]", 1259), ["pg_class"])
    row = await connection.fetchrow("select row(1, $1::text) as pair, '{[1,2]}'::int4multirange as odd where false", who)
    check(row, None)


async def many(connection, who):
    async with connection.transaction():
        await connection.execute("create temp table many (a int, b text) on commit drop")
        await connection.executemany("insert into many values ($1, $2)", [(each, who) for each in range(300)])
        rows = [(each, who) for each in range(300)]
        await connection.copy_records_to_table("many", records=rows, columns=["a", "b"])
        check(await connection.fetchval("select count(*) from many where b = $1", who), 600)


async def more_statements_than_are_kept(connection, who):
    for number in list(range(130)) * 2:
        check(await connection.fetchval(f"select {number} + $1::int", 1), number + 1)


async def changed_result(connection, who):
    table = f"asyncpg_{who}"
    await connection.execute(f"create table {table} as select 1 as a")
    check(list(await connection.fetchrow(f"select * from {table} where a = $1", 1)), [1])
    await connection.execute(f"alter table {table} add b text")
    check(list(await connection.fetchrow(f"select * from {table} where a = $1", 1)), [1, None])
    await connection.execute(f"drop table {table}")


async def client(number):
    who = str(number)
    connection = await asyncpg.connect(max_cached_statement_lifetime=0, statement_cache_size=100)
    for habit in [tokens, errors, transactions, types, many, more_statements_than_are_kept, changed_result]:
        try:
            await habit(connection, who)
        except BaseException as error:
            raise AssertionError(f"{who}: {habit.__name__}: {error!r}") from error
    await connection.close()


async def pooled():
    async with asyncpg.create_pool(min_size=2, max_size=4) as pool:

        async def once(number):
            async with pool.acquire() as connection:
                check(await connection.fetchval("select $1::text", str(number)), str(number))

        await asyncio.gather(*(once(number) for number in range(100)))


async def main():
    results = await asyncio.gather(pooled(), *(client(number) for number in range(CLIENTS)), return_exceptions=True)
    failures = [str(result) or repr(result) for result in results if result is not None]
    print(f"asyncpg {asyncpg.__version__}")
    print(*failures, sep="\n")
    sys.exit(bool(failures))


asyncio.run(main())
