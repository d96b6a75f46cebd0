"""Which variant of the kernels is used, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptoss_mlx.backends.cpu import library
from gptoss_mlx.errors import KernelError
from tests.support.native import variants

BUILT = variants() != ["none"] and library.why_missing() is None


@pytest.mark.skipif(not BUILT, reason="the kernels were not built")
def test_the_best_variant_or_the_one_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(library.VARIABLE, raising=False)
    assert library.choose_variant() == library.supported()[0]
    monkeypatch.setenv(library.VARIABLE, "portable")
    assert library.choose_variant() == "portable"
    monkeypatch.setenv(library.VARIABLE, "x" * 100)
    with pytest.raises(KernelError, match=r"GPTOSS_CPU is 'x{80}', but must be .* or portable$"):
        library.choose_variant()


@pytest.mark.skipif(not BUILT, reason="the kernels were not built")
def test_a_variant_that_the_processor_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = library.variants()[0]
    monkeypatch.setattr(library, "supported", lambda: ["portable"])
    monkeypatch.setenv(library.VARIABLE, lacking)
    with pytest.raises(KernelError, match=f"GPTOSS_CPU is {lacking}, which this processor does"):
        library.choose_variant()


def test_a_library_that_was_not_built_or_cannot_be_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library.load_library.cache_clear()
    try:
        monkeypatch.setattr(library, "library_path", lambda: None)
        place = "gptoss_mlx/backends/cpu/library.py"
        monkeypatch.setattr(library, "__file__", str(tmp_path / place))
        assert "were not built when this package was installed" in (library.why_missing() or "")
        (tmp_path / "setup.py").touch()
        assert f"were not built in {tmp_path}, from where" in (library.why_missing() or "")
        broken = tmp_path / "library.so"
        broken.write_bytes(b"no library")
        monkeypatch.setattr(library, "library_path", lambda: broken)
        assert (library.why_missing() or "").startswith(f"{broken}: ")
    finally:
        library.load_library.cache_clear()
