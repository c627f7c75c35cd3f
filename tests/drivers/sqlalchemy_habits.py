"""SQLAlchemy as it is: its pool, its ORM, its reconnection checks, with psycopg 3 and with asyncpg."""

import asyncio
import os
import sys
import threading

import sqlalchemy
from sqlalchemy import ForeignKey, MetaData, String, create_engine, func, inspect, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, selectinload

ADDRESS = "{PGUSER}@{PGHOST}:{PGPORT}/{PGDATABASE}".format(**os.environ)
CLIENTS = 4


def check(got, expected):
    assert got == expected, f"{got!r} instead of {expected!r}"


def models(prefix):
    class Base(DeclarativeBase):
        metadata = MetaData()

    class Parent(Base):
        __tablename__ = f"{prefix}_parent"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(String(50), unique=True)
        children: Mapped[list["Child"]] = relationship(back_populates="parent")

    class Child(Base):
        __tablename__ = f"{prefix}_child"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        parent_id: Mapped[int] = mapped_column(ForeignKey(f"{prefix}_parent.id"))
        parent: Mapped[Parent] = relationship(back_populates="children")

    return Base, Parent, Child


def work(session, who, Parent, Child):
    """What an application does in a session; the same for both kinds, which differ in who calls it."""
    for number in range(4):
        name = f"{who}-{number}"
        parent = Parent(name=name, children=[Child(name=f"{name}-{child}") for child in range(5)])
        session.add(parent)
        session.commit()
        check(parent.name, name)
        found = session.scalars(select(Parent).where(Parent.name == name).options(selectinload(Parent.children))).one()
        check(sorted(child.name for child in found.children), [f"{name}-{child}" for child in range(5)])
        found.children[0].name = "changed"
        session.flush()
        check(session.scalar(select(func.count()).select_from(Child).where(Child.name == "changed", Child.parent == found)), 1)
        session.rollback()
        try:
            with session.begin_nested():
                session.add(Parent(name=name))
                session.flush()
            raise AssertionError("the name is taken")
        except IntegrityError:
            pass
        check(session.scalar(select(Parent.name).where(Parent.name == name)), name)
        session.commit()
        check(session.execute(text("select :who"), {"who": name}).scalar(), name)
        session.commit()


def rows_of_a_server_side_cursor(engine, who):
    with engine.connect().execution_options(yield_per=100) as connection:
        rows = connection.execute(text("select i, cast(:who as text) from generate_series(1, 1000) i"), {"who": who})
        check(sum(1 for row in rows if row[1] == who), 1000)


def blocking():
    Base, Parent, Child = models("alchemy")
    engine = create_engine(f"postgresql+psycopg://{ADDRESS}", pool_pre_ping=True, pool_size=3, max_overflow=2)
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    check(set(inspect(engine).get_table_names()) >= {"alchemy_parent", "alchemy_child"}, True)
    failures = []

    def client(who):
        try:
            with Session(engine) as session:
                work(session, who, Parent, Child)
            rows_of_a_server_side_cursor(engine, who)
            levels = engine.execution_options(isolation_level="SERIALIZABLE")
            with levels.begin() as connection:
                check(connection.scalar(text("show transaction_isolation")), "serializable")
        except BaseException as error:
            failures.append(f"psycopg, {who}: {error!r}")

    threads = [threading.Thread(target=client, args=(f"client{number}",)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with Session(engine) as session:
        check(session.scalar(select(func.count()).select_from(Parent)), CLIENTS * 4)
    Base.metadata.drop_all(engine)
    engine.dispose()
    return failures


async def asynchronous():
    Base, Parent, Child = models("asyncalchemy")
    engine = create_async_engine(f"postgresql+asyncpg://{ADDRESS}", pool_pre_ping=True, pool_size=3, max_overflow=2)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)

    async def client(who):
        async with AsyncSession(engine) as session:
            await session.run_sync(work, who, Parent, Child)
        async with engine.connect() as connection:
            rows = await connection.stream(text("select i from generate_series(1, 1000) i"))
            check(sum([row[0] async for row in rows]), 500500)

    results = await asyncio.gather(*(client(f"client{number}") for number in range(CLIENTS)), return_exceptions=True)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
    await engine.dispose()
    return [f"asyncpg: {result!r}" for result in results if result is not None]


failures = blocking() + asyncio.run(asynchronous())
print(f"SQLAlchemy {sqlalchemy.__version__}")
print(*failures, sep="\n")
sys.exit(bool(failures))
