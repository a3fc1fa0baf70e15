"""The API key, and who may call from a page."""

from __future__ import annotations

import pytest

KEY = "correct-horse"


@pytest.mark.parametrize(
    "headers",
    [{"Authorization": f"Bearer {KEY}"}, {"authorization": f"bearer {KEY}"}, {"X-API-Key": KEY}],
)
def test_the_key_lets_in(serve, headers):
    client = serve(api_key=KEY)
    assert client.get("/v1/models", headers=headers).status_code == 200
    assert client.get("/metrics", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Bearer {KEY}x"},
        {"Authorization": f"Bearer {KEY[:-1]}"},
        {"X-API-Key": ""},
        {"X-API-Key": "ключ".encode()},
    ],
)
def test_anything_else_does_not(serve, refused, headers):
    client = serve(api_key=KEY)
    for ask in (client.get, client.post):
        for path in ("/v1/models", "/v1/segment", "/v1/images", "/metrics"):
            answer = ask(path, headers=headers)
            if answer.status_code != 405:
                assert KEY not in refused(answer, 401, "API key")
                assert answer.headers["www-authenticate"] == "Bearer"
    assert client.post("/v1/segment", headers=headers).status_code == 401
    assert client.get("/v1/health", headers=headers).status_code == 200


def test_the_document_tells_of_the_key(serve):
    with_key, without = (serve(api_key=key).get("/openapi.json").json() for key in (KEY, None))
    assert len(with_key["paths"]["/v1/segment"]["post"]["security"]) == 2
    assert "401" in with_key["paths"]["/v1/images"]["post"]["responses"]
    assert "security" not in with_key["paths"]["/v1/health"]["get"]
    assert "security" not in without["paths"]["/v1/segment"]["post"]


def test_pages_of_others_may_not_call(serve):
    origin = {"Origin": "https://example.org"}
    asked = {**origin, "Access-Control-Request-Method": "POST"}
    closed, open_ = serve(), serve(cors=("https://example.org",))
    assert "access-control-allow-origin" not in closed.get("/v1/health", headers=origin).headers
    assert closed.options("/v1/segment", headers=asked).status_code == 405
    assert open_.get("/v1/health", headers=origin).headers["access-control-allow-origin"] == origin["Origin"]
    assert open_.options("/v1/segment", headers=asked).status_code == 200
    other = open_.get("/v1/health", headers={"Origin": "https://example.com"})
    assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "LOCALHOST:80", "[::1]:8000", "[::1]"])
def test_known_hosts_are_answered(serve, host):
    client = serve(hosts=frozenset({"127.0.0.1", "localhost", "[::1]"}))
    assert client.get("/v1/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example:80", ""])
def test_other_names_of_this_machine_are_not(serve, refused, host):
    """A page elsewhere whose name was rebound to this machine."""
    client = serve(hosts=frozenset({"127.0.0.1", "localhost"}))
    refused(client.get("/v1/health", headers={"Host": host}), 400, "asked as 127.0.0.1, localhost only")
