"""What a process has cost so far: CPU time to the nanosecond, and resident memory."""

import os
import re
import time

CPUCLOCK_SCHED = 2   # Linux: clock id of another process's CPU clock is (~pid << 3) | 2, see clock_getcpuclockid(3)


def cpu_ns(pid):
    """User plus system time of all threads of `pid`, ended ones included (a sum over /proc/PID/task would lose those)."""
    return time.clock_gettime_ns((~pid << 3) | CPUCLOCK_SCHED)


def user_and_system_s(pid):
    """The split into user and system seconds; to the clock tick only, so it goes beside `cpu_ns`, not in its place."""
    with open(f"/proc/{pid}/stat") as file:
        after_name = file.read().rpartition(")")[2].split()
    tick = os.sysconf("SC_CLK_TCK")
    return int(after_name[11]) / tick, int(after_name[12]) / tick


def resident_bytes(pid):
    """Resident set size: exact from smaps_rollup where we may read it, else from status, whose counters lag a little."""
    try:
        return _kilobytes(f"/proc/{pid}/smaps_rollup", "Rss")
    except PermissionError:
        return _kilobytes(f"/proc/{pid}/status", "VmRSS")


def _kilobytes(path, field):
    with open(path) as file:
        return int(re.search(rf"^{field}:\s+(\d+) kB", file.read(), re.MULTILINE).group(1)) * 1024
