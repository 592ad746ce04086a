"""Finding a model: a preset, a directory with a config.json, or a Hugging Face id."""

from __future__ import annotations

import difflib
import json
import re
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from slidesparse.errors import ModelError
from slidesparse.models.config import spec_from_config
from slidesparse.models.hub import fetch_config
from slidesparse.models.spec import ModelSpec

_CONFIG = "config.json"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


@lru_cache(maxsize=1)
def preset_names() -> tuple[str, ...]:
    """Name the models that are built in, in the order of their names."""
    folder = resources.files("slidesparse") / "data" / "models"
    files = [entry.name for entry in folder.iterdir()]
    return tuple(sorted(name[: -len(".json")] for name in files if name.endswith(".json")))


def load_model(model: str) -> ModelSpec:
    """Find a model and read its sizes.

    Args:
        model: in this order, the name of a preset (upper or lower case), a directory that holds
            a config.json (or the path of that file), or a Hugging Face id "organisation/name",
            taken from the local cache first and from the network otherwise.

    Raises:
        ModelError: nothing of that name, or its config.json cannot be read; the message offers
            the nearest presets.
    """
    return spec_from_config(*_find(model))


def model_config(model: str) -> dict[str, Any]:
    """Find a model as `load_model` does, and return its config.json.

    Raises:
        ModelError: as of `load_model`.
    """
    return _find(model).config


class _Found(NamedTuple):
    """A parsed config.json, and what `spec_from_config` calls it."""

    config: dict[str, Any]
    name: str
    source: str
    where: str


def _find(model: str) -> _Found:
    name = model.strip()
    if name.lower() in preset_names():
        return _find_preset(name.lower())
    path = Path(name).expanduser()
    if name and path.exists():
        return _find_path(path)
    if _HUB_ID.fullmatch(name):
        return _find_hub(name)
    if re.search(r"[/\\]", name) or name.startswith(("~", ".")):
        raise ModelError(f"there is no directory {name!r} with a {_CONFIG}; {_offer(name)}")
    raise ModelError(f"unknown model {model!r}; {_offer(name)}")


def _find_preset(name: str) -> _Found:
    file = resources.files("slidesparse") / "data" / "models" / f"{name}.json"
    config = _parse(file.read_bytes(), f"preset {name}")
    return _Found(config, name, str(config["source"]), f"preset {name}")


def _find_path(path: Path) -> _Found:
    file = path / _CONFIG if path.is_dir() else path
    if path.is_dir() and not file.exists():
        raise ModelError(f"directory {path} has no {_CONFIG}; {_offer(path.name)}")
    if not path.is_dir() and path.suffix != ".json":
        raise ModelError(f"{path} is not a directory; pass the one that holds its {_CONFIG}")
    name = file.resolve().parent.name if file.name == _CONFIG else file.stem
    return _Found(_read(file), name, str(path), str(file))


def _find_hub(repo_id: str) -> _Found:
    try:
        file = fetch_config(repo_id)
    except ModelError as error:
        offer = _offer(repo_id.partition("/")[2])
        raise ModelError(f"{error}; no such directory either; {offer}") from error
    return _Found(_read(file), repo_id, repo_id, f"{repo_id} {_CONFIG}")


def _read(file: Path) -> dict[str, Any]:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {file}: {error.strerror or error}") from error
    return _parse(content, str(file))


def _parse(content: bytes, where: str) -> dict[str, Any]:
    try:
        config = json.loads(content)
    except (ValueError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise ModelError(f"{where}: not valid JSON: {reason}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{where}: holds a JSON {type(config).__name__}, not an object")
    return config


def _offer(name: str) -> str:
    """What to pass instead of `name`: the nearest presets, or all of them."""
    near = difflib.get_close_matches(name.lower(), preset_names(), n=3, cutoff=0.5)
    if near:
        return f"nearest presets: {', '.join(near)}"
    return (
        f"use a preset ({', '.join(preset_names())}), "
        f"a directory with a {_CONFIG} or a Hugging Face id"
    )
