"""The router's choice: the largest logits, of equal ones the first, and their softmax."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_mlx.backends.cpu import library
from tests.support.native import device_of, variants

pytestmark = pytest.mark.parametrize("variant", variants())

LOGITS = st.one_of(
    st.floats(-50, 50, width=32), st.sampled_from([0.0, -0.0, 1.0, float("nan"), -float("inf")])
)


@given(st.data())
def test_the_largest_of_any_logits(variant: str, data: st.DataObject) -> None:
    experts = data.draw(st.integers(1, 40))
    k = data.draw(st.integers(1, min(experts, 8)))
    rows = data.draw(
        st.lists(st.lists(LOGITS, min_size=experts, max_size=experts), min_size=1, max_size=5)
    )
    logits = np.array(rows, np.float32)
    ids, weights = np.zeros((len(rows), k), np.int32), np.zeros((len(rows), k), np.float32)
    address = library.address
    call = library.RouterCall(
        len(rows), experts, k, address(logits), address(ids), address(weights)
    )
    device = device_of(variant)
    device.router_topk(device.handle, ctypes.byref(call))
    for row, chosen, shares in zip(logits, ids, weights, strict=True):
        # NaN is the smallest of all; a stable sort keeps the first of equal ones.
        order = sorted(
            range(experts), key=lambda e: (np.isnan(row[e]), 0 if np.isnan(row[e]) else -row[e])
        )
        assert chosen.tolist() == order[:k]
        if np.isfinite(row[chosen]).all():
            exact = np.exp(row[chosen].astype(np.float64) - row[chosen[0]])
            # A difference of float32 logits is off by up to 4e-6.
            np.testing.assert_allclose(shares, exact / exact.sum(), rtol=1e-5, atol=1e-30)
