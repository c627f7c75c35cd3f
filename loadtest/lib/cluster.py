"""A throwaway PostgreSQL: initdb into the workspace, trust on loopback, no durability, stopped and gone at the end."""

import os
import shutil
import signal
from contextlib import contextmanager

from . import process, programs
import wire

SCALE = 10                    # pgbench -i: 1,000,000 accounts, which fit in shared_buffers
SHARED_BUFFERS = "256MB"
CONNECTIONS_MAX = 300         # 128 direct clients, the pools of two poolers, and room

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": CONNECTIONS_MAX,
    "shared_buffers": SHARED_BUFFERS,
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "1h",   # no checkpoint falls into one pooler's turn and not the other's
    "jit": "off",
}


class Cluster:
    """A running PostgreSQL; `port` on 127.0.0.1, user and database postgres."""

    def __init__(self, server, port):
        self._server = server
        self.port = port

    def pin(self, cpus):
        """Backends started from now on run on these cores."""
        os.sched_setaffinity(self._server.pid, cpus)

    def connect(self):
        return wire.Connection("127.0.0.1", self.port)


@contextmanager
def running(workspace):
    """Start a cluster in `workspace` and load pgbench's tables."""
    data = workspace / "postgresql"
    user = process.unprivileged_user()
    data.mkdir()
    if user:
        shutil.chown(data, user)
    _initdb(data, user)
    port = process.free_port()
    with process.serving(lambda: _start(data, port, user, workspace / "postgresql.log")) as server:
        cluster = Cluster(server, port)
        server.await_ready(lambda: cluster.connect().close())
        _load_tables(cluster)
        yield cluster


def _initdb(data, user):
    _checked([programs.need("initdb"), "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"], user)


def _start(data, port, user, log):
    settings = {"port": port, **SETTINGS}
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    # SIGINT is PostgreSQL's fast shutdown; SIGQUIT the immediate one.
    return process.Server("PostgreSQL", [programs.need("postgres"), "-D", data, *options], log,
                          user=user, stop_signals=(signal.SIGINT, signal.SIGQUIT))


def _load_tables(cluster):
    _checked([programs.need("pgbench"), "-i", "-q", "-s", SCALE, "-h", "127.0.0.1", "-p", cluster.port, "-U", "postgres", "postgres"])
    with cluster.connect() as connection:
        connection.query("CREATE UNLOGGED TABLE copy_sink (line text)")


def _checked(command, user=None):
    done = process.run(command, user=user, cwd="/", timeout=300)
    if done.returncode != 0:
        raise process.StartError(f"{command[0]} failed:\n{done.stdout}{done.stderr}")
