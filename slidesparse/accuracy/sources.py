"""Where text and token ids come from: files, and Hugging Face datasets that are cached."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from slidesparse.errors import CalibrationError

MOST_BYTES = 64 << 20
"""Of a file: some 15 million tokens of prose, fifty times what a calibration uses."""

DATASET = "dataset:"
ID_SUFFIXES = (".json", ".npy", ".pt")


def is_dataset(source: str | Path) -> bool:
    """Whether a source is spelt as a dataset."""
    return str(source).startswith(DATASET)


def is_ids(path: Path) -> bool:
    """Whether a source is a file of token ids, by its name."""
    return path.suffix.lower() in ID_SUFFIXES


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        CalibrationError: it cannot be read, is too large, or is not UTF-8.
    """
    _check_size(path)
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CalibrationError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CalibrationError(
            f"{path} is not UTF-8 text (byte {error.start}); convert it, or name a file of token "
            f"ids {', '.join(ID_SUFFIXES)}"
        ) from error


def read_ids(path: Path) -> torch.Tensor:
    """Ids of a list, an array or a tensor, nested or not, in their order: [T] int64.

    Raises:
        CalibrationError: the file cannot be read, is too large, or holds something else.
    """
    _check_size(path)
    read = {".json": _load_json, ".npy": _load_npy, ".pt": _load_pt}[path.suffix.lower()]
    try:
        held = read(path)
    except OSError as error:
        raise CalibrationError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:
        # A pickle or an array from elsewhere fails in any way it likes.
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CalibrationError(f"{path} holds no token ids: {reason[0]}") from error
    if held.is_floating_point() or held.is_complex() or held.dtype is torch.bool:
        raise CalibrationError(f"{path} holds {held.dtype}, not token ids; they are integers")
    ids = held.reshape(-1).to(torch.int64)
    if not ids.numel():
        raise CalibrationError(f"{path} holds no token ids: it is empty")
    if int(ids.min()) < 0:
        raise CalibrationError(f"{path} holds a negative token id, {int(ids.min())}")
    return ids


def read_dataset(source: str) -> str:
    """The text column of a cached dataset, rows joined by blank lines, as far as MOST_BYTES.

    Args:
        source: "dataset:NAME[:CONFIG[:SPLIT]]"; the split is train unless told.

    Raises:
        CalibrationError: it is not cached, has no text, or the datasets library is missing.
    """
    name, _, rest = source.removeprefix(DATASET).partition(":")
    config, _, split = rest.partition(":")
    try:
        import datasets
    except ImportError as error:
        raise CalibrationError(
            f"reading {source} needs the datasets library: pip install datasets, or use a text file"
        ) from error
    try:
        with _offline(datasets):
            rows = datasets.load_dataset(name, config or None, split=split or "train")
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CalibrationError(
            f"dataset {name!r} cannot be read from this machine's cache: {lines[0]}"
        ) from error
    columns = list(rows.features)
    if "text" not in columns:
        raise CalibrationError(f"dataset {name!r} has no column 'text' but {', '.join(columns)}")
    parts, size = [], 0
    for row in rows:
        parts.append(row["text"])
        size += len(parts[-1])
        if size > MOST_BYTES:
            break
    return "\n\n".join(parts)


def _check_size(path: Path) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        hint = "" if not missing else f"; a cached dataset is spelt {DATASET}NAME"
        raise CalibrationError(f"cannot read {path}: {error.strerror}{hint}") from error
    if path.is_dir():
        raise CalibrationError(f"cannot read {path}: it is a folder; name a file")
    if size > MOST_BYTES:
        raise CalibrationError(
            f"{path} has {size / 2**20:,.0f} MiB, more than {MOST_BYTES >> 20}: use a part of it"
        )


def _load_json(path: Path) -> torch.Tensor:
    return torch.tensor(json.loads(path.read_text(encoding="utf-8")))


def _load_npy(path: Path) -> torch.Tensor:
    import numpy as np

    return torch.from_numpy(np.load(path, allow_pickle=False).astype(np.int64, casting="safe"))


def _load_pt(path: Path) -> torch.Tensor:
    held = torch.load(path, map_location="cpu", weights_only=True)
    return held if isinstance(held, torch.Tensor) else torch.tensor(held)


@contextmanager
def _offline(datasets: Any) -> Iterator[None]:
    """Keep the datasets library off the network, where it would wait and retry."""
    config = datasets.config
    held = {name: getattr(config, name, None) for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")}
    for name in held:
        setattr(config, name, True)
    try:
        yield
    finally:
        for name, value in held.items():
            setattr(config, name, value)
