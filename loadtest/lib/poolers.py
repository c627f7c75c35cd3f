"""What stands between pgbench and PostgreSQL: nothing, PgBouncer, or pgpinion. Each is started with the configuration
that is the fairest we know: transaction pooling, the same number of server connections, nothing logged per transaction.
"""

import signal
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import process, programs
import wire

CLIENTS_MAX = 12_000   # 10,000 idle ones and room; under the usual hard limit of 20,000 descriptors

PGBOUNCER_INI = """\
[databases]
* = host=127.0.0.1 port={server_port}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {directory}/userlist.txt
admin_users = postgres
pool_mode = transaction
default_pool_size = {servers}
max_client_conn = {clients_max}
ignore_startup_parameters = extra_float_digits
log_connections = 0
log_disconnections = 0
log_stats = 0
{settings}"""

PGBOUNCER_PREPARING = ("max_prepared_statements = 200",)   # the default since 1.24; 0 before, and unknown before 1.21

PGPINION_TOML = """\
[pgpinion]
listen = ["127.0.0.1:{port}"]
pool_mode = "transaction"
max_client_conn = {clients_max}
auth_type = "trust"
cores = "{directory}/cores.toml"
log_connections = false
log_disconnections = false
stats_period = 0
{settings}
[endpoints.main]
host = "127.0.0.1"
port = {server_port}
max_connections = {servers}

[databases."*"]
endpoint = "main"
"""


@dataclass(frozen=True)
class Target:
    """A running path to PostgreSQL. `pid` is None when nothing is in between."""

    name: str
    port: int
    pid: int | None = None
    config: Path | None = None
    server: process.Server | None = None

    def alive(self):
        return self.server is None or self.server.alive()


@dataclass(frozen=True)
class Plan:
    """How a pooler is to be started."""

    directory: Path          # for configuration and log
    server_port: int         # PostgreSQL's
    servers: int             # server connections it may open
    cpus: tuple[int, ...]    # the cores it is held to
    binary: str | None = None
    settings: tuple[str, ...] = ()   # lines of [pgpinion] or [pgbouncer] more than the usual


@contextmanager
def direct(plan):
    yield Target("direct", plan.server_port)


@contextmanager
def pgbouncer(plan):
    port = process.free_port()
    config = _write(plan, "pgbouncer.ini", PGBOUNCER_INI, port)
    _write(plan, "userlist.txt", '"postgres" ""\n', port)
    # SIGTERM is PgBouncer's immediate shutdown.
    command = [plan.binary or programs.need("pgbouncer"), config]
    with _ready("pgbouncer", command, plan, port, config, user=process.unprivileged_user()) as target:
        yield target


@contextmanager
def pgpinion(plan):
    """One shard per core. The process as a whole is held to the same cores, so that its control thread gets no core for free."""
    yield from _pgpinion("pgpinion", plan)


@contextmanager
def pgpinion_b(plan):
    """Another build of it, or the same with other settings."""
    yield from _pgpinion("pgpinion-b", plan)


def _pgpinion(name, plan):
    port = process.free_port()
    config = _write(plan, "pgpinion.toml", PGPINION_TOML, port)
    _write(plan, "cores.toml", "".join(f"[[core]]\ncpu = {cpu}\n" for cpu in plan.cpus), port)
    command = [plan.binary, "run", "-c", config]
    # SIGTERM drains at transaction boundaries; SIGINT stops at once.
    with _ready(name, command, plan, port, config, stop_signals=(signal.SIGINT, signal.SIGTERM)) as target:
        yield target


KINDS = {"pgpinion": pgpinion, "pgpinion-b": pgpinion_b, "pgbouncer": pgbouncer, "direct": direct}


@contextmanager
def _ready(name, command, plan, port, config, **how):
    log = plan.directory / f"{name}.log"
    with process.serving(lambda: process.Server(name, command, log, cpus=plan.cpus, **how)) as server:
        server.await_ready(lambda: _answers(port))
        yield Target(name, port, server.pid, config, server)


def _answers(port):
    with wire.Connection("127.0.0.1", port) as connection:
        connection.query("SELECT 1")


def _write(plan, name, template, port):
    path = plan.directory / name
    path.write_text(template.format(port=port, directory=plan.directory, server_port=plan.server_port,
                                    servers=plan.servers, clients_max=CLIENTS_MAX, settings="".join(f"{line}\n" for line in plan.settings)))
    return path
