"""Where the programs are: PostgreSQL's, PgBouncer and pgpinion's binary."""

import glob
import os
import re
import shutil
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
EXTRA_DIRECTORIES = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/local/bin", "/usr/local/pgsql/bin"]
PREPARES_SINCE = (1, 21)   # the first PgBouncer that keeps prepared statements in transaction pooling


class Missing(Exception):
    """A program that is needed and not installed."""


def find(name):
    """The path of `name`, or None. The newest PostgreSQL in Debian's or PGDG's directories wins over PATH's wrappers."""
    versioned = glob.glob("/usr/lib/postgresql/*/bin") + glob.glob("/usr/pgsql-*/bin")
    newest_first = sorted(versioned, key=_major_version, reverse=True)
    path = os.pathsep.join([*newest_first, os.environ.get("PATH", ""), *EXTRA_DIRECTORIES])
    return shutil.which(name, path=path)


def need(name):
    found = find(name)
    if found is None:
        raise Missing(f"{name} is not installed: loadtest/quickstart installs it, or see loadtest/README.md")
    return found


def pgpinion_binary(given=None):
    """The binary to measure: `given`, else the release build of this repository."""
    binary = Path(given).resolve() if given else REPOSITORY / "target" / "release" / "pgpinion"
    return _executable(binary, "run `cargo build --release` first, or give --binary PATH")


def pgbouncer_binary(given=None):
    """The PgBouncer to measure: `given`, else the installed one."""
    return _executable(Path(given).resolve(), "see loadtest/README.md") if given else need("pgbouncer")


def pgbouncer_prepares(version):
    """Whether the PgBouncer whose --version says `version` can be driven with -M prepared in transaction pooling."""
    found = re.match(r"PgBouncer (\d+)\.(\d+)", version)
    return found is not None and tuple(map(int, found.groups())) >= PREPARES_SINCE


def variants(names, binary=None, binary_b=None, settings_b=(), pgbouncer=None):
    """What to run as each of the poolers but `direct`: its binary and its settings. B is A but for what is said."""
    known = {"pgpinion": (pgpinion_binary, binary, ()), "pgpinion-b": (pgpinion_binary, binary_b or binary, tuple(settings_b)),
             "pgbouncer": (pgbouncer_binary, pgbouncer, ())}
    return {name: (find_binary(path), settings) for name, (find_binary, path, settings) in known.items() if name in names}


def _executable(path, otherwise):
    if not os.access(path, os.X_OK) or path.is_dir():
        raise Missing(f"{path} is not there: {otherwise}")
    return str(path)


def _major_version(directory):
    return int(re.search(r"\d+", directory).group())
