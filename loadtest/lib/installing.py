"""Installs what a fresh Debian or Ubuntu lacks, and leaves nothing running that was not running before."""

import os
import shutil
import subprocess

from . import interrupts, programs

# program that is needed -> packages that bring it
PACKAGES = {
    "postgres": ["postgresql"],
    "initdb": ["postgresql"],
    "pgbench": ["postgresql"],
    "psql": ["postgresql-client"],
    "pgbouncer": ["pgbouncer"],
    "cc": ["gcc", "libc6-dev"],          # Rust links with it
    "taskset": ["util-linux"],
}

# Debian's packages create and start a cluster on 5432 and start PgBouncer on 6432. Both are held back while we install:
# the first by createcluster.conf, which is put back as it was, the second by policy-rc.d (101: action forbidden).
SCRIPT = """\
set -eu
export DEBIAN_FRONTEND=noninteractive
policy=/usr/sbin/policy-rc.d
clusters=/etc/postgresql-common/createcluster.conf
ours=
restore() {
    if [ -n "$ours" ]; then rm -f "$policy"; fi
    if [ -e "$clusters.before-pgpinion" ]; then mv "$clusters.before-pgpinion" "$clusters"; fi
}
trap restore EXIT
trap 'exit 130' INT TERM HUP
if [ ! -e "$policy" ]; then
    ours=yes
    printf '#!/bin/sh\\nexit 101\\n' > "$policy"
    chmod 755 "$policy"
fi
apt-get update -qq
case " $* " in *" postgresql "*)
    apt-get install -qq -y --no-install-recommends postgresql-common > /dev/null
    cp -p "$clusters" "$clusters.before-pgpinion"
    sed -i 's/^#*[[:space:]]*create_main_cluster.*/create_main_cluster = false/' "$clusters"
    grep -q '^create_main_cluster = false' "$clusters" || echo 'create_main_cluster = false' >> "$clusters"
esac
apt-get install -qq -y --no-install-recommends "$@" > /dev/null
case " $* " in *" pgbouncer "*)
    if command -v systemctl > /dev/null; then systemctl disable pgbouncer > /dev/null 2>&1 || true; fi
esac
"""


def missing():
    """(programs that are not there, packages that bring them)"""
    absent = [name for name in PACKAGES if programs.find(name) is None]
    packages = list(dict.fromkeys(package for name in absent for package in PACKAGES[name]))
    return absent, packages


def ensure():
    """Install what is missing; Missing says what to do where we cannot."""
    absent, packages = missing()
    if not packages:
        return
    by_hand = f"{', '.join(absent)} not found. Please install them (Debian, Ubuntu: apt-get install {' '.join(packages)}) and run this again."
    if shutil.which("apt-get") is None:
        raise programs.Missing(by_hand)
    prefix = [] if os.geteuid() == 0 else ["sudo"]
    if prefix and shutil.which("sudo") is None:
        raise programs.Missing(by_hand)
    print(f"installing {' '.join(packages)}; this takes a minute ...", flush=True)
    with interrupts.deferred():     # Ctrl-C reaches the script itself, which puts back what it changed; we wait for that
        done = subprocess.run([*prefix, "sh", "-c", SCRIPT, "install", *packages], check=False)
    still_absent, _ = missing()
    if done.returncode != 0 or still_absent:
        raise programs.Missing(by_hand)
