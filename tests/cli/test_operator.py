"""Who runs the service: keys and what they may do, limits of tenants, and who did what."""

import json
import re

import httpx
import pytest

from cli.client import _check
from cli.failure import CommandFailed
from jobs.keys import new_key
from tests.cli.conftest import Luthier


def test_a_key_is_made_for_what_it_is_for_and_shown_once(luthier: Luthier) -> None:
    said = luthier.run("key", "create", "--scope", "read", "--scope", "admin", "--name", "auditor")
    (key,) = re.findall(r"lk_\S{49}", said)
    (key_id,) = re.findall(r"key_[0-9a-f]{24}", said)
    assert "(read, admin)" in said

    listed = luthier.run("key", "list")
    assert key_id in listed
    assert key[:8] in listed
    assert key not in listed

    luthier.run("key", "revoke", key_id)
    deeds = json.loads(luthier.run("audit", "--json"))
    assert [(deed["actor"], deed["action"]) for deed in deeds] == [
        ("operator", "key.revoke"),
        ("operator", "key.create"),
        ("operator", "tenant.create"),
    ]
    assert [d["action"] for d in json.loads(luthier.run("audit", "--id", key_id, "--json"))] == [
        "key.revoke",
        "key.create",
    ]


def test_limits_are_shown_and_changed(luthier: Luthier) -> None:
    luthier.run("key", "create", "--tenant", "team")
    luthier.run("quota", "set", "--tenant", "team", "max_running_jobs=2", "reads_per_minute=0")
    found = json.loads(luthier.run("quota", "show", "--tenant", "team", "--json"))
    assert found["own"] == ["max_running_jobs", "reads_per_minute"]
    assert found["limits"]["max_running_jobs"] == 2
    assert found["used"]["max_queued_jobs"] == 0
    luthier.run("quota", "set", "--tenant", "team", "max_running_jobs=default")
    assert "this tenant" in luthier.run("quota", "show", "--tenant", "team")


def test_a_limit_that_is_none_says_what_there_is(luthier: Luthier) -> None:
    luthier.run("key", "create")
    assert "max_stored_bytes" in luthier.run("quota", "set", "max_fun=1", code=1)
    assert "must be a number" in luthier.run("quota", "set", "max_stored_bytes=-1", code=1)
    assert "No tenant" in luthier.run("quota", "show", "--tenant", "nobody", code=1)


def test_a_key_that_was_cut_is_told_so_where_it_was_typed() -> None:
    for key, told in ((new_key()[:-2], True), (new_key(), False)):
        request = httpx.Request("GET", "http://x/jobs", headers={"authorization": f"Bearer {key}"})
        error = {"error": {"message": "A valid API key is needed."}}
        with pytest.raises(CommandFailed) as failed:
            _check(httpx.Response(401, json=error, request=request))
        assert ("cut or mistyped" in str(failed.value)) == told
        assert key not in str(failed.value)
