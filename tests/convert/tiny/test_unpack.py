"""A packed model taken over for more training: every number it stores, under its token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training network needs torch")

from safetensors.numpy import load_file, save_file  # noqa: E402

from convert.tiny.network import Network, Shape  # noqa: E402
from convert.tiny.pack import TARGET, bits, tensors  # noqa: E402
from convert.tiny.unpack import take_over  # noqa: E402
from gptoss_mlx.harmony import Encoding  # noqa: E402


def values(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Blocks and scales decoded by a table, as the format defines them."""
    codes = torch.stack((blocks & 15, blocks >> 4), -1).flatten(-2).int()
    sizes = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])[codes & 7] * (1 - 2 * (codes >> 3))
    return torch.ldexp(sizes, scales.int()[..., None] - 127).flatten(-2)


def stored() -> dict[str, np.ndarray]:
    return load_file(TARGET)


def test_what_is_taken_over_packs_to_the_same_numbers() -> None:
    before = stored()
    rows = [int(row) for row in before.pop("rows")]
    network = Network(Shape(len(rows)))
    assert take_over(network, rows, Encoding(), TARGET) == 0
    after = tensors(network)
    assert set(after) == set(before)
    for name in before:
        if not name.endswith(("_blocks", "_scales")):
            np.testing.assert_array_equal(after[name], before[name], name)
        elif name.endswith("_blocks"):  # equal numbers may have another scale
            ours, theirs = (
                values(torch.tensor(x[name]), torch.tensor(x[name[:-6] + "scales"]))
                for x in (after, before)
            )
            assert torch.equal(ours, theirs), name


def test_a_new_number_begins_near_those_that_share_its_digits(tmp_path: Path) -> None:
    encoding, before = Encoding(), stored()
    rows = [int(row) for row in before["rows"]]
    new = encoding.encode("58")[0]
    without = [row for row in rows if row != new]
    network = Network(Shape(len(rows)))
    smaller = dict(before, rows=np.asarray(without, np.uint32))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        smaller[name] = np.delete(before[name], rows.index(new), 0)
    path = tmp_path / "smaller.safetensors"
    save_file(smaller, path)
    assert take_over(network, rows, encoding, path) == 1
    table = torch.nn.functional.normalize(network.embed_tokens.detach(), dim=-1)
    alike = table @ table[rows.index(new)]
    digits = [rows.index(encoding.encode(str(n))[0]) for n in range(100) if n != 58]
    best = {int(encoding.decode([rows[i]])) for i in sorted(digits, key=lambda i: -alike[i])[:8]}
    assert sum(n % 10 == 8 or n // 10 == 5 for n in best) >= 6, best
    np.testing.assert_array_equal(
        bits(network.embed_tokens)[[rows.index(row) for row in without]],
        smaller["model.embed_tokens.weight"],
    )
