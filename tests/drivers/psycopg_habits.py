"""What psycopg 3 does when nobody tells it that there is a pooler: everything is prepared, at once or at the second use."""

import itertools
import sys
import threading

import psycopg

CLIENTS = 6
failures = []


def check(got, expected):
    assert got == expected, f"{got!r} instead of {expected!r}"


def tokens(connection, who):
    for number in range(40):
        token = f"{who}-{number}"
        check(connection.execute("select %s, 1", [token]).fetchone()[0], token)
        # The same shape, other types: another statement.
        check(connection.execute("select %s + 1", [number]).fetchone()[0], number + 1)


def transactions(connection, who):
    for number in range(10):
        with connection.transaction():
            check(connection.execute("select %s::int", [number]).fetchone()[0], number)
            try:
                with connection.transaction():
                    connection.execute("select 1 / %s", [0])
            except psycopg.errors.DivisionByZero:
                pass
            check(connection.execute("select %s::text", [who]).fetchone()[0], who)


def pipelines(connection, who):
    for number in range(10):
        with connection.pipeline():
            cursors = [connection.execute("select %s, %s::int", [who, each]) for each in range(20)]
        check([cursor.fetchone() for cursor in cursors], [(who, each) for each in range(20)])
        try:
            with connection.pipeline():
                connection.execute("select %s::int", [number])
                connection.execute(f"select {number} from nowhere")
                # Skipped: psycopg itself would believe that it was prepared.
                connection.execute("select %s::int", [number], prepare=False)
            raise AssertionError("nowhere exists")
        except psycopg.errors.UndefinedTable:
            pass
        connection.rollback()


def more_statements_than_are_kept(connection, who):
    # psycopg keeps 100 and gives up the one used longest ago: by Close, or by DEALLOCATE if its libpq is old.
    for number in itertools.chain(range(130), range(130)):
        check(connection.execute(f"select {number}, %s", [who]).fetchone(), (number, who))


def cursors_and_copy(connection, who):
    with connection.transaction(), connection.cursor(f"cursor of {who}") as cursor:
        cursor.execute("select generate_series(1, %s::int)", [500])
        check(sum(row[0] for row in cursor), 125250)
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute("create temp table copied (a int, b text) on commit drop")
        with cursor.copy("copy copied from stdin") as copy:
            for number in range(1000):
                copy.write_row((number, who))
        cursor.executemany("insert into copied values (%s, %s)", [(number, who) for number in range(100)])
        check(cursor.execute("select count(*), min(b) from copied where a >= %s", [0]).fetchone(), (1100, who))
        with cursor.copy("copy (select a from copied) to stdout") as copy:
            check(sum(1 for _ in copy.rows()), 1100)


def changed_result(connection, who):
    table = '"' + who + '"'
    connection.execute(f"create table {table} as select 1 as a")
    check(connection.execute(f"select * from {table} where a = %s", [1]).fetchall(), [(1,)])
    connection.execute(f"alter table {table} add b text")
    # PostgreSQL itself refuses the first use after that.
    for attempt in range(3):
        try:
            row = connection.execute(f"select * from {table} where a = %s", [1]).fetchall()
            check(row, [(1, None)])
            break
        except psycopg.errors.FeatureNotSupported:
            assert attempt < 1, "the next use works"
    connection.execute(f"drop table {table}")


def deallocate_all(connection, who):
    for _ in range(3):
        check(connection.execute("select %s, 'again'", [who]).fetchone()[0], who)
        connection.execute("deallocate all")
        connection._prepared.clear()


HABITS = [
    tokens,
    transactions,
    pipelines,
    more_statements_than_are_kept,
    cursors_and_copy,
    changed_result,
    deallocate_all,
]


def run(threshold, number):
    who = f"{threshold}.{number}"
    habit = None
    try:
        with psycopg.connect("", autocommit=True, prepare_threshold=threshold) as connection:
            for habit in HABITS:
                if habit is pipelines and not psycopg.Pipeline.is_supported():
                    continue
                habit(connection, who)
    except BaseException as error:
        failures.append(f"{who}: {getattr(habit, '__name__', 'login')}: {error!r}")


def main():
    threads = [
        threading.Thread(target=run, args=(threshold, number))
        for number in range(CLIENTS)
        for threshold in (0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"psycopg {psycopg.__version__} ({psycopg.pq.__impl__}), libpq {psycopg.pq.version()}")
    print(*failures, sep="\n")
    sys.exit(bool(failures))


main()
