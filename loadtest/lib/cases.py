"""The cases, by stable names, and the targets of DESIGN.md ("What fast means here"). A table, no behaviour."""

from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from .pgbench import Load

SELECT_1 = "SELECT 1;\n"
PIPELINE_OF_10 = "\\startpipeline\n" + SELECT_1 * 10 + "\\endpipeline\n"
ROWS_OF_1_MB = "SELECT repeat('x', 1048576);\n"
COPY_BYTES = 256 << 20           # per COPY: a second or so of streaming
IDLE_CLIENTS = 10_000
SWEEP_CLIENTS = (1, 2, 4, 8, 16, 32, 64, 128)



@dataclass(frozen=True)
class Goal:
    """What DESIGN.md asks of one measure: of the ratio to PgBouncer, or of pgpinion's own value."""

    limit: float
    at: str = "most"             # most | least
    of: str = "ratio"            # ratio | value
    layout: str | None = None    # only with the pooler held to one core; None: always

    def met(self, found):
        return found <= self.limit if self.at == "most" else found >= self.limit

    def __str__(self):
        return f"{'<=' if self.at == 'most' else '>='} {self.limit:g}{' B' if self.of == 'value' else ''}"


@dataclass(frozen=True)
class Case:
    """One thing to measure."""

    name: str
    about: str
    kind: str = "pgbench"                                 # pgbench | copy-out | copy-in | idle
    load: Load | None = None
    load_of: dict = field(default_factory=dict)           # by pooler, where one must be driven differently
    servers: int = 20
    unit: str = "transaction"                             # what CPU is counted per and the rate is of: transaction | MB | client
    shown: tuple = ("cpu", "rate")                        # of the measures a Step has, those of the summary
    goals: dict = field(default_factory=dict)             # measure -> Goal
    if_prepares: dict = field(default_factory=dict)       # what differs against a PgBouncer that prepares, see programs.py
    warm_up: int = 20                                     # transactions per client before the first round
    group: str | None = None

    def against(self, prepares):
        """This case against a PgBouncer that prepares in transaction pooling, or one that does not."""
        return replace(self, **self.if_prepares) if prepares else self

    def load_for(self, pooler):
        return self.load_of.get(pooler, self.load)

    def unit_of(self, measure):
        """The unit in which `measure` of this case is given."""
        per = {"transaction": ("us/txn", "txn/s"), "MB": ("us/MB", "MB/s"), "client": ("us", "1/s")}[self.unit]
        return {"cpu": per[0], "rate": per[1], "memory": "B/client", "idle_cpu": "ms/s", "connect_ms": "ms"}.get(measure, "us")


def _cpu(limit):
    return {"cpu": Goal(limit)}


def _sweep(clients):
    return Case(f"sweep-{clients}", f"SELECT 1, {clients} clients on 20 servers", load=Load(clients, SELECT_1), group="sweep")


CASES = (
    Case("select1-64x20", "SELECT 1, 64 clients on 20 servers", load=Load(64, SELECT_1),
         goals={"cpu": Goal(0.60), "rate": Goal(1.25, at="least", layout="one")}),
    Case("select1-16x16", "SELECT 1, 16 clients on 16 servers", load=Load(16, SELECT_1), servers=16, goals=_cpu(0.80)),
    Case("S-simple", "-S, simple protocol, 64 clients on 20 servers", load=Load(64, builtin="select-only"), goals=_cpu(0.65)),
    Case("S-extended", "-S, extended protocol, 64 clients on 20 servers",
         load=Load(64, builtin="select-only", protocol="extended"), goals=_cpu(0.65)),
    Case("S-prepared", "-S, prepared protocol, 64 clients on 20 servers (PgBouncer before 1.21 cannot: it runs extended)",
         load=Load(64, builtin="select-only", protocol="prepared"),
         load_of={"pgbouncer": Load(64, builtin="select-only", protocol="extended")}, goals=_cpu(0.65),
         if_prepares={"load_of": {}, "goals": _cpu(0.55)}),
    Case("pipeline-10", "a pipeline of 10 SELECT 1, extended protocol, 64 clients on 20 servers",
         load=Load(64, PIPELINE_OF_10, protocol="extended"), goals=_cpu(0.85)),
    Case("connect", "-C: connect, SELECT 1, disconnect, 16 clients on 20 servers",
         load=Load(16, SELECT_1, reconnect=True), shown=("cpu", "rate", "connect_ms"), goals=_cpu(0.90), warm_up=2),
    Case("tpcb-like", "-b tpcb-like, 64 clients on 20 servers", load=Load(64, builtin="tpcb-like"), warm_up=5),
    Case("rows-1mb", "a row of 1 MB, 8 clients on 8 servers", load=Load(8, ROWS_OF_1_MB), servers=8, unit="MB",
         goals=_cpu(0.50), warm_up=5),
    Case("copy-out", "COPY 256 MB to one client", kind="copy-out", unit="MB", goals=_cpu(0.50)),
    Case("copy-in", "COPY 256 MB from one client", kind="copy-in", unit="MB"),
    Case("idle-10000", "10,000 clients that ran one query and idle: resident memory per client", kind="idle",
         load=Load(64, SELECT_1), unit="client", shown=("memory", "idle_cpu"), goals={"memory": Goal(1024, of="value")}),
    Case("latency-1", "SELECT 1, one client", load=Load(1, SELECT_1), shown=("avg", "p50", "p99", "cpu")),
    *map(_sweep, SWEEP_CLIENTS),
)


class Unknown(Exception):
    """No case has this name."""


def select(patterns):
    """The cases named, in the table's order: by name, by group, or by shell pattern. An empty list means all."""
    if not patterns:
        return list(CASES)
    for pattern in patterns:
        if not any(_matches(case, pattern) for case in CASES):
            raise Unknown(f"no case is called {pattern!r}; see --list")
    return [case for case in CASES if any(_matches(case, pattern) for pattern in patterns)]


def named(name):
    return next(case for case in CASES if case.name == name)


def _matches(case, pattern):
    return case.group == pattern or fnmatchcase(case.name, pattern)
