"""slide(W) @ lift(x) == W @ x exactly, every window is 2:4, unslide undoes it, bad input fails."""

import re
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from slidesparse import slide as module
from slidesparse.errors import PatternError
from slidesparse.pattern import DENSE, Pattern
from slidesparse.slide import detect_pattern, lift, prune_magnitude, slide, unslide

FAMILY = [Pattern(2 * n - 2, 2 * n) for n in range(2, 10)]
COMMON = FAMILY[:4]
FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
NEGATIVE_ZERO = 0x80


def generator(seed):
    return torch.Generator().manual_seed(seed)


def pruned_integers(pattern, rows, k, seed, top=100):
    """An integer weight of the pattern, in float64 so that sums are exact."""
    w = torch.randint(-top, top + 1, (rows, k), generator=generator(seed)).double()
    return prune_magnitude(w, pattern)


def nonzeros_per_window(slid):
    return (slid.double() != 0).reshape(slid.shape[0], -1, 4).sum(dim=2)


@given(
    pattern=st.sampled_from(FAMILY),
    rows=st.integers(1, 5),
    m=st.integers(1, 7),
    k=st.integers(1, 70),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=150)
def test_the_reconstruction_is_exact(pattern, rows, m, k, seed):
    w = pruned_integers(pattern, rows, k, seed)
    x = torch.randint(-128, 128, (m, k), generator=generator(seed + 1)).double()
    slid, lifted = slide(w, pattern), lift(x, pattern)
    assert slid.shape == (rows, pattern.expanded_k(k))
    assert lifted.shape == (m, pattern.expanded_k(k))
    assert nonzeros_per_window(slid).max() <= 2
    assert torch.equal(lifted @ slid.t(), x @ w.t())
    # Every non-zero is placed exactly once: nothing is lost and nothing counts twice.
    assert torch.equal((slid != 0).sum(dim=1), (w != 0).sum(dim=1))


@pytest.mark.parametrize("pattern", FAMILY, ids=str)
def test_every_arrangement_of_one_full_block_is_placed(pattern):
    """All C(2N, 2) places of the two zeros: the greedy never fails."""
    rows = []
    for first in range(pattern.block):
        for second in range(first + 1, pattern.block):
            row = torch.arange(1.0, pattern.block + 1)
            row[[first, second]] = 0
            rows.append(row)
    w = torch.stack(rows)
    slid = slide(w, pattern)
    assert nonzeros_per_window(slid).max() <= 2
    assert torch.equal(lift(torch.eye(pattern.block), pattern) @ slid.t(), w.t())


def test_the_greedy_puts_each_weight_where_the_paper_does():
    w = torch.tensor([[1, 2, 0, 3, 4, 5, 6, 0], [0, 0, 1, 2, 3, 4, 5, 6]], dtype=torch.float32)
    slid = slide(w, Pattern.parse("6:8"))
    assert slid[:, :12].tolist() == [
        [1, 2, 0, 0, 0, 3, 4, 0, 0, 5, 6, 0],
        [0, 0, 1, 2, 0, 0, 3, 4, 0, 0, 5, 6],
    ]
    assert (slid[:, 12:] == 0).all()


@pytest.mark.parametrize("pattern", FAMILY, ids=str)
@pytest.mark.parametrize("k", [1, 7, 129, 200])
def test_k_that_is_no_multiple_of_the_block(pattern, k, seed):
    w = pruned_integers(pattern, 3, k, seed)
    x = torch.randint(-128, 128, (7, k), generator=generator(seed)).double()
    slid = slide(w, pattern)
    assert slid.shape[1] == pattern.expanded_k(k)
    assert slid.shape[1] % 32 == 0
    assert torch.equal(lift(x, pattern) @ slid.t(), x @ w.t())


@pytest.mark.parametrize("pattern", FAMILY, ids=str)
def test_blocks_of_zeros_stay_zero(pattern, seed):
    w = pruned_integers(pattern, 4, 5 * pattern.block, seed)
    w[:, pattern.block : 3 * pattern.block] = 0
    w[2] = 0
    slid = slide(w, pattern)
    width = 4 * pattern.windows
    assert (slid[:, width : 3 * width] == 0).all()
    assert (slid[2] == 0).all()
    assert (slid[0] != 0).any()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("pattern", ["2:4", "6:8", "16:18"])
def test_float_dtypes_keep_their_values(dtype, pattern, seed):
    pattern = Pattern.parse(pattern)
    w = prune_magnitude(torch.randn(7, 129, generator=generator(seed)).to(dtype), pattern)
    slid = slide(w, pattern)
    assert slid.dtype is dtype
    assert nonzeros_per_window(slid).max() <= 2
    # The identity on the left reads every weight back, bit for bit.
    back = lift(torch.eye(129, dtype=torch.float64), pattern) @ slid.double().t()
    assert torch.equal(back.t(), w.double())


@pytest.mark.parametrize("pattern", ["2:4", "6:8", "16:18"])
def test_int8_keeps_its_values(pattern, seed):
    pattern = Pattern.parse(pattern)
    w = pruned_integers(pattern, 7, 200, seed, top=127).to(torch.int8)
    x = torch.randint(-128, 128, (5, 200), generator=generator(seed)).to(torch.int8)
    slid, lifted = slide(w, pattern), lift(x, pattern)
    assert slid.dtype is lifted.dtype is torch.int8
    assert torch.equal(lifted.double() @ slid.double().t(), x.double() @ w.double().t())


def test_int8_minus_128_is_a_weight_like_any_other():
    w = torch.tensor([[-128, 0, 0, -128]], dtype=torch.int8)
    assert slide(w, Pattern.parse("2:4"))[0, :4].tolist() == [-128, 0, 0, -128]
    with pytest.raises(PatternError, match="holds 3 non-zeros"):
        slide(torch.tensor([[-128, 1, 0, -128]], dtype=torch.int8), Pattern.parse("2:4"))


@pytest.mark.parametrize("pattern", ["2:4", "6:8", "16:18"])
def test_fp8_keeps_its_bits(pattern, seed):
    pattern = Pattern.parse(pattern)
    w = prune_magnitude(torch.randn(7, 200, generator=generator(seed)), pattern)
    w = (100 * w).to(torch.float8_e4m3fn)
    slid = slide(w, pattern)
    assert slid.dtype is torch.float8_e4m3fn
    assert nonzeros_per_window(slid.float()).max() <= 2
    back = lift(torch.eye(200, dtype=torch.float64), pattern) @ slid.double().t()
    assert torch.equal(back.t(), w.double())


def test_fp8_negative_zeros_count_as_zeros():
    bits = torch.tensor([[0x38, NEGATIVE_ZERO, NEGATIVE_ZERO, 0xB8]], dtype=torch.uint8)
    slid = slide(bits.view(torch.float8_e4m3fn), Pattern.parse("2:4"))
    assert slid.view(torch.uint8)[0, :4].tolist() == [0x38, 0, 0, 0xB8]
    full = torch.full((1, 8), NEGATIVE_ZERO, dtype=torch.uint8).view(torch.float8_e4m3fn)
    assert (slide(full, Pattern.parse("6:8")).view(torch.uint8) == 0).all()


def test_a_byte_of_0x80_is_a_weight_in_int8_but_not_in_fp8():
    bits = torch.tensor([[NEGATIVE_ZERO] * 3 + [0]], dtype=torch.uint8)
    with pytest.raises(PatternError, match="holds 3 non-zeros"):
        slide(bits.view(torch.int8), Pattern.parse("2:4"))
    assert (slide(bits.view(torch.float8_e4m3fn), Pattern.parse("2:4")).float() == 0).all()


def test_infinite_weights_stay_in_their_place():
    w = torch.tensor([[0, 0, float("inf"), 1, 2, 0]])
    slid = slide(w, Pattern.parse("4:6"))
    assert slid[0, :8].tolist() == [0, 0, float("inf"), 1, 0, 0, 2, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8, torch.float8_e4m3fn], ids=str)
def test_a_weight_that_breaks_the_pattern_is_refused_by_place(dtype):
    w = torch.zeros(5, 40)
    w[3, 16:23] = 1  # Seven in block 2 of row 3.
    w[4, 0:8] = 1
    with pytest.raises(PatternError) as caught:
        slide(w.to(dtype), Pattern.parse("6:8"))
    assert str(caught.value) == (
        "row 3, block 2 (columns 16 to 23) holds 7 non-zeros, pattern 6:8 allows 6; "
        "prune the weight first"
    )


def test_dense_is_returned_as_it_is(seed):
    w = torch.randn(3, 7, generator=generator(seed))
    assert slide(w, DENSE) is w
    assert lift(w, DENSE) is w
    assert prune_magnitude(w, DENSE) is w


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8, torch.float8_e4m3fn], ids=str)
def test_lift_pads_with_zeros_and_gathers_by_the_index(dtype, seed):
    x = torch.randint(1, 100, (7, 13), generator=generator(seed)).float().to(dtype)
    pattern = Pattern.parse("6:8")
    lifted = lift(x, pattern).double()
    index = pattern.lift_index(13)
    for position, source in enumerate(index.tolist()):
        wanted = torch.zeros(7).double() if source < 0 else x[:, source].double()
        assert torch.equal(lifted[:, position], wanted), position


@given(
    pattern=st.sampled_from(FAMILY),
    rows=st.integers(1, 4),
    k=st.integers(1, 60),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60)
def test_pruning_keeps_the_largest(pattern, rows, k, seed):
    w = torch.randn(rows, k, generator=generator(seed))
    before = w.clone()
    pruned = prune_magnitude(w, pattern)
    assert torch.equal(w, before), "the input must not change"
    assert pruned.shape == w.shape
    for row in range(rows):
        for start in range(0, k, pattern.block):
            stop = min(start + pattern.block, k)
            # A short last block is padded with zeros, which are the first to go.
            dropped = max(0, 2 - (pattern.block - (stop - start)))
            order = w[row, start:stop].abs().sort().indices
            wanted = w[row, start:stop].clone()
            wanted[order[:dropped]] = 0
            assert torch.equal(pruned[row, start:stop], wanted), (row, start)


def greedy(row, pattern):
    """The paper's assignment of one row of Python numbers, weight by weight."""
    row = row + [0] * (-len(row) % pattern.block)
    slid = []
    for start in range(0, len(row), pattern.block):
        left = row[start : start + pattern.block]
        for window in range(pattern.windows):
            four = [0] * 4
            for place in range(4):
                if left[2 * window + place] and sum(map(bool, four)) < 2:
                    four[place], left[2 * window + place] = left[2 * window + place], 0
            slid += four
        assert not any(left)
    return slid + [0] * (-len(slid) % 32)


def sparse_integers(pattern, rows, k, seed):
    """Blocks with anything from no non-zero to as many as the pattern allows."""
    w = torch.randint(-3, 4, (rows, k), generator=generator(seed)).double()
    return prune_magnitude(w, pattern)


@given(
    pattern=st.sampled_from(FAMILY),
    rows=st.integers(1, 6),
    k=st.integers(1, 70),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=150)
def test_slide_is_the_greedy_and_unslide_undoes_it(pattern, rows, k, seed):
    w = sparse_integers(pattern, rows, k, seed)
    before = w.clone()
    slid = slide(w, pattern)
    assert slid.tolist() == [greedy(row, pattern) for row in w.tolist()]
    assert torch.equal(unslide(slid, pattern, k), w)
    assert torch.equal(w, before), "the input must not change"


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("pattern", ["2:4", "6:8", "16:18"])
def test_chunks_of_rows_give_the_same_and_name_the_right_row(dtype, pattern, seed, monkeypatch):
    pattern = Pattern.parse(pattern)
    w = (9 * pruned_integers(pattern, 23, 77, seed, top=9)).to(dtype)
    whole, found = slide(w, pattern), detect_pattern(w)
    monkeypatch.setattr(module, "_CHUNK_BYTES", 3000)
    assert len(list(module._chunks(23, 80, dtype.itemsize))) > 2
    assert torch.equal(slide(w, pattern).double(), whole.double())
    assert torch.equal(unslide(whole, pattern, 77).double(), w.double())
    assert detect_pattern(w) == found
    w[20] = w[21] = 1
    with pytest.raises(PatternError, match=f"row 20, block 0 .* holds {pattern.block} non-zeros"):
        slide(w, pattern)
    whole[20, 64:], whole[19] = 1, 0
    with pytest.raises(PatternError, match="row 20"):
        unslide(whole, pattern, 77)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8, torch.float8_e4m3fn], ids=str)
def test_a_transposed_weight_slides_like_its_copy(dtype, seed):
    pattern = Pattern.parse("4:6")
    w = pruned_integers(pattern, 8, 24, seed, top=9).to(dtype)
    turned = w.t().contiguous().t()
    assert not turned.is_contiguous()
    assert torch.equal(slide(turned, pattern).double(), slide(w, pattern).double())
    assert detect_pattern(turned) == pattern


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.float8_e4m3fn])
def test_unslide_takes_any_assignment_and_forgets_negative_zeros(dtype):
    # The greedy would put the 2 into the first window.
    slid = torch.zeros(2, 32).to(dtype)
    slid[0, 0], slid[0, 4] = 1, 2
    if dtype is torch.float8_e4m3fn:
        slid.view(torch.uint8)[1] = NEGATIVE_ZERO
    back = unslide(slid, Pattern.parse("4:6"), 7)
    assert back.dtype is dtype
    assert back.tolist() == [[1, 0, 2, 0, 0, 0, 0], [0] * 7]
    assert not back.double().signbit().any()


def test_unslide_keeps_infinities_and_nan_in_their_place():
    w = torch.tensor([[0, 0, float("inf"), 1, float("nan"), 0]])
    back = unslide(slide(w, Pattern.parse("4:6")), Pattern.parse("4:6"), 6)
    assert torch.equal(back.nan_to_num(7.0), w.nan_to_num(7.0))


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ([(1, 2), (1, 4)], "row 1, block 0 .columns 0 to 11. .* a weight in two windows"),
        ([(2, 15), (2, 17)], "row 2, block 1 .columns 12 to 23. .* a weight in two windows"),
        ([(0, 0), (0, 1), (0, 2)], "row 0, block 0 .* three in one"),
        ([(0, 5), (0, 6), (0, 7)], "row 0, block 0 .* three in one"),
        ([(3, 31)], "row 3 of the slid weight has 1 non-zeros in places of padding"),
        ([(1, 22), (1, 23)], "row 1 of the slid weight has 2 non-zeros in places of padding"),
    ],
)
def test_unslide_refuses_what_slide_never_gives(places, message):
    slid = torch.zeros(4, 32)
    for place in places:
        slid[place] = 1
    with pytest.raises(PatternError, match=message):
        unslide(slid, Pattern.parse("6:8"), 14)


@pytest.mark.parametrize("pattern", [Pattern.parse("6:8"), DENSE], ids=str)
def test_unslide_refuses_another_width(pattern):
    with pytest.raises(
        PatternError, match=f"of 64 columns does not come from K=16 and .*{pattern}"
    ):
        unslide(torch.zeros(2, 64), pattern, 16)


@pytest.mark.parametrize("pattern", FAMILY, ids=str)
@pytest.mark.parametrize("k", [1, 7, 129, 180])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8, torch.float8_e4m3fn], ids=str)
def test_the_sparsest_pattern_is_detected(pattern, k, dtype, seed):
    w = pruned_integers(pattern, 5, k, seed, top=50)
    w[w.abs() < 1] = 0
    wanted = [
        p
        for p in FAMILY
        if all(
            (w[:, start : start + p.block] != 0).sum(dim=1).max() <= p.nonzeros
            for start in range(0, k, p.block)
        )
    ]
    assert detect_pattern(w.to(dtype)) == wanted[0] <= pattern


def test_what_no_pattern_allows_is_dense():
    w = torch.ones(3, 180)
    assert detect_pattern(w) == DENSE
    w[:, ::9] = 0
    assert detect_pattern(w) == Pattern(16, 18)
    assert detect_pattern(w, largest_block=16) == DENSE
    w[2, :9] = 1
    assert detect_pattern(w) == DENSE
    w = torch.ones(1, 300)
    w[0, [0, 299]] = 0
    assert detect_pattern(w, largest_block=300) == Pattern(298, 300)


def test_zeros_of_either_sign_satisfy_the_sparsest_pattern():
    assert detect_pattern(torch.zeros(3, 40)) == Pattern(2, 4)
    assert detect_pattern(-torch.zeros(3, 40)) == Pattern(2, 4)
    bits = torch.full((3, 40), NEGATIVE_ZERO, dtype=torch.uint8)
    assert detect_pattern(bits.view(torch.float8_e4m3fn)) == Pattern(2, 4)
    assert detect_pattern(bits.view(torch.int8)) == DENSE
    assert detect_pattern(torch.full((1, 40), float("nan"))) == DENSE


@pytest.mark.parametrize("value", [float("inf"), 3.4e38])
def test_pruning_holds_for_the_largest_weights(value: float) -> None:
    pattern = Pattern(6, 8)
    pruned = prune_magnitude(torch.full((3, 19), value), pattern)
    assert (pruned == 0).sum(dim=1).tolist() == [4, 4, 4]
    assert detect_pattern(pruned) == pattern


class Held(TorchDispatchMode):
    """Bytes that operations allocate: now and at most. What a view looks at is known before."""

    def __init__(self, *known):
        super().__init__()
        self.now = self.most = 0
        self.sizes = {tensor.untyped_storage()._cdata: 0 for tensor in known}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.add(tensor.untyped_storage())
        return made

    def add(self, storage):
        if storage._cdata in self.sizes:
            return
        self.sizes[storage._cdata] = storage.nbytes()
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self.drop, storage._cdata)

    def drop(self, key):
        self.now -= self.sizes.pop(key, 0)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pattern", [*COMMON, Pattern(16, 18)], ids=str)
def test_little_is_held_beside_input_and_output(pattern, dtype, monkeypatch, seed):
    """Rows in three chunks and more, of which one is held at a time."""
    w = (30 * prune_magnitude(torch.randn(400, 3584, generator=generator(seed)), pattern)).to(dtype)
    most = w.numel() * 2
    monkeypatch.setattr(module, "_CHUNK_BYTES", most)
    with Held(w) as held:
        slid = slide(w, pattern)
    assert held.most - slid.nbytes <= most
    with Held(slid) as held:
        whole = unslide(slid, pattern, 3584)
    assert held.most - whole.nbytes <= most
    with Held(w) as held:
        detect_pattern(w)
    assert 0 < held.most <= most


@pytest.mark.parametrize("shape", [(8,), (2, 8, 8), ()])
def test_what_is_no_matrix_is_refused(shape):
    six, tensor = Pattern.parse("6:8"), torch.zeros(shape)
    said = re.escape(f"has two dimensions, and this tensor is {list(shape)}")
    for name, call in (
        (r"a weight \[N, K\]", lambda: slide(tensor, six)),
        (r"a weight \[N, K\]", lambda: slide(tensor, DENSE)),
        (r"a slid weight \[N, K'\]", lambda: unslide(tensor, six, 8)),
        (r"a weight \[N, K\]", lambda: detect_pattern(tensor)),
        (r"activations \[M, K\]", lambda: lift(tensor, six)),
    ):
        with pytest.raises(PatternError, match=f"{name} {said}"):
            call()
