"""The studio: variegate in a browser, for those who paint rather than type.

It reads folders and starts processes, and does nothing else: what learns, measures or draws is
`python -m variegate`, and goes on when the studio, the browser or both are closed. Nothing here
imports PyTorch.
"""

from __future__ import annotations

import ipaddress
import platform
import socket
import sys
import webbrowser
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from variegate.errors import RequestError

if TYPE_CHECKING:
    from starlette.applications import Starlette

LEAST_PASSWORD = 8  # letters
FIRST_PORT, LAST_PORT = 7860, 7899  # looked through when none is asked for


def serve(
    home: Path,
    *,
    verbs: Iterable[str],
    port: int | None = None,
    open_browser: bool = False,
    listen: str | None = None,
    password: str | None = None,
    watched: Iterable[Path] = (),
    announce: Callable[[str], None] = print,
) -> None:
    """Serve until stopped. announce: is told the address, with this start's key, once it listens.

    home: where pictures, runs and the queue lie. watched: more folders that are searched for runs.
    listen: an address of this machine that others can reach; only with a password.

    Raises: RequestError for words that do not go together and a port that is taken, NoSpace when
    the home folder cannot be made.
    """
    check_reach(listen, password)
    try:
        import uvicorn

        from variegate.studio.app import make_app
    except ImportError as error:
        raise RequestError(
            f"the studio needs {error.name}, which is not installed; "
            f"{Path(sys.executable).name} -m pip install 'variegate[studio]'"
        ) from error
    from variegate.studio.desk import Desk
    from variegate.studio.devices import devices
    from variegate.studio.walls import Keys

    host = listen or "127.0.0.1"
    opened = _listen(host, port)
    port = opened.getsockname()[1]
    keys = Keys(password=password)
    app: Starlette = make_app(
        Desk(home, watched=watched, on=devices),
        keys=keys,
        port=port,
        verbs=verbs,
        hosts=_names_of(listen),
    )
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{port}/?token={keys.token}"
    announce(address)
    if open_browser:
        webbrowser.open(address)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # addresses carry the key
        server_header=False,
        date_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=2,
        limit_concurrency=256,
        ws="none",
        proxy_headers=False,
    )
    uvicorn.Server(config).run(sockets=[opened])


def check_reach(listen: str | None, password: str | None) -> None:
    """Raises: RequestError when others could reach the studio without a password."""
    if password is not None and len(password) < LEAST_PASSWORD:
        raise RequestError(
            f"--password has {len(password)} letters; others can try to guess it: take at least "
            f"{LEAST_PASSWORD}"
        )
    if listen is None:
        if password is not None:
            raise RequestError(
                "--password goes with --listen: alone, only you can reach the studio"
            )
        return
    try:
        alone = ipaddress.ip_address(listen).is_loopback
    except ValueError as error:
        raise RequestError(
            f"--listen {listen!r} is no address; give one of this machine's, such as 192.168.1.20, "
            "or 0.0.0.0 for all"
        ) from error
    if not alone and password is None:
        raise RequestError(
            f"--listen {listen} lets other machines in: give --password WORDS too. The connection "
            "is not encrypted; in a network that you do not trust use an SSH tunnel instead"
        )


def _names_of(listen: str | None) -> list[str]:
    """The names under which a listening studio may be asked for: addresses and this machine's
    name, never a name that somebody else can point here."""
    if listen is None:
        return []
    named = [platform.node().lower()] if platform.node() else []
    address = ipaddress.ip_address(listen)
    if not address.is_unspecified:
        return [*named, f"[{listen}]" if address.version == 6 else listen]
    import psutil

    found = [a.address.partition("%")[0] for each in psutil.net_if_addrs().values() for a in each]
    for text in found:
        try:
            one = ipaddress.ip_address(text)
        except ValueError:  # the hardware's own
            continue
        named.append(f"[{one}]" if one.version == 6 else str(one))
    return named


def _listen(host: str, port: int | None) -> socket.socket:
    """A listening socket, on the port asked for or the first that is free.

    Raises: RequestError.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    asked = [port] if port is not None else [*range(FIRST_PORT, LAST_PORT + 1), 0]
    for number in asked:
        opened = socket.socket(family, socket.SOCK_STREAM)
        if sys.platform != "win32":  # there it would let two studios share a port
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            opened.bind((host, number))
        except OSError as error:
            opened.close()
            if port is not None or number == 0:
                raise RequestError(
                    f"{host}:{number} cannot be listened on: {error.strerror or error}; "
                    "name another --port, or leave it out"
                ) from error
            continue
        opened.listen(128)
        opened.set_inheritable(False)  # what is started must not keep it open
        return opened
    raise AssertionError("port 0 is always free")
