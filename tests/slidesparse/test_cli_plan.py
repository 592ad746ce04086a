"""`slidesparse plan`: first line, exit codes, files of options, messages."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from slidesparse.bench.kinds import read_results
from slidesparse.candidate import Provenance
from slidesparse.cli.main import cli
from slidesparse.gpus import gpu_keys
from slidesparse.models import load_model, model_config

EXAMPLE = (
    *("--model", "qwen3-14b", "--gpu", "h100-80gb", "--max-seqs", "256", "--context", "49152"),
    *("--batch", "32", "--quant", "awq", "--kv-dtype", "bf16", "--memory-fraction", "0.9"),
)
SMALL = ("--model", "llama3.2-1b", "--gpu", "h200", "--max-seqs", "8", "--context", "4096")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["plan", *arguments], env={"COLUMNS": "200"})


def yaml(path: Path, **options: Any) -> str:
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in options.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def test_the_example_in_a_process_of_its_own_within_three_seconds(tmp_path: Path) -> None:
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "slidesparse", "plan", *EXAMPLE],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "200"},
        cwd=tmp_path,
        check=False,
    )
    took = time.monotonic() - begun
    assert done.returncode == 3, done.stderr
    assert done.stdout.splitlines()[0] == (
        "does not fit: 179.87 GiB too much, 251.13 GiB of 71.26 GiB (0.9 of H100 SXM 80 GB), "
        "352.4 %"
    )
    assert "--kv-dtype fp8 --batch 16" in done.stdout
    # Under 1 s where nothing else runs; other tests may share the cores.
    assert took < 3 or os.getloadavg()[0] > (os.cpu_count() or 1)


def test_it_imports_neither_torch_nor_vllm(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom slidesparse.cli.main import cli\n"
        f"try:\n    cli({['plan', *SMALL, '--quant', 'fp8', '--quiet']!r})\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "assert not {'torch', 'vllm', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=60)


def test_what_fits_ends_with_zero() -> None:
    done = run(*SMALL)
    assert done.exit_code == 0
    assert done.output.startswith("fits: ")
    assert "Most concurrent sequences of 4,096 tokens:" in done.output
    assert "What fits" not in done.output


def test_every_number_says_where_it_is_from() -> None:
    done = run("--model", "qwen2.5-7b", "--gpu", "h200", "--quant", "fp8", "--context", "4096")
    for word in ("measured", "derived", "estimated"):
        assert word in done.output
    assert "Power limits, launches and scheduling are not modelled" in done.output


@pytest.mark.parametrize("model", ["qwen2.5-7b", "qwen3-next-80b-a3b"])
def test_a_narrow_terminal_breaks_no_word(model: str) -> None:
    narrow = CliRunner().invoke(
        cli,
        ["plan", "--model", model, "--gpu", "h200", "--quant", "fp8", "--context", "4096"],
        env={"COLUMNS": "80"},
    )
    first, *others = narrow.output.splitlines()
    assert first.startswith("fits: ")
    assert max(map(len, others)) <= 80
    _, _, steps = narrow.output.partition("\nprefill: ")
    words = set(re.findall(r"[a-z_]+", steps))
    assert {"attention", "activation", "memory", "derived", "estimated"} <= words
    assert {layer.name for layer in load_model(model).linears()} <= words
    assert "\nfrom datasheet rates: " in steps


def test_the_gpu_table_on_a_narrow_terminal() -> None:
    done = CliRunner().invoke(cli, ["plan", "--gpus"], env={"COLUMNS": "80"})
    rows = [line.split() for line in done.output.splitlines()]
    assert [row for row in rows if row[:1] == ["h100-sxm"]] == [
        ["h100-sxm", "h100-80gb,", "h100-sxm5,", "h100-sxm-80gb"],
        ["h100-sxm", "9.0", "132", "1,980", "79.18", "3,352", "700", "yes"],
        ["h100-sxm", "989.4", "989.4", "1,978.9", "1,978.9", "66.9"],
    ]


def test_quiet_leaves_the_exit_code_alone() -> None:
    done = run(*EXAMPLE, "--quiet")
    assert (done.exit_code, done.output) == (3, "")


def test_what_does_not_help_is_told_too() -> None:
    lines = [line.split() for line in run(*EXAMPLE).output.splitlines()]
    assert ["no", "value", "of", "it", "helps", "quantisation"] in lines
    large = ("--model", "qwen3-next-80b-a3b", "--gpu", "v100-16gb", "--max-seqs", "1")
    done = run(*large, "--memory-fraction", "0.2")
    assert done.exit_code == 3
    assert (
        "No change of one or two settings makes it fit, up to 8 GPUs; use a smaller model"
        in done.output
    )


def test_the_result_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    assert run(*EXAMPLE, "--json", str(path)).exit_code == 3
    found = read_results(path)
    assert (found.kind, found.fingerprint) == ("slidesparse-capacity", None)
    assert found.machine == "h100-sxm (planned)"
    (plan,) = found.record.plans
    assert not plan.fits
    assert plan.settings["quant"] == "awq"
    assert {part.group for part in plan.parts} >= {"weights", "KV cache", "activations"}
    assert sum(part.bytes for part in plan.parts if part.inside) == plan.needed
    assert plan.changes[0].option == "--batch 8"
    assert [step.stage for step in plan.steps] == ["prefill", "decode"]
    memory, sequences, *rates = found.rows
    assert memory.workload["batch"] == 32
    assert "batch" not in sequences.workload
    assert memory.value == pytest.approx(251.13, abs=0.01)
    assert (sequences.value, sequences.better) == (8, "higher")
    assert {row.provenance for row in rates} == {Provenance.ESTIMATED}
    assert rates[1].tokens_per_s == pytest.approx(plan.steps[1].tokens_per_s)


def test_without_a_batch_as_many_sequences_are_planned_as_fit() -> None:
    long = ("--model", "qwen2.5-7b", "--gpu", "h200", "--quant", "fp8")
    done = run(*long)
    assert done.exit_code == 0, done.output
    found = re.search(r"^Most concurrent sequences of 131,072 tokens: (\d+)", done.output, re.M)
    assert found is not None
    assert f"on h200: {found[1]} sequences of 131,072 tokens at once" in done.output
    # One more does not fit, one alone is the least, and --max-seqs is the most.
    assert run(*long, "--batch", str(int(found[1]) + 1)).exit_code == 3
    none = run("--model", "qwen3-14b", "--gpu", "v100-16gb", "--quiet")
    assert (none.exit_code, none.output) == (3, "")
    assert "on h200: 2 sequences of" in run(*long, "--max-seqs", "2").output


def test_two_plans_side_by_side(tmp_path: Path) -> None:
    old = yaml(tmp_path / "a.yaml", model="qwen3-14b", batch=256, context=40960, quant="none")
    new = yaml(
        tmp_path / "b.yaml",
        model="qwen3-14b",
        max_seqs=32,
        batch=32,
        context=8192,
        quant="fp8",
        pattern="6:8",
        eager="true",
    )
    path = tmp_path / "both.json"
    done = run("--from", old, "--to", new, "--gpu", "h100-80gb", "--json", str(path))
    assert done.exit_code == 0, done.output
    first, second, *_ = done.output.splitlines()
    assert first.startswith("proposed fits: ")
    assert second.startswith("current does not fit: ")
    rows = {line.split()[0]: line.split()[1:] for line in done.output.splitlines() if line.split()}
    assert rows["context"] == ["40,960", "8,192", "changed"]
    assert rows["pattern"] == ["dense", "6:8", "changed"]
    current, proposed = read_results(path).record.plans
    assert (current.name, proposed.name) == ("current", "proposed")
    assert current.gpu == proposed.gpu == "h100-sxm"
    assert proposed.settings["eager"] is True
    # The proposal decides.
    assert run("--from", new, "--to", old, "--gpu", "h100-80gb", "--quiet").exit_code == 3


def test_a_checkpoint_is_counted_from_its_headers(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from tiny_checkpoints import save_tiny

    folder = tmp_path / "tiny"
    save_tiny(folder)
    path = tmp_path / "plan.json"
    done = run("--model", str(folder), "--gpu", "l4", "--max-seqs", "2", "--json", str(path))
    assert done.exit_code == 0, done.output
    assert "headers of the checkpoint" in done.output
    (plan,) = read_results(path).record.plans
    weights = [part for part in plan.parts if part.group == "weights"]
    assert {part.provenance for part in weights} == {Provenance.MEASURED}
    assert plan.settings["context"] == 64  # The model's own longest.


BAD = [
    ((), "no model is named; use --model, such as --model qwen3-14b"),
    (("--model", "qwen3-15b", "--gpu", "h200"), "unknown model 'qwen3-15b'; nearest presets: "),
    (
        ("--model", "qwen3-14b", "--gpu", "h100"),
        f"unknown GPU 'h100'; nearest: h100-pcie, h100-sxm; known: {', '.join(gpu_keys())}",
    ),
    ((*SMALL, "--max-seqs", "-3"), "--max-seqs -3 is not a positive number"),
    ((*SMALL, "--context", "0"), "--context 0 is not a positive number"),
    ((*SMALL, "--batch", "9"), "--batch 9 is more than the 8 sequences that --max-seqs allows"),
    ((*SMALL, "--batch", "0"), "--batch 0 is not a positive number"),
    ((*SMALL, "--tp", "3"), "tp=3 does not divide"),
    ((*SMALL, "--quant", "fp7"), "unknown quantisation 'fp7'; did you mean 'fp8'?"),
    ((*SMALL, "--kv-dtype", "int9"), "unknown KV-cache dtype 'int9'; use one of bf16, fp8"),
    ((*SMALL, "--memory-fraction", "90"), "--memory-fraction 90 is not a fraction of the memory"),
    ((*SMALL, "--pattern", "5:8"), "pattern 5:8 is not of the (2N-2):2N family"),
    ((*SMALL, "--pattern", "6:8"), "--pattern 6:8 is for W8A8 weights and --quant is none"),
    ((*SMALL, "--batched-tokens", "0"), "--batched-tokens 0 is not a positive number"),
    ((*SMALL, "--json", "/no/such/folder/x.json"), "cannot write /no/such/folder/x.json"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_usage_is_one_line(arguments: tuple[str, ...], message: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2, done.output
    assert f"Error: {message}" in done.output
    assert len(done.output.splitlines()) == 1


def test_gpu_auto_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = run("--model", "qwen3-8b")
    assert done.exit_code == 2
    assert done.output == (
        "Error: --gpu auto is this machine's GPU, and torch sees none; name one of "
        f"{', '.join(gpu_keys())}\n"
    )


FILES = [
    ("contxt: 3", "unknown option 'contxt'; did you mean 'context'?"),
    ("zzz: 3", "unknown option 'zzz'; known: model, gpu, max-seqs, "),
    ("context: many", "context 'many' is not a whole number"),
    ("memory-fraction: most", "memory-fraction 'most' is not a number"),
    ("eager: maybe", "eager 'maybe' is neither true nor false"),
    ("context: [1, 2]", "context is no single value"),
    ("context:", "context is no single value"),
    ("max-seqs: 3\nmax_seqs: 4", "option 'max-seqs' is given twice"),
    ("context: 3\ncontext: 4", "option 'context' is given twice"),
    ("a: &a [x, x]\nb: &b [*a, *a]\ncontext: [*b, *b]", "unknown option 'a'; known: model, "),
    ("context: !!python/name:os.system", "context is no single value"),
    ("- 1\n- 2", "holds no options; write lines such as 'model: qwen3-14b'"),
    ("", "holds no options; write lines such as 'model: qwen3-14b'"),
    ("a: [1", "is not YAML in line "),
    ("model: qwen3-99b", "unknown model 'qwen3-99b'; "),
    ("max-seqs: 0", "--max-seqs 0 is not a positive number"),
]


@pytest.mark.parametrize(("content", "message"), FILES)
def test_bad_files_of_options(content: str, message: str, tmp_path: Path) -> None:
    path, good = tmp_path / "bad.yaml", yaml(tmp_path / "good.yaml", model="qwen3-8b")
    path.write_text(content, encoding="utf-8")
    done = run("--from", good, "--to", str(path), "--gpu", "h200", "--model", "qwen3-8b")
    assert done.exit_code == 2
    assert done.output.startswith(f"Error: {path}")
    assert message in done.output
    assert len(done.output.splitlines()) == 1


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    good = yaml(tmp_path / "good.yaml", model="qwen3-8b", gpu="h200")
    missing = str(tmp_path / "no.yaml")
    done = run("--from", missing, "--to", good)
    assert done.output == f"Error: cannot read {missing}: No such file or directory\n"
    large = tmp_path / "large.yaml"
    large.write_bytes(b" " * (1 << 20) + b"\n")
    done = run("--from", str(large), "--to", good)
    assert done.output == (
        f"Error: {large} has more than 1048576 bytes; it is no file of options\n"
    )
    # A device has no size and no end.
    done = run("--from", "/dev/zero", "--to", good)
    assert done.output == "Error: /dev/zero has more than 1048576 bytes; it is no file of options\n"
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    done = run("--from", str(binary), "--to", good)
    assert done.output.startswith(f"Error: cannot read {binary}: ")


def test_one_file_needs_the_other(tmp_path: Path) -> None:
    good = yaml(tmp_path / "good.yaml", model="qwen3-8b", gpu="h200")
    done = run("--from", good)
    assert done.output == "Error: --from needs --to beside it, the plan to compare with\n"
    done = run("--to", good)
    assert done.output == "Error: --to needs --from beside it, the plan to compare with\n"
    assert done.exit_code == 2


def test_a_model_that_does_not_say_how_long(tmp_path: Path) -> None:
    config = {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "vocab_size": 128,
    }
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    done = run("--model", str(tmp_path), "--gpu", "h200")
    assert done.exit_code == 2
    assert "does not say how long a sequence may be; give --context, such as 4096" in done.output
    assert run("--model", str(tmp_path), "--gpu", "h200", "--context", "4096").exit_code == 0


CHECKS = [
    (("--check",), 2, "no model is named; use --model, such as --model qwen2.5-7b,llama3.1-8b"),
    (
        ("--check", "--model", " , "),
        2,
        "no model is named; use --model, such as --model qwen2.5-7b,llama3.1-8b",
    ),
    (
        ("--check", "--model", "qwen3-8b", "--gpu", "h200"),
        2,
        "--check starts vLLM on this machine's GPU, not on h200; leave --gpu out",
    ),
    (
        ("--check", "--model", "qwen3-8b", "--from", "a.yaml"),
        2,
        "--check and --from or --to exclude each other",
    ),
]


@pytest.mark.parametrize(("arguments", "code", "message"), CHECKS)
def test_what_a_check_refuses(arguments: tuple[str, ...], code: int, message: str) -> None:
    done = run(*arguments)
    assert (done.exit_code, done.output) == (code, f"Error: {message}\n")


def test_a_check_without_a_gpu() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = run("--check", "--model", "qwen3-8b")
    assert done.exit_code == 1
    assert done.output.startswith("Error: --check starts vLLM, and torch ")
    assert done.output.endswith("; leave --check out for a plan alone\n")


def test_the_gpu_table_is_no_result(tmp_path: Path) -> None:
    path = tmp_path / "gpus.json"
    done = run("--gpus", "--json", str(path))
    assert (done.exit_code, done.output) == (
        2,
        "Error: --gpus writes no result file; leave --json out\n",
    )
    assert not path.exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--check",), "--check"),
        (("--model", "qwen3-8b"), "--model"),
        (("--from", "a.yaml", "--to", "b.yaml"), "--from"),
        (("--gpu", "h200", "--eager"), "--eager"),
    ],
)
def test_the_gpu_table_plans_nothing(options: tuple[str, ...], said: str) -> None:
    done = run("--gpus", *options)
    assert (done.exit_code, done.output) == (
        2,
        f"Error: --gpus shows the GPU table and plans nothing; leave {said} out\n",
    )


def test_a_folder_with_its_config_alone_is_planned_as_it_is_stored(tmp_path: Path) -> None:
    config = dict(model_config("llama3.2-1b"))
    config["quantization_config"] = {"quant_method": "awq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    options = ("--model", str(tmp_path), "--gpu", "h200", "--max-seqs", "1")
    said = run(*options, "--context", "64").output.splitlines()[1]
    assert "(awq) on h200" in said
    assert "(none) on h200" in run(*options, "--context", "64", "--quant", "none").output


def test_the_gpu_table_and_its_sources() -> None:
    done = run("--gpus")
    assert done.exit_code == 0
    rows = {line.split()[0]: line for line in done.output.splitlines() if line.split()}
    assert set(gpu_keys()) <= set(rows)
    assert "h100-80gb" in rows["h100-sxm"]
    assert " - " in rows["v100-sxm2-16gb"]  # No BF16, no FP8.
    one = run("--gpus", "--gpu", "h100-80gb")
    assert one.output.startswith("H100 SXM 80 GB, Hopper\n")
    assert "1978.9  NVIDIA H100 Tensor Core GPU Architecture whitepaper" in one.output
    assert run("--gpus", "--gpu", "h1000").exit_code == 2
