"""Finding a model: presets, directories, Hugging Face ids, and what is said when there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from slidesparse.errors import ModelError
from slidesparse.models import load_model, preset_names

QWEN = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
}
HUB_ID = "Qwen/Qwen2.5-7B-Instruct"


def message(model: str) -> str:
    """The error that `model` gives; always one line."""
    with pytest.raises(ModelError) as error:
        load_model(model)
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "my-model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(QWEN))
    return path


@pytest.mark.parametrize("spelling", ["qwen2.5-7b", "Qwen2.5-7B", " QWEN2.5-7B "])
def test_preset_in_any_case(spelling: str) -> None:
    assert load_model(spelling).name == "qwen2.5-7b"


def test_every_preset_loads() -> None:
    assert [load_model(name).name for name in preset_names()] == list(preset_names())


def test_directory(folder: Path) -> None:
    spec = load_model(str(folder))
    assert (spec.name, spec.source) == ("my-model", str(folder))
    assert spec.linears() == load_model("qwen2.5-7b").linears()


def test_path_of_the_file_itself(folder: Path) -> None:
    assert load_model(str(folder / "config.json")).name == "my-model"


def test_relative_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert load_model(".").name == "my-model"
    monkeypatch.chdir(folder.parent)
    assert load_model("my-model").name == "my-model"


def test_home_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load_model("~/my-model").name == "my-model"


def test_preset_wins_over_a_directory_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "qwen2.5-7b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_model("qwen2.5-7b").source == "Qwen/Qwen2.5-7B"
    assert "has no config.json" in message("./qwen2.5-7b")


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("qwen2.5-7", "qwen2.5-7b"),
        ("llama-3.1-8b", "llama3.1-8b"),
        ("bitnet", "bitnet-2b"),
        ("qwen3next", "qwen3-next-80b-a3b"),
    ],
)
def test_unknown_model_offers_the_nearest(wrong: str, nearest: str) -> None:
    text = message(wrong)
    assert text.startswith(f"unknown model {wrong!r}; nearest presets: ")
    assert nearest in text


@pytest.mark.parametrize("wrong", ["", "xyzzy"])
def test_unknown_model_without_neighbours_lists_all(wrong: str) -> None:
    text = message(wrong)
    assert text.startswith(f"unknown model {wrong!r}; use a preset (bitnet-2b, ")
    assert text.endswith("a directory with a config.json or a Hugging Face id")
    assert all(name in text for name in preset_names())


@pytest.mark.parametrize("path", ["/nowhere/qwen3-8b", "./gone", "a/b/c", "~/gone"])
def test_missing_directory(path: str) -> None:
    assert message(path).startswith(f"there is no directory {path!r} with a config.json; ")


def test_directory_without_config(tmp_path: Path) -> None:
    assert message(str(tmp_path)).startswith(f"directory {tmp_path} has no config.json; ")


def test_file_that_is_no_config(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    assert message(str(file)) == (
        f"{file} is not a directory; pass the one that holds its config.json"
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"{", "not valid JSON: Expecting property name"),
        (b"", "not valid JSON: Expecting value"),
        (b"\xff\xfe\x00", "not valid JSON: "),
        (b"[" * 100_000, "not valid JSON: "),
        (b"[1]", "holds a JSON list, not an object"),
        (b"null", "holds a JSON NoneType, not an object"),
        (b'{"model_type": "rwkv"}', "architecture rwkv is not supported; supported: llama, "),
    ],
)
def test_bad_file_names_the_file(tmp_path: Path, content: bytes, problem: str) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)
    assert message(str(tmp_path)).startswith(f"{file}: {problem}")


def test_config_that_is_a_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    assert message(str(tmp_path)) == f"cannot read {tmp_path / 'config.json'}: Is a directory"


def hub(monkeypatch: pytest.MonkeyPatch, **functions: Any) -> None:
    module = pytest.importorskip("huggingface_hub")
    defaults = {
        "try_to_load_from_cache": lambda *_: None,
        "get_hf_file_metadata": lambda *_, **__: 0,
    }
    for name, function in {**defaults, **functions}.items():
        monkeypatch.setattr(module, name, function)


def failing(error: Exception) -> Any:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_cached_hub_model_needs_no_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offline = failing(AssertionError("asked the network"))
    cached = str(folder / "config.json")
    hub(
        monkeypatch,
        try_to_load_from_cache=lambda *_: cached,
        get_hf_file_metadata=offline,
        hf_hub_download=offline,
    )
    spec = load_model(HUB_ID)
    assert (spec.name, spec.source) == (HUB_ID, HUB_ID)
    assert spec.linears() == load_model("qwen2.5-7b").linears()


def test_downloaded_hub_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, hf_hub_download=lambda *_, **__: str(folder / "config.json"))
    assert load_model(HUB_ID).name == HUB_ID


def hub_error(name: str) -> Exception:
    """An error of huggingface_hub, made without the HTTP response that some of them ask for."""
    errors = pytest.importorskip("huggingface_hub.errors")
    kind = getattr(errors, name)
    error = kind.__new__(kind)
    assert isinstance(error, Exception)
    return error


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("GatedRepoError", "is gated: accept its licence on Hugging Face, then run hf auth login"),
        ("RepositoryNotFoundError", "does not exist on Hugging Face, or is private: then run"),
        ("LocalEntryNotFoundError", "is not in the Hugging Face cache and the network is switched"),
        ("OfflineModeIsEnabled", "is not in the Hugging Face cache and the network is switched"),
        ("EntryNotFoundError", "on Hugging Face has no config.json"),
    ],
)
def test_hub_refuses(name: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, get_hf_file_metadata=failing(hub_error(name)))
    text = message(HUB_ID)
    assert text.startswith(f"{HUB_ID} {problem}")
    assert "no such directory either; nearest presets: qwen2.5-7b" in text


def test_other_network_failure_gives_its_first_line(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, get_hf_file_metadata=failing(RuntimeError("proxy says no\nand more")))
    assert message(HUB_ID).startswith(
        f"{HUB_ID} is not in the Hugging Face cache and cannot be fetched "
        "(RuntimeError: proxy says no); "
    )


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert message(HUB_ID).startswith(
        f"reading {HUB_ID} from Hugging Face needs huggingface_hub: pip install huggingface_hub"
    )


def test_bad_config_of_a_hub_model_names_the_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**QWEN, "hidden_size": -1}))
    hub(monkeypatch, try_to_load_from_cache=lambda *_: str(file))
    assert message(HUB_ID) == (
        f"{HUB_ID} config.json: key 'hidden_size' must be a positive integer, not -1"
    )


@pytest.mark.parametrize(
    "environment",
    [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}],
    ids=["offline", "refused"],
)
def test_unreachable_hub_answers_within_seconds(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """In a fresh process, as huggingface_hub reads its settings when it is imported."""
    pytest.importorskip("huggingface_hub")
    code = f"from slidesparse.models import load_model; load_model({HUB_ID!r})"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_HOME": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
    )
    assert f"ModelError: {HUB_ID} is not in the Hugging Face cache" in result.stderr
