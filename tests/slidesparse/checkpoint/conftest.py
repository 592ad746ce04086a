"""Shared by the tests of checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_checkpoints import save_tiny


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense") / "src"
    save_tiny(folder, "Qwen2", shard="30KB")
    (folder / "tokenizer.json").write_text('{"model": 1}')
    (folder / "tokenizer.model").write_bytes(b"\0spm")
    (folder / "chat_template.jinja").write_text("{{ x }}")
    (folder / "LICENSE").write_text("free")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("{{ y }}")
    for unwanted in ("pytorch_model.bin", "model.gguf", "README.md", "tf.bin.index.json"):
        (folder / unwanted).write_text("{}")
    (folder / "onnx").mkdir()
    return folder
