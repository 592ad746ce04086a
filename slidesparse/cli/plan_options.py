"""What `slidesparse plan` is told: by options, and by YAML files with the same names."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slidesparse.capacity.plan import make_plan
from slidesparse.capacity.settings import (
    Quant,
    Settings,
    default_batched_tokens,
    parse_kv_dtype,
    parse_quant,
)
from slidesparse.capacity.stored import (
    StoredWeights,
    configured_quant,
    has_weights,
    read_stored,
)
from slidesparse.errors import UsageError, reason_of
from slidesparse.gpus import GpuSpec, find_gpu, gpu_keys, gpu_of
from slidesparse.models import ModelSpec, load_model, model_config
from slidesparse.pattern import Pattern

if TYPE_CHECKING:
    import yaml

DEFAULTS: Mapping[str, Any] = {
    "model": None,
    "gpu": "auto",
    "max-seqs": 256,
    "context": None,
    "batch": None,
    "quant": None,
    "kv-dtype": "bf16",
    "memory-fraction": 0.9,
    "pattern": "dense",
    "tp": 1,
    "batched-tokens": None,
    "eager": False,
}
"""Options by name. None: what follows from the model or the GPU."""

_COUNTS = frozenset({"max-seqs", "context", "batch", "tp", "batched-tokens"})
_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}

MOST_BYTES = 1 << 20
"""Of a file of options; a larger one is something else."""


@dataclass(frozen=True)
class Asked:
    """What is to be planned.

    Args:
        name: for headings: "plan", "current", "proposed".
        model: as it was given.
        settings: of the plan.
        stored: the weights of a local checkpoint, None without.
    """

    name: str
    model: str
    settings: Settings
    stored: StoredWeights | None

    @property
    def options(self) -> dict[str, Any]:
        """The options as they hold, by name."""
        it = self.settings
        return {
            "model": self.model,
            "gpu": it.gpu.key,
            "max-seqs": it.max_seqs,
            "context": it.context,
            "batch": it.batch,
            "quant": str(it.quant),
            "kv-dtype": str(it.kv_dtype),
            "memory-fraction": it.memory_fraction,
            "pattern": str(it.pattern),
            "tp": it.tp,
            "batched-tokens": it.batched_tokens,
            "eager": it.eager,
        }


def read_options(path: Path) -> dict[str, Any]:
    """The options in a YAML file: a mapping of their names, "max_seqs" as good as "max-seqs".

    Raises:
        UsageError: the file cannot be read, is no such mapping, or has an unknown name or a value
            of another kind; one line that names it.
    """
    content = _load(path)
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds no options; write lines such as 'model: qwen3-14b'")
    found: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).replace("_", "-").lower()
        if name not in DEFAULTS:
            near = difflib.get_close_matches(name, DEFAULTS, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(DEFAULTS)}"
            raise UsageError(f"{path}: unknown option {key!r}; {hint}")
        if name in found:
            raise UsageError(f"{path}: option {name!r} is given twice")
        found[name] = _value(path, name, value)
    return found


def resolve(name: str, options: Mapping[str, Any]) -> Asked:
    """Find model and GPU, and fill in what was not said.

    Args:
        name: of the plan.
        options: by name; None or absent for the default.

    Raises:
        UsageError: a value is wrong, with the remedy.
    """
    given = {key: value for key, value in options.items() if value is not None}
    said = {**DEFAULTS, **given}
    if said["model"] is None:
        raise UsageError("no model is named; use --model, such as --model qwen3-14b")
    spec, gpu = load_model(str(said["model"])), _gpu(str(said["gpu"]))
    stored = _stored(str(said["model"]))
    quant = _quant(said["quant"], stored, str(said["model"]))
    # Not by "or": a zero was said and has to be refused.
    said["context"] = _context(spec) if said["context"] is None else said["context"]
    if said["batched-tokens"] is None:
        most = said["max-seqs"] * said["context"]
        said["batched-tokens"] = default_batched_tokens(gpu, most)
    settings = Settings(
        spec=spec,
        gpu=gpu,
        max_seqs=said["max-seqs"],
        context=said["context"],
        batch=1 if said["batch"] is None else said["batch"],
        quant=quant,
        kv_dtype=parse_kv_dtype(str(said["kv-dtype"])),
        memory_fraction=said["memory-fraction"],
        pattern=Pattern.parse(str(said["pattern"])),
        tp=said["tp"],
        batched_tokens=said["batched-tokens"],
        eager=said["eager"],
    )
    if said["batch"] is None:
        settings = _filled(settings, stored)
    return Asked(name, str(said["model"]), settings, stored)


def _filled(settings: Settings, stored: StoredWeights | None) -> Settings:
    """The same with as many sequences of the full context as fit, at least one."""
    sequences = make_plan(settings, stored).sequences
    return replace(settings, batch=max(1, min(sequences, settings.max_seqs)))


def _gpu(text: str) -> GpuSpec:
    if text.strip().lower() != "auto":
        return find_gpu(text)
    from slidesparse.devices import detect, select_device

    device = select_device("auto")
    if not device.is_gpu:
        raise UsageError(
            f"--gpu auto is this machine's GPU, and torch sees none; name one of "
            f"{', '.join(gpu_keys())}"
        )
    here = detect(device)
    found = gpu_of(here)
    if found is None:
        raise UsageError(
            f"--gpu auto: {here} is not in the GPU table; name the one nearest to it of "
            f"{', '.join(gpu_keys())}"
        )
    # What this very machine has is better known than the table's figure.
    return replace(found, memory_gib=here.memory_mib / 1024)


def _stored(model: str) -> StoredWeights | None:
    folder = Path(model).expanduser()
    return read_stored(folder) if folder.is_dir() and has_weights(folder) else None


def _quant(text: object, stored: StoredWeights | None, model: str) -> Quant:
    if text is not None:
        return parse_quant(str(text))
    return stored.quant if stored is not None else configured_quant(model_config(model), model)


def _context(spec: ModelSpec) -> int:
    if not spec.longest:
        raise UsageError(
            f"{spec.name} does not say how long a sequence may be; give --context, such as 4096"
        )
    return spec.longest


def _load(path: Path) -> Any:
    import yaml

    try:
        # Not by its size: a device or a pipe has none.
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise UsageError(f"{path} has more than {MOST_BYTES} bytes; it is no file of options")
        text = content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {reason_of(error)}") from error
    try:
        # Every value stays text: YAML would read the pattern 6:8 as the number 368.
        _refuse_twice(path, yaml.compose(text, Loader=yaml.BaseLoader))
        return yaml.load(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise UsageError(f"{path} is not YAML{place}: {problem}") from error


def _refuse_twice(path: Path, node: yaml.Node | None) -> None:
    """Refuse a key that is given twice: of the two YAML silently takes the last.

    Raises:
        UsageError: there is one.
    """
    keys = [str(key.value) for key, _ in node.value] if node and node.id == "mapping" else []
    for key, count in Counter(keys).items():
        if count > 1:
            raise UsageError(f"{path}: option {key!r} is given twice")


def _value(path: Path, name: str, value: object) -> Any:
    """A value of the kind that its option has."""
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{path}: {name} is no single value")
    text = value.strip()
    if name in _COUNTS:
        try:
            return int(text.replace("_", ""))
        except ValueError:
            raise UsageError(f"{path}: {name} {text!r} is not a whole number") from None
    if name == "memory-fraction":
        try:
            return float(text)
        except ValueError:
            raise UsageError(f"{path}: {name} {text!r} is not a number") from None
    if name == "eager":
        if text.lower() not in _TRUTH:
            raise UsageError(f"{path}: eager {text!r} is neither true nor false")
        return _TRUTH[text.lower()]
    return text
