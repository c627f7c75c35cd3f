"""Child processes: started in a session of their own, awaited by polling with a deadline, stopped by their process id."""

import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from . import interrupts

READY_SECONDS_MAX = 30   # an initdb'ed PostgreSQL or a pooler answers within two; slow disks get a margin
STOP_SECONDS_MAX = 10    # per signal, before the next harsher one
POLL_SECONDS = 0.02      # between two looks at a condition


class StartError(Exception):
    """A program did not come up; the message has the end of its log."""


class Server:
    """One child that serves a port. Its output goes to a log file.

    `stop_signals` are sent in turn until it has ended; SIGKILL is always the last.
    """

    def __init__(self, name, command, log, *, user=None, cpus=None, stop_signals=(signal.SIGTERM,)):
        self.name = name
        self.log = Path(log)
        self._stop_signals = (*stop_signals, signal.SIGKILL)
        with open(self.log, "ab") as output:
            self._child = subprocess.Popen(
                on_cpus(command, cpus), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True, cwd="/", **as_user(user))

    @property
    def pid(self):
        return self._child.pid

    def alive(self):
        return self._child.poll() is None

    def await_ready(self, probe):
        """Poll `probe()` until it returns without an OSError. A child that ended, or the deadline, is a StartError."""
        deadline = time.monotonic() + READY_SECONDS_MAX
        while True:
            try:
                return probe()
            except OSError as error:
                reason = error
            if not self.alive():
                raise StartError(f"{self.name} ended with status {self._child.returncode}:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise StartError(f"{self.name} not ready in {READY_SECONDS_MAX} s ({reason}):\n{self.log_tail()}")
            time.sleep(POLL_SECONDS)

    def stop(self):
        for number in self._stop_signals:
            if not self.alive():
                return
            self._child.send_signal(number)
            try:
                self._child.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                continue

    def log_tail(self, lines=15):
        text = self.log.read_text(errors="replace").splitlines()
        return "\n".join(f"    {line}" for line in text[-lines:])


@contextmanager
def serving(make_server):
    """`make_server()` starts a Server; it is stopped when the block ends, however it ends."""
    server = None
    try:
        with interrupts.deferred():
            server = make_server()
        yield server
    finally:
        if server:
            server.stop()


def run(command, *, cwd=None, cpus=None, user=None, timeout=None, show=False):
    """Run to the end and return the CompletedProcess with text output (`show`: it went to the terminal).

    On interrupt and on timeout the child is killed, and so are its children.
    """
    child = None
    output = None if show else subprocess.PIPE
    try:
        with interrupts.deferred():
            child = subprocess.Popen(
                on_cpus(command, cpus), cwd=cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                text=True, errors="replace", start_new_session=True, **as_user(user))
        out, err = child.communicate(timeout=timeout)
        return subprocess.CompletedProcess(command, child.returncode, out, err)
    finally:
        if child and child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate()


def on_cpus(command, cpus):
    """The command line that runs `command` on these cores only; None: wherever the scheduler likes."""
    if cpus is None:
        return [str(word) for word in command]
    return ["taskset", "-c", ",".join(map(str, cpus)), *map(str, command)]


def as_user(user):
    """Popen's arguments for dropping to `user`; None keeps ours."""
    if user is None:
        return {}
    entry = pwd.getpwnam(user)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def unprivileged_user():
    """PostgreSQL and PgBouncer refuse root: as root they get Debian's `postgres`, or `nobody`. Else None: our own user will do."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


@contextmanager
def workspace():
    """A temporary directory that other users may enter; removed at the end."""
    directory = None
    try:
        with interrupts.deferred():
            directory = Path(tempfile.mkdtemp(prefix="pgpinion-loadtest-"))
        directory.chmod(0o755)
        yield directory
    finally:
        if directory:
            shutil.rmtree(directory, ignore_errors=True)


def free_port():
    """A loopback port nobody listens on, below the range from which outgoing connections take theirs."""
    for _ in range(1000):
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
    raise StartError("no free port between 20000 and 32000")
