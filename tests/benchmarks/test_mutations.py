"""The changes that tests must catch: each is one, and leaves a module that can be imported."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from benchmarks.mutations import mutations
from tests.root import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("name", ["engine/loop.py", "spec/config.py", "files/pool.py"])
def test_every_change_is_python_and_changes_something(name: str) -> None:
    path = ROOT / "gptoss_mlx" / name
    data, found = path.read_bytes(), [*mutations(path)]
    for one in found:
        changed = data[: one.start] + one.after.encode() + data[one.end :]
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(data))
    assert len(found) > 10


def test_annotations_asserts_and_errors_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("def f(a: 'int | 1') -> 2:\n    assert a == 3\n    raise E(a + 4)\n")
    assert [*mutations(path)] == []
    path.write_text("x = a < b and 5\n")
    assert sorted(one.after.strip() for one in mutations(path)) == ["6", "<=", "or"]
