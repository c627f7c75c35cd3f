"""Running pgbench and reading what it says: its summary, its errors, and its log of every transaction."""

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from . import process, programs
from .stats import Latencies

OVERTIME_SECONDS_MAX = 60   # beyond -T; a run that hangs longer is reported as such
THREADS_MAX = 2             # one pgbench thread drives more than 50,000 transactions per second; more would only compete


class Failed(Exception):
    """pgbench could not do the whole run; the message is its first error."""


@dataclass(frozen=True)
class Load:
    """What pgbench sends."""

    clients: int
    script: str | None = None      # text of a script; or
    builtin: str | None = None     # the name of a built-in one
    protocol: str = "simple"       # simple | extended | prepared
    reconnect: bool = False        # a new connection for each transaction


@dataclass(frozen=True)
class Outcome:
    """What came of it. Rates count as pgbench does: without the initial connects, but with those of -C."""

    transactions: int
    tps: float
    latencies: Latencies   # us; empty when not logged
    connect_ms: float | None


def run(load, port, *, seconds=None, transactions=None, log=True, cpus=None):
    """Run for `seconds`, or until each client has done `transactions`."""
    amount = ["-T", str(seconds)] if seconds else ["-t", str(transactions)]
    with tempfile.TemporaryDirectory(prefix="pgpinion-pgbench-") as directory:
        command = [*_command(load, port, directory), *amount]
        if log:
            command += ["--log", f"--log-prefix={directory}/log"]
        timeout = (seconds or 0) + OVERTIME_SECONDS_MAX
        try:
            done = process.run([*command, "postgres"], cwd=directory, cpus=cpus, timeout=timeout)
        except subprocess.TimeoutExpired:
            raise Failed(f"pgbench did not end within {timeout} s") from None
        error = first_error(done.stderr)
        if done.returncode != 0 or error:
            raise Failed(error or f"pgbench ended with status {done.returncode}")
        return parse_summary(done.stdout, read_logs(Path(directory)))


def parse_summary(text, latencies):
    """The Outcome from pgbench's closing words (PostgreSQL 13 and newer)."""
    connect = _number(r"^average connection time = ([\d.]+) ms", text)
    return Outcome(
        transactions=int(_number(r"^number of transactions actually processed: (\d+)", text) or 0),
        tps=_number(r"^tps = ([\d.]+)", text) or 0.0,
        latencies=latencies,
        connect_ms=connect)


def first_error(stderr):
    """The first line with an error in it, without pgbench's preamble; None when there is none."""
    for line in stderr.splitlines():
        found = re.search(r"(?:error|fatal): (.*)", line) or re.search(r"((?:ERROR|FATAL): .*)", line)
        if found:
            server_said = re.search(r"(?:ERROR|FATAL): .*", found.group(1))
            return server_said.group() if server_said else found.group(1)
    return None


def parse_log(lines):
    """Latencies from --log lines: client, transaction number, latency in us, script, epoch, us. Skipped and failed ones are words."""
    third_fields = (line.split(None, 3)[2] for line in lines)
    return Latencies(int(field) for field in third_fields if field.isdigit())


def read_logs(directory):
    """All threads' logs of one run."""
    latencies = Latencies()
    for path in directory.glob("log.*"):
        with open(path) as file:
            latencies.add(parse_log(file))
    return latencies


def _command(load, port, directory):
    threads = min(THREADS_MAX, load.clients, max(1, (os.cpu_count() or 1) // 2))
    command = [programs.need("pgbench"), "-n", "-h", "127.0.0.1", "-p", str(port), "-U", "postgres",
               "-c", str(load.clients), "-j", str(threads), "-M", load.protocol]
    if load.reconnect:
        command.append("-C")
    if load.builtin:
        return [*command, "-b", load.builtin]
    script = Path(directory) / "script.sql"
    script.write_text(load.script)
    return [*command, "-f", str(script)]


def _number(pattern, text):
    found = re.search(pattern, text, re.MULTILINE)
    return float(found.group(1)) if found else None
