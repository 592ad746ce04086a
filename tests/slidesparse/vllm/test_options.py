"""What `--additional-config` may say of the plug-in."""

from __future__ import annotations

from pathlib import Path

import pytest

from slidesparse.errors import UsageError
from slidesparse.pattern import Pattern
from slidesparse.vllm.options import Options, parse_options


@pytest.mark.parametrize(
    "additional",
    [{}, None, {"other": 1}, {"slidesparse": {}}, {"slidesparse": None}, object()],
    ids=str,
)
def test_nothing_said(additional):
    assert parse_options(additional) == Options()


def test_all_of_them():
    given = {
        "off": True,
        "memory_format": "smallest",
        "patterns": ["2:4", "2:8"],
        "cache_dir": "~/tuned",
    }
    assert parse_options({"slidesparse": given}) == Options(
        off=True,
        memory_format="smallest",
        patterns=frozenset({Pattern.parse("2:4"), Pattern.parse("6:8")}),
        cache_dir=Path.home() / "tuned",
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"pattern": "2:4"},
            "additional_config's slidesparse has no option 'pattern'; there are cache_dir, "
            "memory_format, off, patterns",
        ),
        ("off", "additional_config's slidesparse is 'off'; give an object"),
        ({"off": "yes"}, "slidesparse.off is 'yes'; give true or false"),
        (
            {"memory_format": "small"},
            "slidesparse.memory_format is 'small'; use fastest or smallest",
        ),
        (
            {"patterns": "2:4"},
            'slidesparse.patterns is \'2:4\'; give a list such as ["2:4", "6:8"]',
        ),
        ({"cache_dir": ""}, "slidesparse.cache_dir is ''; give a folder"),
        (
            {"cache_dir": "~nobody-here/x"},
            "slidesparse.cache_dir is '~nobody-here/x': Could not determine home directory.",
        ),
    ],
)
def test_what_cannot_be_read_is_said(given, message):
    with pytest.raises(UsageError) as raised:
        parse_options({"slidesparse": given})
    assert str(raised.value) == message


def test_a_pattern_that_does_not_exist():
    with pytest.raises(UsageError, match="3:4"):
        parse_options({"slidesparse": {"patterns": ["3:4"]}})
