"""Who may ask: token, host and origin, and what every answer carries."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from nrd_trt.errors import ConfigError
from tests.serving.rig import Access, Rig, bind, httpx
from tests.serving.waiting import until

TOKEN = "a-long-enough-secret"


@pytest.fixture(scope="module")
def closed() -> Iterator[Rig]:
    """A server that asks for a token."""
    with Rig(token=TOKEN) as rig:
        until(lambda: rig.hub.newest)
        yield rig


@pytest.fixture
def stranger(closed: Rig) -> Iterator[Any]:
    """A client that knows no token."""
    with httpx.Client(base_url=closed.url, trust_env=False) as http:
        yield http


def kind(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["type"]


def test_without_the_token_nothing_of_the_run_is_seen_or_done(closed: Rig, stranger: Any) -> None:
    for path in ("/status", "/frame", "/stream.mjpg", "/snapshot.png", "/metrics", "/openapi.json"):
        assert kind(stranger.get(path)) == (401, "Unauthorised"), path
    for path in ("/control", "/segment"):
        assert kind(stranger.post(path, content=b'{"action": "pause"}')) == (401, "Unauthorised"), path
    assert not closed.pause.paused
    for path in ("/healthz", "/assets/main.js", "/docs"):  # they hold nothing of the run
        assert stranger.get(path).status_code == 200, path


def test_another_token_or_a_made_up_cookie_is_refused(closed: Rig, stranger: Any) -> None:
    name = closed.service.access.cookie_name
    bearers = ("Bearer wrong", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer", "Basic x")
    made_up = [("Authorization", value) for value in bearers]
    made_up += [("Cookie", f"{name}={value}") for value in ("x", TOKEN)]
    for header in made_up:
        assert kind(stranger.get("/status", headers=dict([header]))) == (401, "Unauthorised"), header
    response = stranger.get("/", params={"token": "wrong-token"})
    assert response.status_code == 401
    assert "set-cookie" not in response.headers
    assert 'id="login"' in response.text  # the page that asks for one


def test_the_token_opens_as_header_in_the_address_for_players_and_as_a_cookie(closed: Rig, stranger: Any) -> None:
    assert closed.http.get("/status").status_code == 200
    response = stranger.get("/snapshot.png", params={"token": TOKEN})
    assert response.status_code == 200
    assert "set-cookie" not in response.headers
    response = stranger.get("/", params={"token": TOKEN})
    assert (response.status_code, response.headers["location"]) == (303, "/")
    name, _, cookie = response.headers["set-cookie"].partition("=")
    assert name == f"nrd_trt_{closed.service.access.port}"
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert TOKEN not in cookie  # other servers of this machine are sent it too
    for path in ("/status", "/"):
        assert stranger.get(path).status_code == 200  # the client keeps cookies


def test_the_server_is_reached_by_its_own_names_only(rig: Rig) -> None:
    """A page of another site that lets its own name point here is of the same origin as far as browsers know."""
    for host in ("evil.example", "127.0.0.1.evil.example", "192.168.0.9", "", "[::1", "localhost.evil"):
        assert kind(rig.http.get("/status", headers={"Host": host})) == (403, "UnknownHost"), host
    for host in ("localhost", "localhost:9000", "127.0.0.1:1", "[::1]:80", "LOCALHOST"):  # another port: a tunnel's
        assert rig.http.get("/healthz", headers={"Host": host}).status_code == 200, host


def test_pages_of_other_sites_may_neither_act_nor_look(rig: Rig) -> None:
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", "https://localhost"):
        for path in ("/control", "/segment"):
            response = rig.http.post(path, content=b'{"action": "pause"}', headers={"Origin": origin})
            assert kind(response) == (403, "ForeignOrigin"), origin
    assert not rig.pause.paused
    for site in ("cross-site", "same-site"):
        headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
        for path in ("/stream.mjpg", "/frame", "/status"):
            assert kind(rig.http.get(path, headers=headers)) == (403, "ForeignOrigin"), site


def test_a_link_to_the_page_may_be_followed_and_own_pages_may_act(rig: Rig) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert rig.http.get("/", headers=headers).status_code == 200
    framed = {**headers, "Sec-Fetch-Dest": "iframe"}
    assert rig.http.get("/", headers=framed).status_code == 403
    headers = {"Origin": rig.url, "Sec-Fetch-Site": "same-origin"}
    assert rig.http.post("/control", json={"action": "resume"}, headers=headers).status_code == 200


def test_whoever_shows_the_token_may_embed_the_stream(closed: Rig, stranger: Any) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
    response = stranger.get("/snapshot.png", params={"token": TOKEN}, headers=headers)
    assert response.status_code == 200
    assert response.headers["cross-origin-resource-policy"] == "cross-origin"
    assert closed.http.get("/", headers={}).headers["x-frame-options"] == "DENY"


def test_every_answer_carries_the_headers(rig: Rig, stranger: Any) -> None:
    paths = ("/", "/docs", "/status", "/nothing", "/assets/main.js", "/frame", "/metrics")
    refused = [stranger.get("/status"), rig.http.get("/", headers={"Host": "evil.example"})]
    for response in [*map(rig.http.get, paths), *refused]:
        headers = response.headers
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in headers


def test_a_server_for_others_needs_a_token_and_one_for_this_machine_needs_none() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "jetson.local"):
        with pytest.raises(ConfigError, match=r"host=.*: expected a token"):
            Access(host=host, port=8000)
        assert Access(host=host, port=8000, token="0123456789abcdef").token
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        assert Access(host=host, port=8000).token is None
    for token in ("", "short", "with spaces in it", "ümlauts-are-not", "line\nbreak-here"):
        with pytest.raises(ConfigError, match="token=: expected at least 8 printable"):
            Access(host=host, port=8000, token=token)


def test_a_server_knows_addresses_its_name_and_what_it_is_told_and_no_other_machine() -> None:
    """An address cannot be pointed elsewhere; any other name can."""
    access = Access(host="0.0.0.0", port=8000, token="0123456789abcdef", allow_host=("Cam.example",))
    for known in ("192.168.1.5", "::1", "localhost", socket.gethostname(), "cam.example", "127.0.0.1"):
        assert access.knows_host(known), known
    assert not access.knows_host("evil.example")
    assert access.url == f"http://{socket.gethostname()}:8000/"
    assert Access(host="::1", port=1).url == "http://[::1]:1/"
    with pytest.raises(ConfigError, match=r"host='no.such.invalid': expected an address of this machine"):
        bind("no.such.invalid", 0)
