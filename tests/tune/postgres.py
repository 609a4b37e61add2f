"""A PostgreSQL server of a test's own, on loopback, in a folder that goes with it."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PASSWORD = "se cret"
MISSING = (
    "no PostgreSQL server on this machine (pg_ctl): `apt-get install postgresql`, as .ci/run does"
)


def programs() -> Path | None:
    """Where Debian's package, or another, has put them."""
    found = shutil.which("pg_ctl")
    places = [Path(found).resolve().parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if (place / "initdb").exists()), None)


@contextmanager
def server() -> Iterator[str]:
    """The address of a database on a server that lives as long as the block."""
    place = programs()
    assert place is not None
    home = Path(tempfile.mkdtemp(prefix="variegate-pg-"))
    # PostgreSQL refuses to be run by root.
    who: dict[str, Any] = {}
    if os.geteuid() == 0:
        names = [entry.pw_name for entry in pwd.getpwall()]
        user = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
        who = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        os.chown(home, user.pw_uid, user.pw_gid)
    secret = home / "secret"
    secret.write_text(PASSWORD + "\n")
    if who:
        os.chown(secret, who["user"], who["group"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def run(*words: str) -> None:
        done = subprocess.run(
            words, cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **who
        )
        assert done.returncode == 0, done.stderr.decode()

    data = home / "data"
    run(
        *(str(place / "initdb"), "-D", str(data), "-U", "me", "--auth=scram-sha-256"),
        *(f"--pwfile={secret}", "--no-sync", "--encoding=UTF8", "--locale=C"),
    )
    options = f"-p {port} -k {home} -c listen_addresses=127.0.0.1 -c fsync=off"
    log = str(home / "log")
    run(str(place / "pg_ctl"), "-D", str(data), "-o", options, "-l", log, "-w", "start")
    try:
        yield f"postgresql://me:{PASSWORD.replace(' ', '%20')}@127.0.0.1:{port}/postgres"
    finally:
        run(str(place / "pg_ctl"), "-D", str(data), "-m", "immediate", "-w", "stop")
        shutil.rmtree(home, ignore_errors=True)
