"""The schema benchmark on a suite of one file: what it counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.serve import schemas

GROUPS = [
    {"schema": {"type": "string", "maxLength": 3}},
    {"schema": {"enum": [1, "two", None]}},
    {"schema": {"not": {}}},
    {"schema": True},
]


def test_it_counts_what_is_written_and_what_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / schemas.DRAFT
    folder.mkdir(parents=True)
    (folder / "some.json").write_text(json.dumps(GROUPS))
    monkeypatch.setattr(schemas, "token_times", lambda tokens: {"free": 2.0, "schema": 2.0})
    result = CliRunner().invoke(schemas.main, [str(tmp_path), "--texts", "12"])
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["finished"] == found["valid"] == 12
    assert found["invalid"] == []
    assert found["groups_refused"] == {"some": 1}
    assert found["masks"] >= 12


def test_an_invalid_text_is_one() -> None:
    tally = schemas.Tally()
    schemas._judge(tally, "some", {"type": "string"}, "5", cut=False, ended=True)
    schemas._judge(tally, "some", {"type": "string"}, '"a', cut=True, ended=False)
    assert (tally.finished, tally.valid, tally.cut, tally.given_up) == (1, 0, 1, 1)
    assert tally.invalid == ['some: {"type": "string"} -> 5']
