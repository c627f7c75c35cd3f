"""Where the programs are: PostgreSQL's, PgBouncer and pgpinion's binary."""

import glob
import os
import re
import shutil
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
EXTRA_DIRECTORIES = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/local/bin", "/usr/local/pgsql/bin"]


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
    if not os.access(binary, os.X_OK) or binary.is_dir():
        raise Missing(f"{binary} is not there: run `cargo build --release` first, or give --binary PATH")
    return str(binary)


def variants(names, binary=None, binary_b=None, settings_b=()):
    """What to run as each pgpinion among the poolers: its binary and its settings. B is A but for what is said."""
    known = {"pgpinion": (binary, ()), "pgpinion-b": (binary_b or binary, tuple(settings_b))}
    return {name: (pgpinion_binary(path), settings) for name, (path, settings) in known.items() if name in names}


def _major_version(directory):
    return int(re.search(r"\d+", directory).group())
