"""Sampling options: every limit, and the one line that names it."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, fields
from typing import Any

import numpy as np
import pytest

from gptoss_mlx.errors import GptOssError, SamplingError
from gptoss_mlx.spec.sampling import MAX_SEED, MAX_TOP_LOGPROBS, Sampling

TINY = math.ulp(0.0)

# option: (lowest allowed, highest allowed, too low, too high, the limits as the message has them)
LIMITS: dict[str, tuple[float, float, float, float, str]] = {
    "temperature": (0, 100, -TINY, 100.1, "from 0 to 100"),
    "top_p": (TINY, 1, 0, 1.0001, "above 0 and at most 1"),
    "top_k": (0, 2**31 - 1, -1, 2**31, "from 0 to 2147483647"),
    "min_p": (0, 1, -0.001, 1.001, "from 0 to 1"),
    "repetition_penalty": (TINY, 100, 0, 100.5, "above 0 and at most 100"),
    "presence_penalty": (-2, 2, -2.01, 2.01, "from -2 to 2"),
    "frequency_penalty": (-2, 2, -2.01, 2.01, "from -2 to 2"),
    "seed": (0, MAX_SEED, -1, MAX_SEED + 1, "from 0 to 9223372036854775807"),
    "top_logprobs": (0, MAX_TOP_LOGPROBS, -1, MAX_TOP_LOGPROBS + 1, "from 0 to 20"),
}
WHOLE = ("top_k", "seed", "top_logprobs")


def make(**options: Any) -> Sampling:
    return Sampling(**options)


def test_defaults_leave_the_distribution_as_it_is() -> None:
    options = Sampling()
    assert options.temperature == options.top_p == options.repetition_penalty == 1
    assert options.top_k == options.min_p == options.top_logprobs == 0
    assert options.presence_penalty == options.frequency_penalty == 0
    assert not options.logit_bias
    assert options.seed is None
    assert options.logprobs is False


def test_every_option_is_tested_here() -> None:
    assert {f.name for f in fields(Sampling)} == {*LIMITS, "logit_bias", "logprobs"}


@pytest.mark.parametrize("name", LIMITS)
def test_limits_themselves_are_allowed(name: str) -> None:
    low, high, *_ = LIMITS[name]
    assert getattr(make(**{name: low}), name) == low
    assert getattr(make(**{name: high}), name) == high


@pytest.mark.parametrize("end", [2, 3])
@pytest.mark.parametrize("name", LIMITS)
def test_beyond_a_limit_one_line_names_option_value_and_limit(name: str, end: int) -> None:
    value, limit = LIMITS[name][end], LIMITS[name][4]
    with pytest.raises(SamplingError) as raised:
        make(**{name: value})
    assert str(raised.value) == f"{name} is {value}, but must be {limit}"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", LIMITS)
def test_nan_and_infinity_are_refused(name: str, value: float) -> None:
    with pytest.raises(SamplingError, match=rf"^{name} is {value}, but must be .+$"):
        make(**{name: value})


@pytest.mark.parametrize("value", ["0.5", None, [1], True, 1j])
@pytest.mark.parametrize("name", LIMITS)
def test_what_is_no_number_is_refused(name: str, value: Any) -> None:
    if name == "seed" and value is None:
        return
    kind = "whole number" if name in WHOLE else "number"
    with pytest.raises(SamplingError) as raised:
        make(**{name: value})
    assert str(raised.value) == f"{name} is {value!r}, but must be a {kind}"


@pytest.mark.parametrize("name", WHOLE)
def test_counts_and_seed_are_whole(name: str) -> None:
    with pytest.raises(SamplingError, match=f"^{name} is 2.5, but must be a whole number$"):
        make(**{name: 2.5})


@pytest.mark.parametrize("name", LIMITS)
def test_a_number_too_large_for_a_float_is_refused(name: str) -> None:
    with pytest.raises(SamplingError, match=rf"^{name} is 10+\.\.\., but must be .+$"):
        make(**{name: 10**400})


def test_numbers_of_numpy_are_numbers() -> None:
    options = make(temperature=np.float32(0.5), top_k=np.int64(3))
    assert (options.temperature, options.top_k) == (0.5, 3)


@pytest.mark.parametrize("bias", [-100.1, 100.1, math.nan, math.inf, -math.inf])
def test_logit_bias_names_the_token(bias: float) -> None:
    Sampling(logit_bias={7: 100, 8: -100})
    with pytest.raises(SamplingError) as raised:
        Sampling(logit_bias={3: 0.0, 7: bias})
    assert str(raised.value) == f"logit_bias of token 7 is {bias}, but must be from -100 to 100"


def test_logit_bias_must_be_a_mapping_to_numbers() -> None:
    with pytest.raises(SamplingError, match=r"^logit_bias is .1., but must map ids to numbers$"):
        make(logit_bias=[1])
    with pytest.raises(SamplingError, match=r"^logit_bias of token 1 is 'x', but must be a"):
        make(logit_bias={1: "x"})


def test_logit_bias_beyond_the_vocabulary_is_refused() -> None:
    Sampling(logit_bias={0: 1, 99: 1}).check_vocabulary(100)
    for token in (-1, 100):
        with pytest.raises(SamplingError) as raised:
            Sampling(logit_bias={token: 1}).check_vocabulary(100)
        assert str(raised.value) == f"token of logit_bias is {token}, but must be from 0 to 99"
    with pytest.raises(SamplingError, match=r"^token of logit_bias is '1', but must be a whole"):
        make(logit_bias={"1": 1}).check_vocabulary(100)


def test_options_cannot_change_once_checked() -> None:
    bias = {1: 2.0}
    options = Sampling(logit_bias=bias)
    bias[1] = 1000.0
    assert options.logit_bias == {1: 2.0}
    with pytest.raises(TypeError):
        options.logit_bias[1] = 3  # type: ignore[index]
    for name in (f.name for f in fields(Sampling)):
        with pytest.raises(FrozenInstanceError):
            setattr(options, name, 0)


def test_error_is_one_a_person_sees() -> None:
    assert issubclass(SamplingError, GptOssError)
