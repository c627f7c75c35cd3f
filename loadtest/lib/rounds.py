"""Runs cases: in each round every pooler takes its turn, and the order turns round from one round to the next, so that a
drifting machine hurts both alike. Poolers are started afresh for each case, so that no case inherits another's pools.
"""

import time
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field

import wire
from . import cases, cpu, pgbench, poolers, process
from .stats import Latencies

MB = 1 << 20
COPY_ROW = b"x" * 1000 + b"\n"
COPY_CHUNK = COPY_ROW * 8           # what psql sends in one CopyData: about 8 KB
IDLE_WATCH_SECONDS = 1              # for how long 10,000 idle clients are watched for CPU
PINNED_APART_CORES_MIN = 4          # from here on the pooler gets its core for itself, see Layout


@dataclass(frozen=True)
class Layout:
    """Who runs where. `others` is PostgreSQL and pgbench.

    one: the pooler is held to the last core. With 4 cores or more the others get all the rest, and the pooler has its core
    for itself. With fewer the others float over all cores, that of the pooler included: fenced into one core, PostgreSQL
    and pgbench together would saturate it long before a pooler saturates its own, and tps would measure them alone.
    all: everybody floats (pgpinion: one pinned shard per core).
    """

    name: str
    pooler: tuple[int, ...]
    others: tuple[int, ...]


def layouts(wanted, cores):
    """The layouts for --shards one, all or both."""
    apart = len(cores) >= PINNED_APART_CORES_MIN
    one = Layout("one", tuple(cores[-1:]), tuple(cores[:-1] if apart else cores))
    everywhere = Layout("all", tuple(cores), tuple(cores))
    return {"one": [one], "all": [everywhere], "both": [one, everywhere]}[wanted]


@dataclass
class Step:
    """One pooler's turn in one round of one case."""

    case: str
    layout: str
    round: int
    pooler: str
    measures: dict = field(default_factory=dict)   # name -> number; which ones, the kind of case decides
    error: str | None = None

    def raw(self):
        return asdict(self)


class Runner:
    """Runs every step and tells `on_step` of each; keeps the latencies of all rounds in `latencies[case, layout, pooler]`."""

    def __init__(self, cluster, workspace, *, names, rounds, seconds, variants, on_step):
        self._cluster = cluster
        self._workspace = workspace
        self._names = names
        self._rounds = rounds
        self._seconds = seconds
        self._variants = variants    # pooler -> (binary, settings)
        self._on_step = on_step
        self.latencies = {}

    def run(self, case, layout):
        """All rounds of one case. A pooler that failed once is not driven again: its remaining rounds say the same."""
        self._cluster.pin(layout.others)
        failed = {}
        with self._started(case, layout) as targets:
            for number in range(self._rounds):
                for name in turn_order(self._names, number):
                    step = Step(case.name, layout.name, number, name, error=failed.get(name))
                    if step.error is None:
                        self._take(step, case, layout, targets.get(name))
                        failed[name] = step.error
                    self._on_step(step)

    def _take(self, step, case, layout, target):
        try:
            if target:
                step.measures = self._measure(case, layout, target)
                return
            with self._one(step.pooler, case, layout) as fresh:
                step.measures = self._measure(case, layout, fresh)
        except (pgbench.Failed, process.StartError, OSError) as error:
            step.error = explain(error, target)

    @contextmanager
    def _started(self, case, layout):
        """The case's poolers, all running. Idle clients need a process whose memory nobody used before: those start step by step."""
        with ExitStack() as stack:
            targets = {}
            if case.kind != "idle":
                for name in self._names:
                    try:
                        targets[name] = stack.enter_context(self._one(name, case, layout))
                    except (pgbench.Failed, process.StartError, OSError):
                        continue    # tried again, and reported, as this pooler's first step
            yield targets

    @contextmanager
    def _one(self, name, case, layout):
        directory = self._workspace / name
        directory.mkdir(exist_ok=True)
        binary, settings = self._variants.get(name, (None, ()))
        plan = poolers.Plan(directory, self._cluster.port, case.servers, layout.pooler, binary, settings)
        with poolers.KINDS[name](plan) as target:
            if case.load:
                pgbench.run(case.load_for(name), target.port, transactions=case.warm_up, log=False, cpus=layout.others)
            yield target

    def _measure(self, case, layout, target):
        if case.kind == "pgbench":
            return self._pgbench(case, layout, target)
        if case.kind == "idle":
            return _idle(target)
        return _copy(case, target)

    def _pgbench(self, case, layout, target):
        cost = Cost(target.pid)
        outcome = pgbench.run(case.load_for(target.name), target.port, seconds=self._seconds, cpus=layout.others)
        spent = cost.so_far()
        if outcome.transactions == 0:
            raise pgbench.Failed(f"no transaction in {self._seconds} s")
        kept = self.latencies.setdefault((case.name, layout.name, target.name), Latencies())
        kept.add(outcome.latencies)
        p50, p90, p99, p999 = outcome.latencies.percentiles([50, 90, 99, 99.9])
        average = _average(outcome.latencies)
        return {"rate": outcome.tps, "transactions": outcome.transactions, "connect_ms": outcome.connect_ms,
                "avg": average, "p50": p50, "p90": p90, "p99": p99, "p999": p999, **spent.per(outcome.transactions)}


class Cost:
    """A pooler's CPU time since this was made. Without a pooler there is none."""

    def __init__(self, pid):
        self._pid = pid
        self._start = self._read()

    def so_far(self):
        now = self._read()
        return Spent(*(b - a for a, b in zip(self._start, now))) if self._pid else Spent(now[0] - self._start[0])

    def _read(self):
        wall = time.monotonic()
        return (wall, cpu.cpu_ns(self._pid), *cpu.user_and_system_s(self._pid)) if self._pid else (wall,)


@dataclass(frozen=True)
class Spent:
    wall_s: float
    cpu_ns: int | None = None
    user_s: float | None = None
    system_s: float | None = None

    def per(self, units):
        """CPU in us per unit, how many cores that kept busy, and the split; empty without a pooler."""
        if self.cpu_ns is None or not units:
            return {}
        return {"cpu": self.cpu_ns / 1000 / units, "busy": self.cpu_ns / 1e9 / self.wall_s,
                "user_s": round(self.user_s, 2), "system_s": round(self.system_s, 2)}


def turn_order(names, number):
    """Forwards in even rounds, backwards in odd ones."""
    return list(names) if number % 2 == 0 else list(reversed(names))


def explain(error, target):
    """Why a step failed; with the pooler's last words, should it have ended."""
    if target and not target.alive():
        return f"the pooler ended: {error}\n{target.server.log_tail(3)}"
    return str(error)


def _copy(case, target):
    with wire.Connection("127.0.0.1", target.port) as connection:
        cost = Cost(target.pid)
        if case.kind == "copy-out":
            rows = cases.COPY_BYTES // len(COPY_ROW)
            sent = connection.copy_out(f"COPY (SELECT repeat('x', 1000) FROM generate_series(1, {rows})) TO STDOUT")
        else:
            # WHERE false: the stream is read and parsed, but no disk is filled.
            sent = connection.copy_in("COPY copy_sink FROM STDIN WHERE false", COPY_CHUNK, cases.COPY_BYTES // len(COPY_CHUNK))
        spent = cost.so_far()
    return {"rate": sent / MB / spent.wall_s, "bytes": sent, **spent.per(sent / MB)}


def _idle(target):
    """Memory that 10,000 clients add to a warmed-up process, and the CPU it then uses for nothing."""
    if target.pid is None:
        return {}
    before = cpu.resident_bytes(target.pid)
    with wire.IdleClients(target.port) as clients:
        clients.open(cases.IDLE_CLIENTS)
        after = cpu.resident_bytes(target.pid)
        cost = Cost(target.pid)
        time.sleep(IDLE_WATCH_SECONDS)     # the measurement itself: what does it cost to do nothing
        spent = cost.so_far()
    return {"memory": (after - before) / cases.IDLE_CLIENTS, "resident_before": before, "resident_after": after,
            "idle_cpu": spent.cpu_ns / 1e6 / spent.wall_s}


def _average(latencies):
    total = sum(value * count for value, count in latencies.counts.items())
    return total / len(latencies) if len(latencies) else None
