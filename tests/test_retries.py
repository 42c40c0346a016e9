"""Pauses that servers ask for, and retries without a network."""

import email.utils
import re
import socket
import time

import pytest
import requests
from huggingface_hub import HfApi, close_session

from medcap import retries
from medcap.data.download import download_zenodo
from medcap.retries import MAX_ATTEMPTS, OFFLINE_ATTEMPTS


def response_error(**headers):
    response = requests.Response()
    response.status_code = 429
    response.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
    return requests.HTTPError("too many requests", response=response)


PAUSES = {
    "seconds": ({"Retry_After": "7"}, 7),
    "fraction": ({"Retry_After": "1.5"}, 1.5),
    "blanks": ({"Retry_After": " 2 "}, 2),
    "date": ({"Retry_After": "in 100 s"}, 99),
    "past date": ({"Retry_After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
    "year 1": ({"Retry_After": "Mon, 01 Jan 0001 00:00:00 GMT"}, 0),
    "huge": ({"Retry_After": "9" * 400}, float("inf")),
    "rate limit": ({"RateLimit": '"api";r=0;t=55'}, 55),
    "rate limit in lower case": ({"ratelimit": '"api"; r=0; t=55'}, 55),
    "two rate limits": ({"RateLimit": '"api";r=0;t=5, "pages";r=0;t=300'}, 300),
    "both": ({"Retry_After": "3", "RateLimit": '"api";r=0;t=55'}, 3),
    "rate limit not reached": ({"RateLimit": '"api";r=10;t=55'}, None),
    "word": ({"Retry_After": "soon"}, None),
    "negative": ({"Retry_After": "-1"}, None),
    "other digits": ({"Retry_After": "²"}, None),
    "not a number": ({"Retry_After": "nan"}, None),
    "none": ({}, None),
}


@pytest.mark.parametrize(("headers", "seconds"), PAUSES.values(), ids=PAUSES)
def test_server_determines_the_pause(headers, seconds):
    if headers.get("Retry_After") == "in 100 s":
        headers = {"Retry_After": email.utils.formatdate(time.time() + 100, usegmt=True)}
    found = retries.retry_after(response_error(**headers))
    assert found == (seconds if seconds is None else pytest.approx(seconds, abs=2))


@pytest.fixture
def waits(monkeypatch):
    """The seconds passed to time.sleep, which returns at once."""
    seconds = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


def failing(error, received=0):
    """Return a step that always fails after it received bytes in its first attempt, and the count of its bytes."""
    calls = []

    def step():
        calls.append(1)
        raise error

    return step, lambda: received if calls else 0


def test_each_retry_is_a_line_with_the_pause(waits, caplog):
    step, progress = failing(response_error(Retry_After="2.5"))
    with pytest.raises(requests.HTTPError):
        retries.retry(step, lambda error: True, progress, max_attempts=3)
    assert waits == [2.5, 2.5]
    assert caplog.messages == [f"too many requests; attempt {number} of 3 follows in 3 s" for number in (2, 3)]


@pytest.mark.parametrize("seconds", ["601", "1e9", "9" * 400])
def test_longer_pause_is_an_error(seconds, waits):
    step, progress = failing(response_error(Retry_After=seconds))
    with pytest.raises(requests.HTTPError):
        retries.retry(step, lambda error: True, progress, max_attempts=1 if seconds == "1e9" else 8)
    assert waits == []


def unresolved(*args, **options):
    raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


REQUESTS = {
    "requests": lambda: requests.get("http://hub.invalid/x"),
    "huggingface_hub": lambda: HfApi(endpoint="http://hub.invalid").model_info("someone/base"),
}


@pytest.mark.parametrize("number", [socket.EAI_NONAME, socket.EAI_AGAIN, 101], ids=["name", "server", "route"])
@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_few_attempts_without_a_network(request_, number, waits, monkeypatch):
    def refuse(*args, **options):
        raise OSError(number, "Network is unreachable") if number == 101 else socket.gaierror(number, "not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    close_session()  # no open connection
    with pytest.raises(Exception, match=r"hub\.invalid|not known|unreachable") as raised:
        retries.retry(request_, lambda error: True)
    assert retries.is_offline(raised.value)
    assert len(waits) == OFFLINE_ATTEMPTS - 1


def test_network_that_is_lost_during_a_download_is_waited_for(waits):
    step, progress = failing(socket.gaierror(socket.EAI_AGAIN, "not known"), received=5)
    with pytest.raises(socket.gaierror):
        retries.retry(step, lambda error: True, progress)
    assert len(waits) == MAX_ATTEMPTS - 1


def test_other_errors_are_not_offline():
    assert not retries.is_offline(ConnectionRefusedError(111, "refused"))
    error = KeyError("x")
    error.__cause__ = error  # a cycle
    assert not retries.is_offline(error)


def test_download_without_a_network_is_one_line_after_few_attempts(waits, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("MEDCAP_ZENODO_URL", "https://zenodo.invalid")
    monkeypatch.setattr(socket, "getaddrinfo", unresolved)
    message = r"^https://zenodo.invalid/api/records/\d+: this machine has no network connection, or the name"
    with pytest.raises(ValueError, match=message):
        download_zenodo(tmp_path)
    assert len(waits) == OFFLINE_ATTEMPTS - 1
    assert len(caplog.messages) == OFFLINE_ATTEMPTS - 1
    assert re.fullmatch(rf"{message}.* attempt 2 of 3 follows in \d s", caplog.messages[0])
