"""Who may speak to the studio, and how: one wall in front of every route, none left out.

A page in another tab, another program's window on this machine, or a name that was made to point
here must not reach the pictures or start work. So: Host must be ours; the session's cookie comes
from a token that only the terminal showed (or from the password); whatever changes something needs
our own Origin, no foreign Sec-Fetch-Site, and a signed value that is both in a cookie and in a
header; and every answer tells the browser to load nothing from elsewhere.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SAFE = ("GET", "HEAD")
CSRF_HEADER = "x-csrf-token"
OPEN_PATHS = ("/enter",)  # where the password is given; everything else wants a session
OPEN_FOLDER = "/static/"  # what every installation has, and nothing of the user's
MOST_TRIES = 5  # passwords within
WINDOW = 60.0  # seconds
POLICY = (
    "default-src 'self'; img-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-src 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}


@dataclass
class Keys:
    """The secrets of one start of the studio. password: only where others may reach it."""

    password: str | None = None
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    session: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    signing: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    tries: list[float] = field(default_factory=list)

    def opens(self, token: str) -> bool:
        return hmac.compare_digest(token.encode(), self.token.encode())

    def is_session(self, value: str) -> bool:
        return hmac.compare_digest(value.encode(), self.session.encode())

    def password_opens(self, given: str) -> bool | None:
        """Whether the password is right; None when too many were tried within a minute."""
        now = time.monotonic()
        self.tries = [t for t in self.tries if now - t < WINDOW]
        if len(self.tries) >= MOST_TRIES:
            return None
        right = self.password is not None and hmac.compare_digest(
            given.encode(), self.password.encode()
        )
        if not right:
            self.tries.append(now)
        return right

    def signed(self) -> str:
        """A fresh value that only we can have made."""
        nonce = secrets.token_urlsafe(18)
        return f"{nonce}.{self._sign(nonce)}"

    def is_signed(self, value: str) -> bool:
        nonce, _, signature = value.partition(".")
        return hmac.compare_digest(signature.encode(), self._sign(nonce).encode())

    def _sign(self, nonce: str) -> str:
        return hmac.new(self.signing, nonce.encode(), hashlib.sha256).hexdigest()


class Walls:
    """The middleware. hosts: names and addresses that are ours, without a port."""

    def __init__(self, app: ASGIApp, *, keys: Keys, hosts: Iterable[str], port: int) -> None:
        self.app, self.keys, self.port = app, keys, port
        self.hosts = frozenset(hosts)
        # Cookies do not know ports: two studios on one machine must not share theirs.
        self.session_name, self.csrf_name = f"variegate_session_{port}", f"variegate_csrf_{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # no route speaks anything else
            return
        headers = Headers(scope=scope)
        cookies = cookie_parser(headers.get("cookie", ""))
        csrf = cookies.get(self.csrf_name, "")
        fresh = not self.keys.is_signed(csrf)
        scope.setdefault("state", {})["csrf"] = csrf = self.keys.signed() if fresh else csrf

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                out = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    if name not in out:
                        out[name] = value
                if fresh and message["status"] < 400:
                    out.append("set-cookie", self._cookie(self.csrf_name, csrf))
            await send(message)

        answer = self._refusal(scope, headers, cookies)
        if answer is None:
            await self.app(scope, receive, guarded)
        else:
            await answer(scope, receive, guarded)

    def session_cookie(self) -> str:
        return self._cookie(self.session_name, self.keys.session)

    def _cookie(self, name: str, value: str) -> str:
        return f"{name}={value}; Path=/; HttpOnly; SameSite=Strict"

    def _refusal(self, scope: Scope, headers: Headers, cookies: dict[str, str]) -> Response | None:
        """The answer to who may not pass, or None."""
        method, path = scope["method"], scope["path"]
        if len(headers.getlist("host")) != 1 or not self._is_ours(headers["host"]):
            return Response(status_code=400)
        site = headers.get("sec-fetch-site", "none")
        arriving = method == "GET" and path == "/" and headers.get("sec-fetch-mode") == "navigate"
        if site not in ("none", "same-origin") and not arriving:
            return PlainTextResponse("another site asked for this", 403)
        if method not in SAFE:
            if headers.get("origin") not in self._origins(headers["host"]):
                return PlainTextResponse("this did not come from a page of the studio", 403)
            given = headers.get(CSRF_HEADER, "")
            paired = hmac.compare_digest(given.encode(), cookies.get(self.csrf_name, "").encode())
            if not (paired and self.keys.is_signed(given)):
                return PlainTextResponse("this page is from an earlier start; reload it", 403)
        if path.startswith(OPEN_FOLDER):
            return None
        if method == "GET" and (token := _token_of(scope)) is not None:
            return self._arrive(scope, token)
        if self.keys.is_session(cookies.get(self.session_name, "")) or path in OPEN_PATHS:
            return None
        if self.keys.password is not None and method == "GET" and path == "/":
            return RedirectResponse("/enter", 303)
        return PlainTextResponse(
            "Open the studio by the address that the terminal shows: it carries this start's key.",
            401,
        )

    def _arrive(self, scope: Scope, token: str) -> Response:
        if not self.keys.opens(token):
            return PlainTextResponse("This key is of an earlier start; take the new address.", 401)
        rest = [(k, v) for k, v in _query(scope) if k != "token"]
        answer = RedirectResponse(_local(scope["path"]) + (f"?{urlencode(rest)}" if rest else ""))
        answer.status_code = 303
        answer.headers.append("set-cookie", self.session_cookie())
        return answer

    def _is_ours(self, host: str) -> bool:
        name, port = _split(host)
        return name in self.hosts and port in ("", str(self.port))

    def _origins(self, host: str) -> tuple[str, ...]:
        """The page's own origin: that under which this very request reached us."""
        return (f"http://{host}",)


def _split(host: str) -> tuple[str, str]:
    """Name and port of a Host header; brackets stay around an IPv6 address."""
    if host.startswith("["):
        name, closed, rest = host.partition("]")
        whole = closed and (not rest or rest.startswith(":"))
        return (f"{name}]", rest.removeprefix(":")) if whole else ("", "")
    name, _, port = host.partition(":")
    return name, port


def _query(scope: Scope) -> list[tuple[str, str]]:
    return parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)


def _token_of(scope: Scope) -> str | None:
    return next((v for k, v in _query(scope) if k == "token"), None)


def _local(path: str) -> str:
    """A path that leads nowhere else: `//evil.example` would."""
    return "/" + path.lstrip("/\\")
