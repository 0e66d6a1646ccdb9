"""What a stranger may take: silent connections, halves of headers, requests at a time, guesses of the token."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from nrd_trt.errors import ConfigError
from nrd_trt.serving import access, limits
from nrd_trt.serving.limits import Places
from tests.serving.rig import Access, Rig, httpx
from tests.serving.waiting import until

TOKEN = "a-long-enough-secret"


@pytest.fixture(scope="module")
def closed() -> Iterator[Rig]:
    with Rig(token=TOKEN) as rig:
        until(lambda: rig.hub.newest)
        yield rig


@contextmanager
def silent(rig: Rig, count: int, said: bytes = b"") -> Iterator[list[socket.socket]]:
    """Connections that say no more than the beginning of a header."""
    with ExitStack() as stack:
        sockets = []
        for _ in range(count):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", rig.service.access.port)))
            one.sendall(said)
            sockets.append(one)
        yield sockets


def is_closed(connection: socket.socket) -> bool:
    connection.settimeout(0.01)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


@pytest.mark.parametrize("said", [b"", b"GET /status HTTP/1.1\r\nHost: local"], ids=["silent", "half a header"])
def test_more_silent_connections_than_places_keep_nobody_out(rig: Rig, said: bytes) -> None:
    with silent(rig, 150, said):
        for path in ("/healthz", "/status"):
            assert rig.http.get(path).status_code == 200


def test_a_connection_without_a_whole_header_is_closed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEADER_S", 0.3)
    whole = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with (
        silent(rig, 1) as (quiet,),
        silent(rig, 1, whole[:20]) as (half,),
        silent(rig, 1, whole + whole[:20]) as (next_,),
    ):
        assert next_.recv(1 << 16).startswith(b"HTTP/1.1 200")
        for connection in (quiet, half, next_):
            until(lambda connection=connection: is_closed(connection))


def test_the_oldest_silent_connection_goes_for_the_newest(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SILENT", 8)
    with silent(rig, 8) as old, silent(rig, 2) as new:
        until(lambda: all(map(is_closed, old[:2])))
        assert not any(map(is_closed, [*old[3:], *new]))  # the rig's own client may have a connection


def test_an_endless_stream_is_not_waited_for(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEADER_S", 0.2)
    start = time.monotonic()
    with rig.http.stream("GET", "/stream.mjpg") as response:
        pieces = response.iter_raw()
        while time.monotonic() - start < 0.8:
            assert next(pieces, b""), "the stream ended"


def test_places_are_for_all_and_for_each_client() -> None:
    places = Places(most=3, client=2)
    with ExitStack() as stack:
        assert [stack.enter_context(places.taken(name)) for name in ("a", "a")] == [None, None]
        refusal = stack.enter_context(places.taken("a"))
        assert refusal is not None and (refusal.status, refusal.kind) == (503, "Busy")
        assert stack.enter_context(places.taken("b")) is None
        full = stack.enter_context(places.taken("c"))
        assert full is not None and "of the server" in str(full)
    with places.taken("a") as refusal:
        assert refusal is None


def test_a_full_server_still_tells_its_health(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Places, "_refusal", lambda *_: access.Refusal(503, "Busy", "full"))
    assert rig.http.get("/status").json()["error"]["type"] == "Busy"
    assert rig.http.get("/healthz").status_code == 200


def test_every_token_of_an_address_that_guesses_costs_time_and_the_right_one_is_let_in(
    closed: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer at once to the right token would tell it from the wrong ones."""
    monkeypatch.setattr(access, "_WRONG_S", 0.5)

    def slow(client: Any) -> tuple[int, bool]:
        start = time.monotonic()
        return client.get("/status").status_code, time.monotonic() - start >= 0.5

    def client(**shown: Any) -> Any:
        return stack.enter_context(httpx.Client(base_url=closed.url, trust_env=False, **shown))

    enough = threading.Event()

    def guess(stranger: Any) -> set[tuple[int, bool]]:
        answers = set()
        while not enough.is_set():
            answers.add(slow(stranger))
        return answers

    with ExitStack() as stack:
        bearer = client(headers={"Authorization": f"Bearer {TOKEN}"})
        cookie = client(cookies={closed.service.access.cookie_name: closed.service.access.cookie})
        strangers = [client(headers={"Authorization": f"Bearer {number:020}"}) for number in range(4)]
        strangers += [client(cookies={closed.service.access.cookie_name: f"{number:064}"}) for number in range(4)]
        with ThreadPoolExecutor(len(strangers)) as pool:
            guesses = [pool.submit(guess, stranger) for stranger in strangers]
            try:
                for friend in (bearer, cookie):
                    until(lambda friend=friend: slow(friend) == (200, True))  # type: ignore[misc]
                assert strangers[0].get("/healthz").status_code == 200
            finally:
                enough.set()
        assert set().union(*(one.result() for one in guesses)) == {(401, True)}
        until(lambda: slow(bearer) == slow(cookie) == (200, False))


def test_a_token_that_others_can_reach_is_longer() -> None:
    Access(host="127.0.0.1", port=1, token="x" * 8)
    Access(host="0.0.0.0", port=1, token="x" * 16)
    with pytest.raises(ConfigError, match="expected at least 16"):
        Access(host="0.0.0.0", port=1, token="x" * 15)


@pytest.mark.parametrize("host", ["127.0.0.1/assets/?", "127.0.0.1?x", "localhost#", "evil@localhost", "localhost/"])
def test_a_host_that_is_more_than_a_name_is_refused(rig: Rig, host: str) -> None:
    response = rig.http.get("/healthz", headers={"Host": host})
    assert (response.status_code, response.json()["error"]["type"]) in ((403, "UnknownHost"), (400, "UnknownHost"))


def test_the_path_is_not_read_off_the_host(closed: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Starlette before 1.0.1 did."""
    monkeypatch.setattr(access.Request, "url", type("Url", (), {"path": "/assets/", "scheme": "http"})())
    with httpx.Client(base_url=closed.url, trust_env=False) as http:
        assert http.get("/status").status_code == 401


@pytest.mark.parametrize("path", ["/snapshot.png?classes=" + "0" * 5000, "/snapshot.png?classes=256", "/nothing"])
def test_numbers_of_any_length_are_refused_with_all_headers(rig: Rig, path: str) -> None:
    response = rig.http.get(path)
    assert response.status_code in (404, 422)
    assert response.headers["x-frame-options"] == "DENY"


def test_an_internal_error_carries_the_headers_too(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(type(rig.hub), "state", property(fail))
    response = rig.http.get("/healthz")
    assert response.status_code == 500
    assert response.headers["x-frame-options"] == "DENY"
