"""Recipes: what a file holds is what was meant, and what is no recipe says why."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slidesparse import recipe as module
from slidesparse.errors import PatternError, ProblemError, RecipeError, UsageError
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType
from slidesparse.recipe import Method, Recipe

SIX = Pattern.parse("6:8")
TWO = Pattern.parse("2:4")
Q = "model.layers.0.self_attn.q_proj"

patterns = st.integers(1, 9).map(lambda n: DENSE if n == 1 else Pattern(2 * n - 2, 2 * n))
names = st.text(st.characters(codec="utf-8"), max_size=12)
recipes = st.builds(
    Recipe,
    pattern=patterns,
    method=st.sampled_from(Method),
    dtype=st.sampled_from([None, DType.FP8, DType.INT8]),
    keep=st.lists(names, max_size=3).map(tuple),
    layers=st.dictionaries(names, patterns, max_size=4),
)


def plain(**changes: Any) -> str:
    """A recipe's JSON with some fields replaced."""
    return json.dumps({**json.loads(Recipe().to_json()), **changes})


@given(recipes)
def test_what_is_written_is_read_back(made: Recipe) -> None:
    assert Recipe.from_json(made.to_json()) == made


def test_a_file_is_read_back(tmp_path: Path) -> None:
    made = Recipe(SIX, Method.SPARSEGPT, None, ("lm_head", "o_proj"), {Q: TWO, "ü": DENSE})
    path = tmp_path / "recipe.json"
    path.write_text(made.to_json(), encoding="utf-8")
    assert Recipe.read(path) == made


def test_a_file_is_plain_json() -> None:
    data = json.loads(Recipe(SIX, Method.WANDA, DType.INT8, (), {Q: TWO}).to_json())
    assert data == {
        "version": 1,
        "pattern": "6:8",
        "method": "wanda",
        "dtype": "int8",
        "keep": [],
        "layers": {Q: "2:4"},
    }


def test_the_zeros_notation_and_short_dtypes_are_understood() -> None:
    made = Recipe.from_json(plain(pattern="2:8", dtype="fp8", layers={Q: "2:6"}))
    assert (made.pattern, made.dtype, made.layers) == (SIX, DType.FP8, {Q: Pattern(4, 6)})


@pytest.mark.parametrize(
    ("keep", "name", "kept"),
    [
        ("lm_head", "lm_head", True),
        ("lm_head", "model.lm_head", True),
        ("lm_head", "lm_head.extra", False),
        ("o_proj", Q, False),
        ("q_proj", Q, True),
        ("q_*", Q, True),
        ("*", Q, True),
        ("?_proj", Q, True),
        ("?_proj", "model.layers.0.mlp.gate_proj", False),
        ("Q_proj", Q, False),
        (Q, Q, True),
        ("model.layers.0.*", Q, True),
        ("model.layers.1.*", Q, False),
        ("self_attn.q_proj", Q, False),
        ("*.q_proj", Q, True),
        ("[pq]_proj", Q, True),
        ("", Q, False),
    ],
)
def test_kept(keep: str, name: str, kept: bool) -> None:
    made = Recipe(SIX, keep=("nothing", keep))
    assert made.kept(name) is kept
    assert made.pattern_of(name) == (DENSE if kept else SIX)


def test_nothing_is_kept_without_names() -> None:
    assert not Recipe(keep=()).kept("lm_head")


def test_layers_go_before_the_pattern_and_keep_before_layers() -> None:
    made = Recipe(SIX, keep=("k_proj",), layers={Q: TWO, "a.k_proj": TWO, "b": DENSE})
    assert made.pattern_of(Q) == TWO
    assert made.pattern_of("a.k_proj") == DENSE
    assert made.pattern_of("b") == DENSE
    assert made.pattern_of("a.v_proj") == SIX


def test_methods_that_look_at_inputs() -> None:
    assert [method for method in Method if method.calibrated] == [Method.WANDA, Method.SPARSEGPT]
    assert str(Method.SPARSEGPT) == "sparsegpt"


@pytest.mark.parametrize("dtype", [DType.BF16, DType.FP32, DType.INT32])
def test_a_dtype_that_linears_do_not_have(dtype: DType) -> None:
    with pytest.raises(RecipeError, match=f"cannot quantise to {dtype}; use fp8, int8 or none"):
        Recipe(dtype=dtype)


FIELDS = "a recipe has exactly dtype, keep, layers, method, pattern, version"
LISTS = "keep is a list of names and layers maps names to patterns"
UNREADABLE = [
    ("{", RecipeError, "not JSON: "),
    ("[" * 100_000, RecipeError, "not JSON: "),
    ("[]", RecipeError, f"it is no JSON object; {FIELDS}"),
    ("null", RecipeError, f"it is no JSON object; {FIELDS}"),
    (plain(more=1), RecipeError, f"it has an unknown 'more'; {FIELDS}"),
    (json.dumps({"version": 1}), RecipeError, f"it lacks 'dtype'; {FIELDS}"),
    (plain(version=2), RecipeError, "recipe version 2; this release reads 1"),
    (plain(version=True), RecipeError, "recipe version True; this release reads 1"),
    (plain(version=1.0), RecipeError, "recipe version 1.0; this release reads 1"),
    (plain(version="1"), RecipeError, "recipe version '1'; this release reads 1"),
    (plain(keep="lm_head"), RecipeError, LISTS),
    (plain(keep=[1]), RecipeError, LISTS),
    (plain(layers=[]), RecipeError, LISTS),
    (plain(pattern=68), RecipeError, "pattern: pattern 68 is no text"),
    (plain(layers={Q: None}), RecipeError, f"{Q}: pattern None is no text"),
    (plain(pattern="5:8"), PatternError, "pattern: pattern 5:8 is not of the (2N-2):2N family"),
    (plain(layers={Q: "six"}), PatternError, f"{Q}: cannot read pattern 'six'"),
    (
        plain(method="luck"),
        RecipeError,
        "unknown method 'luck'; use one of magnitude, wanda, sparsegpt",
    ),
    (plain(method=None), RecipeError, "unknown method None; use one of"),
    (plain(method=[1]), RecipeError, "unknown method [1]; use one of"),
    (plain(dtype=8), RecipeError, "dtype 8 is no text"),
    (plain(dtype="bf16"), ProblemError, "unknown dtype 'bf16'; use fp8 or int8"),
]


@pytest.mark.parametrize(("text", "kind", "message"), UNREADABLE)
def test_what_is_no_recipe_says_why(text: str, kind: type[UsageError], message: str) -> None:
    with pytest.raises(kind) as caught:
        Recipe.from_json(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "message"), [(text, message) for text, _, message in UNREADABLE])
def test_a_file_that_is_none_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        Recipe.read(path)
    assert str(caught.value).startswith(f"{path} is no recipe: ")
    assert message in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "none.json"
    with pytest.raises(RecipeError, match="No such file or directory") as caught:
        Recipe.read(path)
    assert str(caught.value) == f"cannot read {path}: No such file or directory"


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"cannot read .*: Is a directory"):
        Recipe.read(tmp_path)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(RecipeError, match=r"is no recipe: .*codec can't decode"):
        Recipe.read(path)


def test_a_file_that_is_far_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 3 << 20)
    path = tmp_path / "recipe.json"
    path.write_bytes(b" " * (3 << 20) + b"{")
    with pytest.raises(RecipeError, match="is no recipe: more than 3 MiB"):
        Recipe.read(path)
    path.write_bytes(Recipe().to_json().encode().ljust(3 << 20))
    assert Recipe.read(path) == Recipe()


@given(st.recursive(st.none() | st.booleans() | st.floats() | names, lambda s: st.lists(s)))
def test_any_json_is_a_recipe_or_a_usage_error(value: Any) -> None:
    for text in (json.dumps(value), plain(keep=value), plain(dtype=value), plain(method=value)):
        with suppress(UsageError):
            assert isinstance(Recipe.from_json(text), Recipe)
