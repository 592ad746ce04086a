"""What each GPU of a comparison would adapt: the profiles beside each other, for the adapted phase.

They say what the tool would choose, not what the files were measured with: that is in their
settings and in each row's variant.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from slidesparse.bench.compare.cost import gpus_of_file
from slidesparse.bench.compare.lines import Comparison
from slidesparse.bench.compare.text import Section
from slidesparse.gpus import GpuSpec, find_gpu
from slidesparse.models import load_model, preset_names
from slidesparse.profile import Profile, make_profile


def profile_sections(compared: Comparison) -> list[Section]:
    """One table of the settings of each GPU; none where no GPU or no model is known.

    A model counts if it is a preset: nothing is fetched for a comparison.
    """
    model = _model(compared)
    gpus = list(_gpus(compared))
    if model is None or not gpus:
        return []
    profiles = [make_profile(gpu, load_model(model)) for gpu in gpus]
    names = [setting.name for setting in profiles[0].settings]
    rows = [(name, *_values(profiles, index)) for index, name in enumerate(names)]
    headings = ("", *(gpu.name for gpu in gpus))
    return [
        Section(
            f"What the tool would adapt to each GPU for {model}",
            headings,
            rows,
            ("Not what was measured above; slidesparse profile show gives the reasons.",),
            frozenset(range(len(headings))),
        )
    ]


def _values(profiles: Sequence[Profile], index: int) -> Iterator[str]:
    for profile in profiles:
        setting = profile.settings[index]
        yield f"{setting.value} ({setting.evidence})"


def _gpus(compared: Comparison) -> Iterator[GpuSpec]:
    """Every GPU of the files once; a heading that names a family is none."""
    found = dict.fromkeys(
        key
        for file in compared.files
        for keys in [gpus_of_file(file)]
        if len(keys) == 1
        for key in keys
    )
    yield from map(find_gpu, found)


def _model(compared: Comparison) -> str | None:
    """The one preset that all lines are about."""
    models = {str(line.workload.get("model", "")) for line in compared.lines}
    return next(iter(models)) if len(models) == 1 and models <= set(preset_names()) else None
