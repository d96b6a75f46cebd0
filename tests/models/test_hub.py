"""Model argument -> folder: what is asked of the Hub, and what a person is told."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, errors, hf_api
from huggingface_hub.utils import filter_repo_objects

from gptoss_mlx.errors import ModelNotFoundError
from gptoss_mlx.models.hub import DEFAULT_MODEL, local_folder, locate

REPOSITORY = [
    ".gitattributes",
    "LICENSE",
    "README.md",
    "USAGE_POLICY",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "metal/model.bin",
    "model-00000-of-00002.safetensors",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "original/config.json",
    "original/dtypes.json",
    "original/model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "../config.json",
    "/tmp/x.safetensors",
    "..\\x.safetensors",
    "C:x.safetensors",
    ".x.safetensors",
    "tokenizer/../../tokenizer.json",
    "tokenizer.json/../../../x.safetensors",
]
NEEDED = [
    name
    for name in REPOSITORY
    if not any(mark in name for mark in "/\\:")
    and name not in (".gitattributes", ".x.safetensors", "LICENSE", "README.md", "USAGE_POLICY")
]

Fake = Callable[..., str]


def fake_download(monkeypatch: pytest.MonkeyPatch, fake: Fake) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)


def failing(error: Exception) -> Fake:
    def fake(*_: object, **__: object) -> str:
        raise error

    return fake


def refused(model: str) -> str:
    with pytest.raises(ModelNotFoundError) as caught:
        locate(model)
    text = str(caught.value)
    assert "\n" not in text
    assert "--model tiny" in text
    return text


def test_a_folder_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_download(monkeypatch, failing(AssertionError("asked the Hub")))
    assert locate(str(tmp_path)) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert locate(f"~/{tmp_path.name}") == tmp_path


def test_a_folder_shaped_like_an_id_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "openai" / "gpt-oss-20b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    fake_download(monkeypatch, failing(AssertionError("asked the Hub")))
    assert locate(DEFAULT_MODEL) == Path(DEFAULT_MODEL)


def test_tiny_is_materialised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("gptoss_mlx.models.tiny")
    steps: list[tuple[int, int]] = []

    def materialise(*, progress: Any) -> Path:
        progress(1, 2)
        return tmp_path

    module.materialise = materialise  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gptoss_mlx.models.tiny", module)
    assert locate("tiny", lambda done, total: steps.append((done, total))) == tmp_path
    assert steps == [(1, 2)]


def test_only_the_needed_files_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def fake(
        repo_id: str, *, allow_patterns: list[str], ignore_patterns: list[str], **_: Any
    ) -> str:
        assert repo_id == DEFAULT_MODEL
        asked.extend(
            filter_repo_objects(
                REPOSITORY, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
            )
        )
        return str(tmp_path)

    fake_download(monkeypatch, fake)
    assert locate(DEFAULT_MODEL) == tmp_path
    assert asked == NEEDED


def test_progress_counts_the_bytes_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    steps: list[tuple[int, int]] = []

    def fake(repo_id: str, *, tqdm_class: Any, **_: Any) -> str:
        received = tqdm_class(total=0, unit="B", unit_scale=True, desc="Downloading bytes")
        written = tqdm_class(total=0, unit="B", unit_scale=True, desc="Reconstructing")
        files = tqdm_class(total=2, desc="Fetching 2 files")
        for bar in (received, written):
            bar.total += 100
        received.update(30)
        written.update(40)
        files.update(1)
        written.update(60)
        written.set_description("Reconstruction complete")
        for bar in (received, written, files):
            bar.close()
        return str(tmp_path)

    fake_download(monkeypatch, fake)
    locate(DEFAULT_MODEL, lambda done, total: steps.append((done, total)))
    assert steps == [(40, 100), (100, 100)]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("offline", [True, False])
def test_a_model_that_is_not_cached_is_refused_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    """The real snapshot_download, which must not touch the network."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    if not offline:
        error = errors.LocalEntryNotFoundError("An error happened\nPlease check your connection")
        fake_download(monkeypatch, failing(error))
    text = refused(DEFAULT_MODEL)
    assert text.startswith("openai/gpt-oss-20b: is neither a folder nor (completely) in the")
    assert ("HF_HUB_OFFLINE is set" in text) == offline
    assert ("cannot be reached" in text) != offline
    assert list(tmp_path.iterdir()) == []


def test_a_cached_model_is_found_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--someone--their-model"
    commit = "0" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit, encoding="utf-8")
    (folder / "snapshots" / commit).mkdir(parents=True)
    assert locate("someone/their-model") == folder / "snapshots" / commit


def hub_error(kind: type[errors.HfHubHTTPError]) -> Exception:
    response = types.SimpleNamespace(headers={}, request=None, status_code=404)
    return kind("404\nnot found", response=response)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (hub_error(errors.RepositoryNotFoundError), "nor a model on Hugging Face"),
        (hub_error(errors.GatedRepoError), "access must be asked for"),
        (OSError(28, "No space left on device"), "download failed: [Errno 28] No space left"),
        (RuntimeError("the peer\nclosed"), "download failed: the peer closed"),
        (RuntimeError(), "download failed: RuntimeError"),
    ],
)
def test_a_failed_download_is_one_line(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    fake_download(monkeypatch, failing(error))
    text = refused("someone/a-model")
    assert text.startswith("someone/a-model: ")
    assert message in text


def test_an_interrupt_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    fake_download(monkeypatch, fake)
    with pytest.raises(KeyboardInterrupt):
        locate(DEFAULT_MODEL)


@pytest.mark.parametrize(
    "model",
    [
        "",
        "./missing",
        "/missing/folder",
        "a/b/c",
        "a/../b",
        "a/b--c",
        "a/b\nc",
        "a/b ",
        "a/b.",
        "-a/b",
        "a/b.git",
        "a/é",
        "a/" + "b" * 97,
        "a/" + "b" * 5000,
        "b" * 100_000,
        "a\0b",
        "~no-such-user/model",
        "\udcff",
    ],
    ids=ascii,
)
def test_what_can_be_no_id_is_not_asked_of_the_hub(
    monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    fake_download(monkeypatch, failing(AssertionError("asked the Hub")))
    line = refused(model)
    assert "is neither a folder nor a Hugging Face id like openai/gpt-oss-20b" in line
    assert len(line) < 300
    assert local_folder(model) is None


def test_a_link_to_itself_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert "is neither a folder nor a Hugging Face id" in refused(str(tmp_path / "loop"))


def test_a_server_s_names_that_lead_elsewhere_are_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real snapshot_download, whose server lists them."""
    commit = "0" * 40
    asked: list[str] = []

    def file_of(repo_id: str, filename: str, **_: Any) -> str:
        asked.append(filename)
        return str(tmp_path / filename)

    def listed(*_: object, **__: object) -> list[hf_api.RepoFile]:
        return [
            hf_api.RepoFile(path=name, size=1, oid="1" * 40, type="file") for name in REPOSITORY
        ]

    siblings = [{"rfilename": name, "size": 1, "blobId": "1" * 40} for name in REPOSITORY]
    info = hf_api.ModelInfo(id=DEFAULT_MODEL, sha=commit, siblings=siblings)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hf_api.HfApi, "repo_info", lambda *_, **__: info)
    monkeypatch.setattr(hf_api.HfApi, "list_repo_tree", listed)
    module = sys.modules["huggingface_hub._snapshot_download"]
    monkeypatch.setattr(module, "hf_hub_download", file_of)
    locate(DEFAULT_MODEL, lambda done, total: None)
    assert sorted(asked) == sorted(NEEDED)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.touch()
    assert "is a file; give the folder it is in" in refused(str(path))


def test_what_is_on_this_machine_is_found_without_asking_anyone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_download(monkeypatch, failing(AssertionError("downloads")))
    assert local_folder(str(tmp_path)) == tmp_path
    assert local_folder("tiny") == locate("tiny")
    cached = tmp_path / "snapshots" / "0123" / "config.json"
    monkeypatch.setattr(
        huggingface_hub,
        "try_to_load_from_cache",
        lambda model, name: str(cached) if (model, name) == ("a/b", "config.json") else None,
    )
    assert local_folder("a/b") == cached.parent
    for elsewhere in ("a/c", "", "no such folder", "../up", "a--b/c"):
        assert local_folder(elsewhere) is None


def test_other_names_of_the_released_models_are_asked_for_by_id(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        "gptoss_mlx.models.hub._download", lambda id, *rest: asked.append(id) or tmp_path
    )
    for name in ("gpt-oss:20b", "20b", "gpt-oss-120b"):
        locate(name)
    assert asked == ["openai/gpt-oss-20b", "openai/gpt-oss-20b", "openai/gpt-oss-120b"]


def test_a_gguf_names_the_converter(tmp_path: Path) -> None:
    path = tmp_path / "gpt oss.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(ModelNotFoundError, match=r"`gptoss-convert '.*gpt oss.gguf' 'gpt oss'`"):
        locate(str(path))
