"""`slidesparse allocate` on a tiny model: what it prints, writes and refuses."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import allocation_cases as cases
import pytest
from click.testing import CliRunner, Result

from slidesparse.accuracy.load import load_model
from slidesparse.accuracy.partial import PartialModel
from slidesparse.bench.allocation.record import AllocationRecord, read_json
from slidesparse.cache import TuningCache
from slidesparse.cli.main import cli
from slidesparse.devices import CPU, detect
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType
from slidesparse.prune.model import prune_model
from slidesparse.recipe import Method, Recipe

torch = pytest.importorskip("torch")
SIZES = ("--sequences", "24", "--probe", "12", "--windows", "60", "--length", str(cases.LENGTH))
BLOCKS = 3


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its texts and a filled cache; read only."""
    folder = tmp_path_factory.mktemp("allocate")
    cases.save_case(folder / "model")
    cases.fill(TuningCache(folder / "cache", detect(CPU)))
    return folder


def arguments(case: Path, out: Path, *more: str) -> list[str]:
    model = case / "model"
    texts = ("--text", str(model / "text.json"), "--calibration", str(model / "calibration.json"))
    places = ("--cache-dir", str(case / "cache"), "--device", "cpu", "--out", str(out))
    return ["allocate", str(model), *texts, *places, "--m", "64", *SIZES, *more]


def allocate(case: Path, out: Path, *more: str) -> Result:
    return CliRunner().invoke(cli, arguments(case, out, *more), env={"COLUMNS": None})


class Done:
    """One run and its files."""

    def __init__(self, case: Path, folder: Path, *more: str) -> None:
        self.out, self.json = folder / "recipe.json", folder / "out.json"
        self.result = allocate(case, self.out, "--json", str(self.json), *more)
        assert self.result.exit_code == 0, self.result.output
        self.recipe = Recipe.read(self.out)
        self.record: AllocationRecord = read_json(self.json)


@pytest.fixture(scope="module")
def at_speed(case: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    return Done(case, tmp_path_factory.mktemp("speed"), "--target-speedup", "6:8")


@pytest.fixture(scope="module")
def within_loss(case: Path, at_speed: Done, tmp_path_factory: pytest.TempPathFactory) -> Done:
    more = ("--max-perplexity-increase", "4%", "--reuse", str(at_speed.json))
    return Done(case, tmp_path_factory.mktemp("loss"), *more)


def row(record: AllocationRecord, name: str):
    return next(each for each in record.outcomes if each.name == name)


def test_the_first_line_says_that_there_is_no_gpu(at_speed: Done, case: Path) -> None:
    assert at_speed.result.stdout.splitlines()[0] == (
        f"No GPU in use: choosing patterns for {case / 'model'} by times of the CPU "
        f"({detect(CPU).name}) with small defaults. The choice says nothing about a GPU."
    )


def test_the_recipe_is_what_the_record_and_the_table_say(at_speed: Done) -> None:
    record, recipe = at_speed.record, at_speed.recipe
    assert (recipe.pattern, recipe.method) == (DENSE, Method.SPARSEGPT)
    assert (recipe.dtype, recipe.keep) == (DType.FP8, ("lm_head",))
    assert len(recipe.layers) == BLOCKS * 7
    for group in record.groups:
        for name in group.linears:
            assert recipe.pattern_of(name) == Pattern.parse(group.chosen)
    lines = at_speed.result.stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(" block"))
    for block in range(BLOCKS):
        cells = lines[start + 2 + block].split()
        chosen = [group.chosen for group in record.groups if group.block == block]
        assert cells == [str(block), *("-" if text == "dense" else text for text in chosen)]
    assert any(group.chosen != "dense" for group in record.groups)


def test_it_is_as_fast_as_asked_and_predicted_to_lose_less(at_speed: Done) -> None:
    record = at_speed.record
    uniform = row(record, "uniform 6:8")
    assert record.chosen.speedup >= uniform.speedup * (1 - 1e-9) == pytest.approx(1.15)
    assert record.chosen.predicted <= uniform.predicted
    assert record.chosen.proved
    assert [each.name for each in record.outcomes] == [
        "dense",
        *(f"uniform {pattern}" for pattern in cases.PATTERNS),
        "chosen",
    ]


def test_times_are_sums_over_groups(at_speed: Done) -> None:
    record = at_speed.record
    dense = sum(cases.dense_us(64, n, k) for n, k in cases.SHAPES.values()) * BLOCKS
    assert record.dense.us == pytest.approx(dense)
    chosen = math.fsum(group.us[group.chosen] for group in record.groups)
    assert record.chosen.us == pytest.approx(chosen)
    assert record.chosen.speedup == pytest.approx(dense / chosen)


def test_predictions_are_sums_of_divergences(at_speed: Done) -> None:
    record = at_speed.record
    for pattern in map(str, cases.PATTERNS):
        expected = math.fsum(group.kl[pattern] for group in record.groups)
        assert row(record, f"uniform {pattern}").predicted == pytest.approx(expected)
        # On text of the model's own the sum is near the truth.
        truth = row(record, f"uniform {pattern}").increase
        assert 0.4 < truth / expected < 2.5
    chosen = math.fsum(g.kl[g.chosen] for g in record.groups if g.chosen != "dense")
    assert record.chosen.predicted == pytest.approx(chosen)


def test_the_measured_loss_is_that_of_the_recipe(at_speed: Done, case: Path) -> None:
    def ids(name: str) -> Any:
        return torch.tensor(json.loads((case / "model" / f"{name}.json").read_text()))

    from slidesparse.accuracy.text import calibration_tokens

    source = case / "model" / "calibration.json"
    drawn = calibration_tokens(source, None, 36, cases.LENGTH, 0)[:24]
    model = load_model(case / "model", torch.float32, "cpu")
    held_out = ids("text").view(-1, cases.LENGTH)[:60]
    dense = PartialModel(model).losses(held_out)
    prune_model(model, at_speed.recipe, drawn)
    loss = PartialModel(model).losses(held_out)
    chosen = at_speed.record.chosen
    assert chosen.loss == pytest.approx(sum(loss) / 60, rel=1e-6)
    assert chosen.increase == pytest.approx((sum(loss) - sum(dense)) / 60, abs=1e-6)
    assert at_speed.record.settings["held_out_tokens"] == 60 * cases.LENGTH


def test_the_table_of_outcomes_is_the_record(at_speed: Done) -> None:
    output = at_speed.result.stdout
    for each in at_speed.record.outcomes:
        line = next(li for li in output.splitlines() if li.startswith(f" {each.name} "))
        cells = re.split(r"\s{2,}", line.strip())
        assert cells[0] == each.name
        assert cells[1:] == [
            f"{each.us / 1e3:.3f}",
            f"{each.speedup:.3f}x",
            f"{100 * each.zeros:.1f}",
            f"{each.predicted:+.4f}",
            f"{each.increase:+.4f}",
            f"{each.error:.4f}",
            f"{math.exp(each.loss):.2f}",
            f"{100 * math.expm1(each.increase):+.1f} %",
        ]
    for verdict in at_speed.record.verdicts:
        assert verdict in output
    assert "GEMMs fp8_e4m3 -> bf16, scales rowcol of all groups at M = 64" in output
    assert "(20 cached)" in output
    assert f"recipe: {at_speed.out}" in output
    assert "stay dense" not in output


def test_within_a_loss_that_is_measured(within_loss: Done) -> None:
    record = within_loss.record
    assert math.expm1(record.chosen.increase) <= 0.04
    assert record.chosen.speedup > 1
    rounds = [each for each in record.outcomes if each.name.startswith("round")]
    within = [each for each in rounds if math.expm1(each.increase) <= 0.04]
    assert record.chosen.us == min(each.us for each in within)
    others = [row(record, f"uniform {p}") for p in cases.PATTERNS]
    good = [each for each in others if math.expm1(each.increase) <= 0.04]
    assert all(record.chosen.us <= each.us * 1.02 for each in good)


def test_reused_sensitivities_are_those_of_the_file(at_speed: Done, within_loss: Done) -> None:
    mine, theirs = within_loss.record, at_speed.record
    assert [g.kl for g in mine.groups] == [g.kl for g in theirs.groups]
    assert (mine.dense_loss, mine.tokens) == (theirs.dense_loss, theirs.tokens)


def test_a_second_run_is_the_same(at_speed: Done, case: Path, tmp_path: Path) -> None:
    again = Done(case, tmp_path, "--target-speedup", "6:8", "--no-compare", "-q")
    assert again.result.stdout == ""
    assert again.recipe == at_speed.recipe
    assert [each.name for each in again.record.outcomes] == ["dense", "chosen"]
    assert again.record.verdicts == ()


def test_magnitude_int8_kept_linears_and_a_mix(case: Path, tmp_path: Path) -> None:
    copied = tmp_path / "case"
    shutil.copytree(case, copied)
    cases.fill(TuningCache(copied / "cache", detect(CPU)), (64, 256), dtype=DType.INT8)
    more = ("--target-speedup", "1.05x", "--method", "magnitude", "--dtype", "int8", "--no-compare")
    more = (*more, "--precision", "bfloat16")
    mix = ("--m", "64:10,256", "--keep", "lm_head,o_proj,model.layers.0.*", "--patterns", "6:8,2:4")
    done = Done(copied, tmp_path, *more, *mix)
    assert {(g.block, g.name) for g in done.record.groups} == {
        (block, name) for block in (1, 2) for name in ("qkv", "gate_up", "down")
    }
    assert (done.recipe.method, done.recipe.dtype) == (Method.MAGNITUDE, DType.INT8)
    assert done.recipe.kept("model.layers.0.mlp.up_proj")
    assert done.record.settings["m"] == ["64:10", "256"]
    assert done.record.settings["sequences"] == 0
    assert done.record.settings["precision"] == "bfloat16"
    n, k = cases.SHAPES["down"]
    down = next(g for g in done.record.groups if g.name == "down")
    dense = 10 * cases.dense_us(64, n, k) + cases.dense_us(256, n, k)
    assert down.us == pytest.approx({"dense": dense, "6:8": dense / 1.15, "2:4": dense / 1.6})
    assert "9 linears stay dense and are in no time, first model.layers.0" in done.result.stdout


def test_nothing_is_faster(case: Path, tmp_path: Path) -> None:
    copied = tmp_path / "case"
    shutil.copytree(case, copied)
    slow = dict.fromkeys(cases.GAINS, 0.9)
    cases.fill(TuningCache(copied / "cache", detect(CPU)), gains=slow)
    done = Done(copied, tmp_path, "--max-perplexity-increase", "5", "--no-compare")
    assert set(done.recipe.layers.values()) == {DENSE}
    assert "no pattern is faster than dense on these shapes; try a larger --m" in done.result.stdout
    failed = allocate(copied, tmp_path / "r", "--target-speedup", "1.01")
    assert failed.exit_code == 2
    assert "the fastest reaches 1.000x" in failed.output


def test_every_faster_pattern_costs_too_much(case: Path, tmp_path: Path) -> None:
    limit = ("--max-perplexity-increase", "0.000001", "--patterns", "2:4", "--no-compare")
    done = Done(case, tmp_path, *limit)
    if all(group.chosen == "dense" for group in done.record.groups):
        assert "every faster pattern costs more than what is allowed" in done.result.stdout
    assert math.expm1(done.record.chosen.increase) <= 1e-8


def test_missing_times_are_searched_when_asked(case: Path, tmp_path: Path) -> None:
    copied = tmp_path / "case"
    shutil.copytree(case / "model", copied / "model")
    goal = ("--max-perplexity-increase", "5", "--patterns", "6:8", "--method", "magnitude")
    failed = allocate(copied, tmp_path / "r", *goal)
    assert failed.exit_code == 2
    assert f"8 of 8 GEMM times are missing on {detect(CPU).name}" in failed.output
    assert f"pass --search, or run slidesparse search --model {copied / 'model'}" in failed.output
    assert not (tmp_path / "r").exists()
    done = Done(copied, tmp_path, *goal, "--search")
    assert done.record.provenance == {"cached": 8}


def test_the_same_text_for_both_is_remarked(case: Path, tmp_path: Path) -> None:
    found = arguments(case, tmp_path / "r", "--target-speedup", "1.05", "--no-compare")
    index = found.index("--calibration")
    del found[index : index + 2]
    result = CliRunner().invoke(cli, found, env={"COLUMNS": None})
    assert result.exit_code == 0, result.output
    assert "note: no --calibration, so weights are dropped by the text that" in result.stdout


GOAL = ("--target-speedup", "1.1")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "give one of --max-perplexity-increase 5% and --target-speedup 1.15"),
        ((*GOAL, "--max-perplexity-increase", "5%"), "give one of --max-perplexity-increase"),
        (("--target-speedup", "1"), "1 is no speedup over dense; use more than 1"),
        (("--target-speedup", "nan"), "nan is no speedup over dense"),
        (("--target-speedup", "fast"), "'fast' is neither a speedup such as 1.15 nor a pattern"),
        (("--target-speedup", "5:8"), "pattern 5:8 is not of the (2N-2):2N family"),
        (("--target-speedup", "10:12"), "--target-speedup 10:12 is not one of --patterns"),
        (("--target-speedup", "2.5"), "no choice of patterns is 2.500x as fast as dense"),
        (("--max-perplexity-increase", "0"), "0 is not more than 0%"),
        (("--max-perplexity-increase", "-3%"), "-3% is not more than 0%"),
        (("--max-perplexity-increase", "inf"), "inf is not more than 0%"),
        (("--max-perplexity-increase", "some"), "'some' is not a number of percent such as 5%"),
        ((*GOAL, "--m", "64:"), None),
        ((*GOAL, "--m", "x"), "'x' is neither M nor M:COUNT"),
        ((*GOAL, "--m", "64:0"), "'64:0' is out of range"),
        ((*GOAL, "--m", "0"), "'0' is out of range"),
        ((*GOAL, "--m", "64,4096"), "GEMM times are missing"),
        ((*GOAL, "--patterns", "dense"), "--patterns names nothing but dense"),
        ((*GOAL, "--dtype", "bf16"), "unknown dtype"),
        ((*GOAL, "--method", "luck"), "'luck' is not one of"),
        ((*GOAL, "--precision", "fp4"), "'fp4' is not one of"),
        ((*GOAL, "--keep", "*"), "none of the 21 linears"),
        ((*GOAL, "--reuse", "none.json"), "cannot read none.json: No such file"),
        ((*GOAL, "--device", "tpu"), "unknown device 'tpu'"),
    ],
)
def test_bad_usage_exits_with_two(
    case: Path, tmp_path: Path, more: tuple[str, ...], message: str | None
) -> None:
    out = tmp_path / "recipe.json"
    result = allocate(case, out, *more)
    if message is None:
        assert result.exit_code == 0, result.output
        return
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert not out.exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ("--sequences", "500"),
            "calibration needs 512 x 24 = 12,288 tokens; calibration",
        ),
        (("--length", "5000"), "calibration needs 36 x 5000 = 180,000 tokens"),
        (("--text", "none.txt"), "cannot read none.txt: No such file or directory"),
        (("--calibration", "none.json"), "cannot read none.json: No such file or directory"),
    ],
)
def test_bad_text_exits_with_one(
    case: Path, tmp_path: Path, more: tuple[str, ...], message: str
) -> None:
    result = allocate(case, tmp_path / "r", *GOAL, *more)
    assert result.exit_code == 1, result.output
    assert message in result.output


def test_held_out_text_shorter_than_a_window(case: Path, tmp_path: Path) -> None:
    (tmp_path / "short.json").write_text("[1, 2, 3]")
    result = allocate(case, tmp_path / "r", *GOAL, "--text", str(tmp_path / "short.json"))
    assert result.exit_code == 1
    assert "short.json has 3 tokens, fewer than one window of 24; lower --length" in result.output


def test_ids_that_the_model_does_not_have(case: Path, tmp_path: Path) -> None:
    (tmp_path / "high.json").write_text(json.dumps([5] * 30 + [97] * 30))
    result = allocate(case, tmp_path / "r", *GOAL, "--text", str(tmp_path / "high.json"))
    assert result.exit_code == 1
    assert "token id 97 is not in the model's vocabulary of 97" in result.output


def test_a_model_that_is_not_there(case: Path, tmp_path: Path) -> None:
    found = arguments(case, tmp_path / "r", *GOAL)
    found[1] = str(tmp_path / "nothing")
    result = CliRunner().invoke(cli, found)
    assert result.exit_code == 2
    assert "is no model: name a directory, a Hugging Face id or a .gguf file" in result.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["settings"].update(seed=9), "was made with seed 9, this run has 0"),
        (lambda d: d["settings"].update(method="wanda"), "was made with method 'wanda', this run"),
        (lambda d: d.update(dense_loss=1.0), "its dense loss is 1.0000, here "),
        (lambda d: d["groups"][2]["kl"].pop("6:8"), "lacks 6:8 of block 0 gate_up; leave out"),
        (lambda d: d["groups"].pop(), "lacks 2:4 of block 2 down; leave out --reuse"),
        (lambda d: d.update(kind="other"), "is not a result file of slidesparse allocate"),
    ],
)
def test_sensitivities_of_another_run_are_refused(
    at_speed: Done, case: Path, tmp_path: Path, change: Any, message: str
) -> None:
    data = json.loads(at_speed.json.read_text())
    change(data)
    path = tmp_path / "old.json"
    path.write_text(json.dumps(data))
    result = allocate(case, tmp_path / "r", *GOAL, "--reuse", str(path))
    assert result.exit_code == 2, result.output
    assert message in result.output


def test_files_that_cannot_be_written_are_refused_at_once(case: Path, tmp_path: Path) -> None:
    result = allocate(case, tmp_path / "no" / "r", *GOAL)
    assert result.exit_code == 2
    assert f"the folder {tmp_path / 'no'} does not exist" in result.output
    result = allocate(case, tmp_path / "r", *GOAL, "--json", str(tmp_path / "r"))
    assert result.exit_code == 2
    assert "--out and --json both name" in result.output


def test_help_is_quick_and_names_the_goals() -> None:
    result = CliRunner().invoke(cli, ["allocate", "--help"])
    assert result.exit_code == 0
    for option in ("--max-perplexity-increase", "--target-speedup", "--reuse", "--search"):
        assert option in result.output
