"""A conversion that is stopped: killed, interrupted, out of disk; started again, it goes on."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoints import save_tiny
from tiny_models import tiny_tokens

from slidesparse.accuracy.text import calibration_tokens
from slidesparse.checkpoint import convert as module
from slidesparse.checkpoint import files, state
from slidesparse.checkpoint.convert import Conversion, convert
from slidesparse.checkpoint.state import LOCK_FILE, STATE_FILE
from slidesparse.errors import CheckpointError, UsageError
from slidesparse.pattern import Pattern
from slidesparse.problem import DType
from slidesparse.recipe import Method, Recipe

SHARDS = 4
"""Of a tiny model: three blocks and the rest."""

MAGNITUDE = Recipe(Pattern(6, 8), Method.MAGNITUDE, DType.FP8)
WANDA = Recipe(Pattern(6, 8), Method.WANDA, DType.FP8)
CASES = {
    "magnitude": (MAGNITUDE, False),
    "magnitude permuted": (MAGNITUDE, True),
    "wanda": (WANDA, False),
    "sparsegpt permuted": (Recipe(Pattern(4, 6), Method.SPARSEGPT, DType.INT8), True),
    "sparsegpt, only pruned": (Recipe(Pattern(2, 4), Method.SPARSEGPT, None), False),
    "wanda with the head": (Recipe(Pattern(6, 8), Method.WANDA, DType.INT8, keep=()), False),
}


class StoppedError(Exception):
    """Stands for anything that ends a conversion."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense") / "src"
    save_tiny(folder)
    return folder


def start(
    source: Path, out: Path, recipe: Recipe = MAGNITUDE, stop_after: int | None = None, **rest: Any
) -> Conversion:
    def progress(done: int, total: int, name: str) -> None:
        if done == stop_after:
            raise StoppedError

    tokens = rest.pop("tokens", tiny_tokens() if recipe.method.calibrated else None)
    return convert(source, out, recipe, tokens=tokens, progress=progress, **rest)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(it.relative_to(folder)): it.read_bytes() for it in folder.rglob("*") if it.is_file()
    }


def partial(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stop_after", [1, 2, 3, 4])
def test_it_goes_on_to_the_same_bytes(
    source: Path, tmp_path: Path, case: str, stop_after: int
) -> None:
    recipe, permute = CASES[case]
    whole = start(source, tmp_path / "whole", recipe, permute=permute)
    out = tmp_path / "out"
    with pytest.raises(StoppedError):
        start(source, out, recipe, stop_after, permute=permute)
    assert not out.exists()
    times = {it.name: it.stat().st_mtime_ns for it in partial(out).glob("*.safetensors")}
    assert len(times) == stop_after
    made = start(source, out, recipe, permute=permute)
    assert made.resumed == stop_after
    assert contents(out) == contents(tmp_path / "whole")
    for name, before in times.items():
        assert (out / name).stat().st_mtime_ns == before
    assert made.reports == whole.reports
    assert not partial(out).exists()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_a_killed_process(tmp_path: Path, method: str) -> None:
    """kill -9 in the middle of a real conversion, then the same command once more."""
    source, ids = tmp_path / "src", tmp_path / "ids.json"
    save_tiny(source, num_hidden_layers=40)
    ids.write_text(json.dumps(tiny_tokens(8, 32).tolist()))
    command = [sys.executable, "-m", "slidesparse", "convert", str(source)]
    options = ["--method", method, "--dtype", "int8", "--device", "cpu"]
    if method == "wanda":
        options += ["--calibration", str(ids), "--sequences", "8", "--length", "32"]
    run = lambda out: [*command, str(out), *options]  # noqa: E731
    out, whole = tmp_path / "out", tmp_path / "whole"
    seen = 0
    for _ in range(2 if method == "magnitude" else 1):
        process = subprocess.Popen(run(out), stderr=subprocess.PIPE, cwd=tmp_path)
        wait_for_shards(out, seen + 8, process)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        assert not out.exists()
        assert seen + 8 <= len(shards(out)) < 41
        seen = len(shards(out))
    again = subprocess.run(
        run(out), capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path
    )
    assert again.returncode == 0, again.stderr
    assert "shards from an earlier start" in again.stdout
    recipe = Recipe(Pattern(6, 8), Method(method), DType.INT8)
    tokens = calibration_tokens(ids, source, 8, 32) if method == "wanda" else None
    convert(source, whole, recipe, tokens=tokens)
    assert contents(out) == contents(whole)
    assert sorted(it.name for it in tmp_path.iterdir()) == ["ids.json", "out", "src", "whole"]


def shards(out: Path) -> list[Path]:
    return list(partial(out).glob("*.safetensors"))


def wait_for_shards(out: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while len(shards(out)) < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.0005)


def test_a_full_disk(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC in the second shard: one line, the first one kept, and room makes it go on."""
    out = tmp_path / "out"
    claim, calls = os.posix_fallocate, []

    def limited(descriptor: int, start: int, size: int) -> None:
        calls.append(size)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        claim(descriptor, start, size)

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", limited)
        with pytest.raises(CheckpointError) as caught:
            start(source, out)
    message = str(caught.value)
    assert message.startswith(f"cannot write {partial(out)}/model-00002-of-00004.safetensors (")
    assert "No space left on device; finished shards are kept: make room" in message
    names = {it.name for it in partial(out).iterdir()}
    assert names == {STATE_FILE, LOCK_FILE, "model-00001-of-00004.safetensors"}
    assert start(source, out).resumed == 1
    start(source, tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")


def test_a_disk_that_fills_up_at_the_end(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out = tmp_path / "out"
    for target, name in ((shutil, "copyfile"), (module, "write_atomically")):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, full)
            with pytest.raises(CheckpointError, match="No space left on device; finished shards"):
                start(source, out)
        assert not out.exists()
    assert start(source, out).resumed == SHARDS


def test_too_little_room_is_said_before_the_work(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=60_000)
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(files.shutil, "disk_usage", lambda _: usage)
        with pytest.raises(CheckpointError) as caught:
            start(source, out)
    assert "out.partial needs 89.76 kB more and the disk has 60.00 kB: make room" in str(
        caught.value
    )
    assert not shards(out)
    with pytest.raises(StoppedError):
        start(source, out, stop_after=3)
    # What is finished need not fit again.
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage)
    assert start(source, out).resumed == 3


def test_other_arguments_do_not_go_on(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(StoppedError):
        start(source, out, WANDA, 2)
    before = contents(partial(out))
    other = tmp_path / "other"
    shutil.copytree(source, other)
    starts: list[tuple[str, Callable[[], object]]] = [
        ("pattern, method, dtype, keep or recipe, the cal", lambda: start(source, out, MAGNITUDE)),
        ("the calibration tokens;", lambda: start(source, out, WANDA, tokens=tiny_tokens(seed=9))),
        ("--permute;", lambda: start(source, out, WANDA, permute=True)),
        ("the source checkpoint;", lambda: start(other, out, WANDA)),
    ]
    os.utime(other / "model.safetensors")
    for what, begin in starts:
        with pytest.raises(CheckpointError) as caught:
            begin()
        expected = f"out.partial holds an unfinished conversion that differs in {what}"
        assert expected in str(caught.value)
        assert "repeat that command to finish it, or start anew with --force" in str(caught.value)
    assert contents(partial(out)) == before
    made = start(source, out, MAGNITUDE, force=True)
    assert made.resumed == 0
    start(source, tmp_path / "whole", MAGNITUDE)
    assert contents(out) == contents(tmp_path / "whole")


def test_another_release_does_not_go_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StoppedError):
        start(source, tmp_path / "out", stop_after=1)
    monkeypatch.setattr(state, "__version__", "9.9")
    with pytest.raises(CheckpointError, match="differs in the release of slidesparse;"):
        start(source, tmp_path / "out")


def test_a_damaged_shard_is_made_again(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    with pytest.raises(StoppedError):
        start(source, out, WANDA, 3)
    first, second, _ = sorted(shards(out))
    damaged = bytearray(second.read_bytes())
    damaged[-1] ^= 1
    second.write_bytes(damaged)
    first.unlink()
    assert start(source, out, WANDA).resumed == 1
    assert f"{second} is not what was written there; it is made again" in caplog.text
    start(source, tmp_path / "whole", WANDA)
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"identity": {}, "shards": 5, "reports": {}}']
)
def test_a_damaged_state_file(source: Path, tmp_path: Path, content: str) -> None:
    out = tmp_path / "out"
    with pytest.raises(StoppedError):
        start(source, out, stop_after=1)
    (partial(out) / STATE_FILE).write_text(content)
    with pytest.raises(CheckpointError, match=f"{STATE_FILE} is (damaged|not)"):
        start(source, out)
    assert shards(out)


def test_a_folder_of_somebody_else(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    partial(out).mkdir()
    (partial(out) / "letter.txt").write_text("dear")
    for force in (False, True):
        with pytest.raises(CheckpointError, match=r"holds letter.txt and no unfinished conversion"):
            start(source, out, force=force)
    assert (partial(out) / "letter.txt").read_text() == "dear"


def test_a_start_that_died_at_once_is_no_obstacle(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    partial(out).mkdir()
    (partial(out) / LOCK_FILE).touch()
    (partial(out) / f"{STATE_FILE}.tmp-1-2").touch()
    start(source, out)
    start(source, tmp_path / "whole")
    # The leftover is harmless, but it must not be taken for a part of the checkpoint.
    assert contents(out).keys() == contents(tmp_path / "whole").keys()


def test_two_at_once(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def second(done: int, total: int, name: str) -> None:
        program = (
            "from pathlib import Path; from slidesparse.checkpoint.state import locked\n"
            f"with locked(Path({str(partial(out))!r})): pass"
        )
        run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert "CheckpointError: another process is converting into" in run.stderr
        assert "wait for it to end" in run.stderr
        raise StoppedError

    with pytest.raises(StoppedError):
        convert(source, out, MAGNITUDE, progress=second)
    start(source, out)


@pytest.mark.parametrize("replaces", [False, True])
@pytest.mark.parametrize("call", ["first rename", "second rename", "tidy", "rmtree"])
def test_stopped_while_it_gets_its_name(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, replaces: bool
) -> None:
    """Always the old folder, the new one or the work is there, and the same command ends it."""
    out = tmp_path / "out"
    if replaces:
        start(source, out, WANDA)
        (out / "mine.txt").touch()
    start(source, tmp_path / "whole")
    rename, renames = os.rename, []

    def stop(*_: object, **__: object) -> None:
        raise StoppedError

    def stop_at_rename(before: str, after: str) -> None:
        renames.append(after)
        if len(renames) == 1 + (call == "second rename"):
            raise StoppedError
        rename(before, after)

    with monkeypatch.context() as patch:
        if "rename" in call:
            patch.setattr(os, "rename", stop_at_rename)
        else:
            patch.setattr(files if call == "tidy" else files.shutil, call, stop)
        reached = replaces or call in ("first rename", "tidy")
        if reached:
            with pytest.raises(StoppedError):
                start(source, out, force=replaces)
        else:
            start(source, out)
    assert out.exists() or partial(out).exists()
    if reached:
        start(source, out, force=replaces)
    assert contents(out) == contents(tmp_path / "whole")
    assert sorted(it.name for it in tmp_path.iterdir()) == ["out", "whole"]


def test_ready_and_asked_again(source: Path, tmp_path: Path) -> None:
    start(source, tmp_path / "out")
    with pytest.raises(UsageError, match="out exists; name another folder"):
        start(source, tmp_path / "out")


def test_shards_hold_their_checksums(source: Path, tmp_path: Path) -> None:
    """What resuming trusts is written after each shard, and names every tensor of it."""
    import zlib

    from safetensors.torch import load_file

    out = tmp_path / "out"
    with pytest.raises(StoppedError):
        start(source, out, stop_after=2)
    saved = json.loads((partial(out) / STATE_FILE).read_text())
    assert saved["identity"]["recipe"] == json.loads(MAGNITUDE.to_json())
    assert set(saved["shards"]) == {it.name for it in shards(out)}
    for name, record in saved["shards"].items():
        assert record["bytes"] == (partial(out) / name).stat().st_size
        tensors = load_file(partial(out) / name)
        assert record["checksums"] == {
            key: zlib.crc32(it.contiguous().view(torch.uint8).numpy().tobytes())
            for key, it in tensors.items()
        }


def test_starting_anew_leaves_nothing_of_the_other_source(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, out = tmp_path / "other", tmp_path / "out"
    shutil.copytree(source, other)
    (other / "additional_chat_templates").mkdir()
    (other / "additional_chat_templates" / "tools.jinja").write_text("{{ of the other }}")

    def full(*_: object) -> None:
        raise StoppedError

    os.utime(other / "model.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(files, "install", full)
        with pytest.raises(StoppedError):
            start(other, out)
    assert list(partial(out).rglob("tools.jinja"))
    start(source, out, force=True)
    assert not list(out.rglob("tools.jinja"))
