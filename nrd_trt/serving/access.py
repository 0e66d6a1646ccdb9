"""Who may ask for what: token, Host and Origin, and the headers that every answer carries.

Names of hosts are checked because a page of another site may let its own name point here (DNS rebinding), and the
origin because browsers send cookies, and reach 127.0.0.1, on behalf of any page.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import socket
from collections import Counter
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nrd_trt.errors import ConfigError
from nrd_trt.serving.limits import Places
from nrd_trt.serving.problems import Refusal

_TOKEN_LENGTH, _REACHABLE_TOKEN_LENGTH = 8, 16
_WRONG_S, _GUESSING = 1.0, 4
"""Seconds that the answer to a wrong token takes, and from how many such waiting answers on its address is guessing.

Each answer to an address that guesses takes that long, whatever token it shows: one that came at once would tell the
right token from wrong ones. Who shares the address with a guesser is slowed down, not shut out.
"""
_HEALTH = "/healthz"
_OPEN_PATHS = {"/", "/docs", _HEALTH}
"""They hold nothing of the run: the page asks for a token itself."""
_ASSETS = "/assets/"
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src blob:; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True, kw_only=True)
class Access:
    """The rules of one server.

    Attributes:
        host: Address that the server is bound to.
        port: Port that the server is bound to.
        token: Text that whoever asks must know, or None where only this machine can reach the server.
        allow_host: Further names under which browsers may reach the server.

    Raises:
        ConfigError: Others can reach the server and there is no token, or the token can be guessed or not be sent.
    """

    host: str
    port: int
    token: str | None = None
    allow_host: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.token is None and not is_loopback(self.host):
            raise ConfigError(
                f"host={self.host!r}: expected a token where other machines can reach the server, got none; give "
                "token='auto', or stay on 127.0.0.1."
            )
        least = _TOKEN_LENGTH if is_loopback(self.host) else _REACHABLE_TOKEN_LENGTH
        plain = self.token is None or (self.token.isascii() and self.token.isprintable() and " " not in self.token)
        if self.token is not None and (len(self.token) < least or not plain):
            raise ConfigError(
                f"token=: expected at least {least} printable ASCII characters without spaces for host={self.host!r}, "
                f"got {len(self.token)}; token='auto' makes one."
            )

    @property
    def url(self) -> str:
        """Address of the page."""
        address = _address(self.host)
        name = socket.gethostname() if address is not None and address.is_unspecified else self.host
        return f"http://{f'[{name}]' if ':' in name else name}:{self.port}/"

    @property
    def cookie_name(self) -> str:
        """Cookies do not know ports, so that two servers of a machine need two names."""
        return f"nrd_trt_{self.port}"

    @property
    def cookie(self) -> str:
        """What the cookie holds; not the token, as other servers of this machine are sent it too."""
        return hmac.new((self.token or "").encode(), b"nrd_trt cookie", hashlib.sha256).hexdigest()

    def token_of(self, request: Request) -> str:
        """Return what a request gives as token, or an empty text; no browser adds it by itself."""
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        return bearer.strip() if scheme.lower() == "bearer" else request.query_params.get("token", "")

    def shows_token(self, request: Request) -> bool:
        """Whether a request carries the token itself."""
        return self.token is not None and _same(self.token_of(request), self.token)

    def admits(self, request: Request) -> bool:
        """Whether a request carries the token or the cookie, or none is needed."""
        if self.token is None or self.shows_token(request):
            return True
        return _same(request.cookies.get(self.cookie_name, ""), self.cookie)

    def knows_host(self, name: str) -> bool:
        """Whether a request may have come by this host name; an address cannot be pointed elsewhere."""
        name = name.lower().rstrip(".")
        if name == "localhost" or name in {host.lower() for host in (self.host, *self.allow_host)}:
            return True
        if is_loopback(self.host):
            return is_loopback(name)
        machine = socket.gethostname().lower()
        return name in (machine, f"{machine}.local") or _address(name) is not None


class Guard:
    """The outermost layer of the application: refuses what the rules refuse, and adds the headers.

    Args:
        app: The application behind it.
        access: The rules.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access
        self._places = Places()
        self._wrong: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; the server is set up to pass on no other kind of connection."""
        request = Request(scope)
        client = request.client.host if request.client else ""
        if scope["path"] == _HEALTH:  # has a place of its own and reads no token: a full server is known to be alive
            answer: ASGIApp = refusal.response() if (refusal := self._refusal(request, False)) else self._app
            return await answer(scope, receive, _with_headers(send, embeddable=False))
        with self._places.taken(client) as full:
            if full is not None:
                return await full.response()(scope, receive, _with_headers(send, embeddable=False))
            await self._answer(request, receive, send, client)

    async def _answer(self, request: Request, receive: Receive, send: Send, client: str) -> None:
        shows_token = self._access.shows_token(request)
        refusal = self._refusal(request, shows_token)
        if self._access.token is not None and self._guesses(request):
            await self._slow_down(client, wrong=not self._access.admits(request))
        answer = refusal.response() if refusal else self._login(request, shows_token) or self._app
        await answer(request.scope, receive, _with_headers(send, embeddable=shows_token))

    def _guesses(self, request: Request) -> bool:
        """Whether the answer would tell if a token, or the cookie that is made of it, is the right one."""
        cookie = self._access.cookie_name in request.cookies and not _is_open(request.scope["path"])
        return cookie or bool(self._access.token_of(request))

    async def _slow_down(self, client: str, *, wrong: bool) -> None:
        """Let a wrong token, and every token of an address that guesses, cost time."""
        if not wrong and self._wrong[client] < _GUESSING:
            return
        self._wrong[client] += wrong
        try:
            await asyncio.sleep(_WRONG_S)
        finally:
            self._wrong[client] -= wrong
            if not self._wrong[client]:
                del self._wrong[client]

    def _refusal(self, request: Request, shows_token: bool) -> Refusal | None:
        name = _host_name(request.headers.get("host", ""))
        if not self._access.knows_host(name):
            message = f"host {name!r}: expected a name of the server; add it to allow_host."
            return Refusal(403, "UnknownHost", message)
        if _is_foreign(request) and not shows_token:
            return Refusal(403, "ForeignOrigin", "origin: expected a page of this server, got another site's; open it.")
        path = request.scope["path"]  # that of request.url comes from the Host header, too
        if _is_open(path) or self._access.admits(request):
            return None
        message = "token: expected that of the server as bearer or cookie, got none or another; open /?token=…."
        return Refusal(401, "Unauthorised", message, {"WWW-Authenticate": "Bearer"})

    def _login(self, request: Request, shows_token: bool) -> Response | None:
        """Answer ``/?token=…`` with the cookie and the page's address without the token."""
        if request.scope["path"] != "/" or "token" not in request.query_params or not shows_token:
            return None
        answer = RedirectResponse("/", status_code=303)
        secure = request.scope["scheme"] == "https"
        answer.set_cookie(
            self._access.cookie_name, self._access.cookie, httponly=True, samesite="strict", secure=secure
        )
        return answer


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _is_open(path: str) -> bool:
    return path in _OPEN_PATHS or path.startswith(_ASSETS)


def _host_name(host: str) -> str:
    """Return the name of a Host header without its port; empty where it is malformed."""
    if set(host) & set("/\\?#@ "):
        return ""  # urlsplit would read the part before as the name
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_foreign(request: Request) -> bool:
    """Whether another site's page asks; following a link to the page itself is welcome."""
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2].lower() != request.headers.get("host", "").lower():
        return True
    site = request.headers.get("sec-fetch-site", "none")
    mode, target = request.headers.get("sec-fetch-mode"), request.headers.get("sec-fetch-dest")
    opens_page = request.method == "GET" and (mode, target) == ("navigate", "document")
    return site not in ("none", "same-origin") and not opens_page


def _with_headers(send: Send, *, embeddable: bool) -> Send:
    async def sender(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.update(_HEADERS)
            headers["Cross-Origin-Resource-Policy"] = "cross-origin" if embeddable else "same-origin"
        await send(message)

    return sender


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), expected.encode())
