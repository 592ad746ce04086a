"""NativeConfig: what fits a multiprocessor, what is refused and why, and the ways in and out."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slidesparse.errors import CandidateError, KernelError
from slidesparse.kernels.native.config import (
    REGISTERS,
    SHARED_LIMIT,
    WGMMA_N,
    NativeConfig,
)
from slidesparse.problem import DType

PLAIN = NativeConfig()
SPLIT = NativeConfig(slabs=1, tokens=32, stages=10, cluster_k=4, box=8, boxes=2)
NAMES = [field.name for field in fields(NativeConfig)]

REFUSED = {
    "no slab": ({"slabs": 0}, "slabs=0 is not between 1 and 4"),
    "five slabs": ({"slabs": 5}, "slabs=5 is not between 1 and 4"),
    "no tokens": ({"tokens": 0}, "tokens=0 is not between 8 and 256"),
    "too many tokens": ({"tokens": 264}, "tokens=264 is not between 8 and 256"),
    "no block": ({"blocks": 0}, "blocks=0 is not between 2 and 8"),
    "ten blocks": ({"blocks": 10}, "blocks=10 is not between 2 and 8"),
    "one stage": ({"stages": 1}, "stages=1 is not between 2 and 16"),
    "many stages": ({"stages": 17}, "stages=17 is not between 2 and 16"),
    "nobody resident": ({"resident": 0}, "resident=0 is not between 1 and 4"),
    "a crowd": ({"resident": 5}, "resident=5 is not between 1 and 4"),
    "one box": ({"boxes": 1}, "boxes=1 is not between 2 and 8"),
    "nine boxes": ({"boxes": 9}, "boxes=9 is not between 2 and 8"),
    "no cluster": ({"cluster_w": 0}, "cluster=0 is not between 1 and 8"),
    "a large cluster": (
        {"cluster_w": 4, "cluster_x": 4},
        "cluster=16 is not between 1 and 8",
    ),
    "two negative sides": (
        {"cluster_w": -1, "cluster_x": -1},
        "every side of a cluster is at least 1",
    ),
    "no group": ({"group": 0}, "group=0 is not between 1 and 1048576"),
    "a huge group": ({"group": 2**20 + 1}, "group=1048577 is not between 1 and 1048576"),
    "tokens": (
        {"tokens": 100},
        "tokens=100 is no multiple of 8, or blocks=2 is odd",
    ),
    "odd blocks": ({"blocks": 3}, "tokens=256 is no multiple of 8, or blocks=3 is odd"),
    "both kinds of cluster": (
        {"cluster_w": 2, "cluster_k": 2, "tokens": 64},
        "a cluster either shares operands or splits K",
    ),
    "uneven split": (
        {"tokens": 40, "cluster_k": 2, "box": 8},
        "tokens=40 are not shared by 2 blocks in eights",
    ),
    "uneven tokens": (
        {"tokens": 24, "cluster_w": 2, "box": 8},
        "a stage is not shared evenly by the cluster",
    ),
    "uneven blocks": ({"cluster_x": 4}, "a stage is not shared evenly by the cluster"),
    "no box at all": (
        {"box": 0},
        "box=0 does not cut 256 tokens into eights or pairs of eights",
    ),
    "a box that leaves a rest": (
        {"box": 48},
        "box=48 does not cut 256 tokens into eights or pairs of eights",
    ),
    "a box of three eights": (
        {"tokens": 48, "box": 24},
        "box=24 does not cut 48 tokens into eights or pairs of eights",
    ),
    "a box of more than the part": (
        {"tokens": 64, "cluster_k": 2, "box": 64},
        "box=64 does not cut 32 tokens into eights or pairs of eights",
    ),
    "too many stages": ({"stages": 5}, "267376 bytes of shared memory are more than 232448"),
    "two blocks in one": (
        {"resident": 2},
        "224352 bytes of shared memory are more than 115712",
    ),
    "a wide split": (
        {"tokens": 128, "cluster_k": 2, "stages": 2},
        "K is split for at most 64 tokens, not 128",
    ),
    "registers at the start": (
        {"slabs": 4, "tokens": 208, "stages": 3, "box": 16, "boxes": 2},
        "104 sums a thread do not fit 96 registers at the start, 104 later",
    ),
    "registers later": (
        {"slabs": 4, "tokens": 32, "stages": 2, "resident": 2, "box": 16, "boxes": 2},
        "16 sums a thread do not fit 48 registers at the start, 48 later",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_run_is_refused_with_the_reason(name):
    changes, reason = REFUSED[name]
    with pytest.raises(KernelError) as raised:
        NativeConfig(**changes)
    message = str(raised.value)
    assert message.startswith("native configuration ")
    assert message.endswith(f": {reason}")


# Bytes by hand: stages x (X + W), sums, boxes, scales of whole sixteens, barriers, alignment.
SHARED = [
    (PLAIN, 4 * (32768 + 10240) + 2 * 64 * 3 * 128 + 2048 + 96 + 1024),
    (
        NativeConfig(slabs=3, tokens=192, stages=4, box=32, boxes=3),
        4 * (24576 + 15360) + 3 * 32 * 3 * 128 + 2304 + 112 + 1024,
    ),
    (
        NativeConfig(slabs=1, tokens=64, blocks=4, stages=3, box=64, boxes=2),
        3 * (16384 + 10240) + 64 * 2 * 128 + 256 + 64 + 1024,
    ),
    (
        SPLIT,
        10 * (4096 + 5120) + 64 * 32 * 4 + 8 * 2 * 128 + 128 + 176 + 1024,
    ),
    (
        NativeConfig(slabs=2, tokens=8, blocks=2, stages=2, box=8, boxes=2),
        2 * (1024 + 10240) + 2 * 8 * 2 * 128 + 128 + 64 + 1024,
    ),
]


@pytest.mark.parametrize(("config", "size"), SHARED, ids=str)
def test_shared_memory_by_hand(config, size):
    assert config.shared_bytes() == config.shared_bytes(scaled=True) == size
    boxes = config.slabs * config.box * config.boxes * 128
    assert config.shared_bytes(scaled=False) == size - boxes


def test_shapes_of_a_launch():
    assert (PLAIN.threads, PLAIN.cluster) == (384, 1)
    assert (SPLIT.threads, SPLIT.cluster) == (256, 4)
    assert replace(PLAIN, cluster_w=2, cluster_x=2).cluster == 4
    assert NativeConfig(slabs=4, tokens=64, stages=2).threads == 640


def test_labels_say_what_differs():
    assert PLAIN.label == "128x256x128 stages=4 stores=3x64 raster=w16"
    assert SPLIT.label == "64x32x128 stages=10 cluster=1x1x4 stores=2x8 raster=w16"
    twice = NativeConfig(1, 64, 4, 2, resident=2, group=8, along_x=True)
    assert twice.label == "64x64x256 stages=2 resident=2 stores=3x64 raster=x8"


def made(**values):
    try:
        return NativeConfig(**values)
    except KernelError:
        return None


@st.composite
def configs(draw):
    """Anything that fits."""
    tokens = 8 * draw(st.integers(1, 32))
    cluster_w, cluster_x, cluster_k = draw(
        st.sampled_from([(1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 2, 1), (1, 1, 2), (1, 1, 4)])
    )
    found = made(
        slabs=draw(st.integers(1, 4)),
        tokens=tokens,
        blocks=2 * draw(st.integers(1, 2)),
        stages=draw(st.integers(2, 6)),
        cluster_w=cluster_w,
        cluster_x=cluster_x,
        cluster_k=cluster_k,
        resident=draw(st.integers(1, 2)),
        box=draw(st.sampled_from([8, 16])),
        boxes=draw(st.integers(2, 3)),
        group=draw(st.integers(1, 2**20)),
        along_x=draw(st.booleans()),
    )
    return found or PLAIN


@given(configs())
def test_what_fits_keeps_to_the_limits_of_a_multiprocessor(config):
    assert config.resident * (config.shared_bytes() + 1024) <= SHARED_LIMIT + 1024
    even = REGISTERS // config.resident // config.threads // 8 * 8
    few = 32 if config.slabs == 3 else 40
    rest = REGISTERS // config.resident // 128 - few
    assert even >= 40, "setmaxnreg.dec would ask for more than there is"
    assert config.tokens // 2 + 36 <= min(240, rest // config.slabs)
    assert 1 <= config.cluster <= 8
    assert config.tokens // config.cluster_k % config.box == 0


@given(configs())
def test_the_ways_out_lead_back_in(config):
    assert NativeConfig.from_numbers(config.numbers()) == config
    assert NativeConfig.from_params(config.params()) == config
    assert NativeConfig.from_params(json.loads(json.dumps(config.params()))) == config
    assert list(config.params()) == NAMES
    assert all(type(number) is int for number in config.numbers())
    assert isinstance(NativeConfig.from_numbers(config.numbers()).along_x, bool)


@pytest.mark.parametrize("count", [0, 11, 13])
def test_too_few_and_too_many_numbers(count):
    numbers = [*PLAIN.numbers(), 1][:count]
    with pytest.raises(KernelError) as raised:
        NativeConfig.from_numbers(numbers)
    assert str(raised.value) == f"{count} numbers given; {', '.join(NAMES)} are needed"


def test_numbers_that_do_not_fit():
    numbers = [5, *PLAIN.numbers()[1:]]
    with pytest.raises(KernelError, match="slabs=5 is not between 1 and 4"):
        NativeConfig.from_numbers(numbers)


def without(name):
    return {key: value for key, value in PLAIN.params().items() if key != name}


PARAMS = {
    "one missing": (without("tokens"), r"a native candidate needs tokens$"),
    "two missing": (
        {k: v for k, v in without("tokens").items() if k != "box"},
        r"a native candidate needs box, tokens$",
    ),
    "none": ({}, r"a native candidate needs along_x, blocks, .*, tokens$"),
    "one unknown": ({**PLAIN.params(), "warps": 4}, r"a native candidate has no warps$"),
    "text": ({**PLAIN.params(), "tokens": "256"}, r"^native tokens='256' is not of type int$"),
    "half a stage": ({**PLAIN.params(), "stages": 2.5}, r"^native stages=2.5 is not of type int$"),
    "a whole float": ({**PLAIN.params(), "stages": 4.0}, r"^native stages=4.0 is not of type int$"),
    "true for one": ({**PLAIN.params(), "slabs": True}, r"^native slabs=True is not of type int$"),
    "one for true": ({**PLAIN.params(), "along_x": 1}, r"^native along_x=1 is not of type bool$"),
    "a misfit": (
        {**PLAIN.params(), "slabs": 7},
        r"^native configuration 448x256x128 .*: slabs=7 is not between 1 and 4$",
    ),
    "too large": (
        {**PLAIN.params(), "stages": 16},
        r"bytes of shared memory are more than 232448$",
    ),
}


@pytest.mark.parametrize("name", PARAMS)
def test_params_of_no_configuration_are_refused(name):
    params, message = PARAMS[name]
    with pytest.raises(CandidateError, match=message):
        NativeConfig.from_params(params)


def test_token_counts_of_the_instruction():
    """The PTX ISA's table of wgmma.mma_async.sp with K = 64."""
    int8 = {8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240, 256}
    assert WGMMA_N[str(DType.INT8)] == int8
    assert WGMMA_N[str(DType.FP8)] == set(range(8, 257, 8))
    assert set(WGMMA_N) == {str(DType.FP8), str(DType.INT8)}
