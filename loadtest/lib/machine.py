"""Facts of the machine and versions of the programs: without them a number means nothing."""

import os
import platform
import resource
import subprocess
from pathlib import Path

from . import process, programs


def facts():
    return {
        "cpu": _first_value("/proc/cpuinfo", "model name"),
        "cores": cores(),
        "memory_mb": int(_first_value("/proc/meminfo", "MemTotal").split()[0]) // 1024,
        "kernel": platform.release(),
        "system": _system(),
        "load_at_start": os.getloadavg()[0],
    }


def cores():
    """The cores we may use, ascending."""
    return sorted(os.sched_getaffinity(0))


def versions(variants):
    """What each program says of itself; `variants` as of programs.variants."""
    binaries = {name: programs.find(name) for name in ("postgres", "pgbench")} | {name: binary for name, (binary, _) in variants.items()}
    return {"python": platform.python_version(), **{name: _answer(binary, "--version") for name, binary in binaries.items()}}


def git():
    """The revision that is checked out, and whether files differ from it."""
    return {"revision": _answer("git", "rev-parse", "HEAD"), "changed": bool(_answer("git", "status", "--porcelain", "-uno"))}


def raise_descriptor_limit():
    """As many descriptors as the hard limit grants, for us and for what we start."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _answer(*command):
    """The first line a command prints, or an empty string."""
    if command[0] is None:
        return ""
    try:
        lines = process.run(command, cwd=programs.REPOSITORY, timeout=10).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return lines[0] if lines else ""


def _first_value(path, name):
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return platform.machine()


def _system():
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        return "Linux"
