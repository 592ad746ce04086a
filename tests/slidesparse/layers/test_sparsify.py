"""sparsify_ replaces the linears that it is told to, all of them or none."""

from __future__ import annotations

import layer_checks as checks
import pytest
import tiny_models
import torch
from torch import nn

from slidesparse.errors import KernelError, PatternError, UsageError
from slidesparse.layers import SparseLinear, sparsify_
from slidesparse.pattern import Pattern
from slidesparse.recipe import Method
from slidesparse.slide import detect_pattern

K = 48


class Block(nn.Module):
    """Two linears and a head, as models name them."""

    def __init__(self, pattern: str = "6:8") -> None:
        super().__init__()
        self.up = checks.linear_of(88, K, pattern)
        self.inner = nn.ModuleDict({"down": checks.linear_of(K, 88, pattern, bias=False)})
        self.norm = nn.LayerNorm(K, dtype=torch.bfloat16)
        self.lm_head = checks.linear_of(97, K, "dense", bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A small network."""
        out: torch.Tensor = self.lm_head(self.norm(self.inner["down"](self.up(x).relu())))
        return out


def replaced(model: nn.Module) -> list[str]:
    every = model.named_modules(remove_duplicate=False)
    return [name for name, module in every if isinstance(module, SparseLinear)]


@pytest.mark.parametrize("dtype", ["fp8", "int8"])
@pytest.mark.parametrize("pattern", ["6:8", Pattern.parse("6:8")])
def test_every_linear_but_the_head(pattern, dtype):
    model = Block()
    x = checks.tokens(5, K)
    before = model(x)
    assert sparsify_(model, pattern, dtype) is model
    assert replaced(model) == ["up", "inner.down"]
    assert type(model.lm_head) is nn.Linear
    assert type(model.norm) is nn.LayerNorm
    for layer in (model.up, model.inner["down"]):
        assert str(layer.pattern) == "6:8"
        y = checks.tokens(5, layer.in_features)
        checks.assert_right(layer(y), layer, y)
    with torch.no_grad():
        loss = float((model(x) - before).double().norm() / before.double().norm())
    assert 0 < loss < 0.1


def test_fp8_unless_told():
    model = sparsify_(Block(), "6:8")
    assert str(model.up.quantised) == "fp8_e4m3"


def test_the_filter_sees_each_linear_with_its_full_name():
    model, seen = Block(), {}

    def keep_down(module: nn.Module, name: str) -> bool:
        seen[name] = module
        return not name.endswith("down")

    originals = {"up": model.up, "inner.down": model.inner["down"], "lm_head": model.lm_head}
    with pytest.raises(PatternError, match=r"^lm_head: row 0, block 0"):
        sparsify_(model, "6:8", filter_fn=keep_down)
    assert seen == originals
    sparsify_(model, "6:8", filter_fn=lambda module, name: name == "up")
    assert replaced(model) == ["up"]


def test_a_filter_may_take_the_head():
    model = sparsify_(Block(), "dense", filter_fn=lambda module, name: True)
    assert replaced(model) == ["up", "inner.down", "lm_head"]


@pytest.mark.parametrize("method", ["magnitude", Method.MAGNITUDE])
def test_pruning_on_the_way(method):
    model = sparsify_(Block("dense"), "2:4", "int8", prune=method)
    assert detect_pattern(model.up.weight) == Pattern.parse("2:4")


def test_the_memory_format_is_passed_on():
    model = sparsify_(Block(), "6:8", memory_format="smallest")
    assert model.up.memory_format == "smallest"
    with pytest.raises(KernelError, match=r"^up: memory_format 'tiny'; use fastest or smallest$"):
        sparsify_(Block(), "6:8", memory_format="tiny")


class TestShared:
    def test_a_linear_in_two_places_is_one_layer_in_both(self):
        model = Block()
        model.again = nn.Sequential(model.up)
        sparsify_(model, "6:8")
        assert replaced(model) == ["up", "inner.down", "again.0"]
        assert model.again[0] is model.up

    def test_a_filter_may_take_one_place_only(self):
        model = Block()
        model.again = nn.Sequential(model.up)
        original = model.up
        sparsify_(model, "6:8", filter_fn=lambda module, name: name.startswith("again"))
        assert replaced(model) == ["again.0"]
        assert model.up is original

    def test_a_head_that_is_the_embedding_stays(self):
        model = tiny_models.tiny_model(tie_word_embeddings=True)
        sparsify_(model, "6:8", prune="magnitude")
        assert model.lm_head.weight is model.model.embed_tokens.weight

    def test_a_shared_container(self):
        inner = nn.Sequential(checks.linear_of(K, K, "6:8"))
        model = sparsify_(nn.ModuleList([inner, inner]), "6:8")
        assert replaced(model) == ["0.0", "1.0"]
        assert model[0] is model[1]


class TestRefusals:
    """What cannot be replaced is named, and the model is left as it was."""

    @pytest.mark.parametrize("breaks", ["up", "inner.down"])
    def test_a_weight_that_breaks_the_pattern(self, breaks):
        model = Block()
        with torch.no_grad():
            model.get_submodule(breaks).weight[3, 8:16] = 1.0
        modules = dict(model.named_modules())
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(PatternError) as raised:
            sparsify_(model, "6:8")
        assert str(raised.value) == (
            f"{breaks}: row 3, block 1 (columns 8 to 15) holds 8 non-zeros, pattern 6:8 allows 6; "
            "prune the weight first"
        )
        assert dict(model.named_modules()) == modules
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())

    def test_a_weight_that_is_not_finite(self):
        model = Block()
        with torch.no_grad():
            model.up.weight[3, 8] = float("nan")
        with pytest.raises(KernelError, match=r"^up: row 3 of the weight holds NaN or infinity"):
            sparsify_(model, "6:8")
        assert not replaced(model)

    def test_a_linear_of_another_dtype(self):
        model = Block().double()
        with pytest.raises(KernelError, match=r"^up: a weight of torch.float64 \(88, 48\)"):
            sparsify_(model, "6:8")
        assert not replaced(model)

    @pytest.mark.parametrize(
        ("model", "options"),
        [
            (nn.Sequential(nn.ReLU()), {}),
            (Block(), {"filter_fn": lambda module, name: False}),
            (nn.ModuleDict({"lm_head": nn.Linear(8, 8)}), {}),
            (nn.MultiheadAttention(8, 2), {}),  # Its linear's weight is read and not called.
            (nn.Sequential(nn.Bilinear(8, 8, 8)), {}),
        ],
        ids=["no linear", "filtered", "head only", "subclass", "bilinear"],
    )
    def test_nothing_to_replace(self, model, options):
        with pytest.raises(UsageError) as raised:
            sparsify_(model, "dense", **options)
        assert str(raised.value) == "the model has no nn.Linear that filter_fn takes"

    def test_nothing_left_to_replace(self):
        model = sparsify_(Block(), "6:8")
        with pytest.raises(UsageError, match=r"no nn.Linear"):
            sparsify_(model, "6:8")

    def test_a_linear_by_itself(self):
        with pytest.raises(UsageError) as raised:
            sparsify_(nn.Linear(8, 8), "dense")
        assert str(raised.value) == ("the model is itself a linear; use SparseLinear.from_linear")


@pytest.mark.parametrize("kind", ["Llama", "Qwen2"])
def test_a_transformers_model_runs_and_loads_its_state(kind):
    """Sizes of 48 and 88: K' is padded."""
    model = tiny_models.tiny_model(kind)
    names = [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear and name != "lm_head"
    ]
    tokens = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        dense = model(tokens).logits
    sparsify_(model, "8:10", "int8", prune="magnitude")
    assert replaced(model) == names
    with torch.no_grad():
        sparse = model(tokens).logits
    assert sparse.isfinite().all()
    assert float((sparse - dense).norm() / dense.norm()) < 0.5
    other = sparsify_(tiny_models.tiny_model(kind, seed=2), "8:10", "int8", prune="magnitude")
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(other(tokens).logits, sparse)
