"""Models as lists of linear layers, fused and sharded as vLLM serves them.

Contents:
    spec    ModelSpec and LinearLayer: sizes, fusing, tensor parallelism
    config  from a parsed config.json to a ModelSpec, for each supported architecture
    keys    typed reading of a config.json
    load    from a preset's name, a directory or a Hugging Face id to a ModelSpec
    hub     config.json of a Hugging Face repository
    limits  which tensors have more elements than 32-bit offsets address
"""

from slidesparse.models.config import SUPPORTED, spec_from_config
from slidesparse.models.limits import Overflow, int32_overflows
from slidesparse.models.load import load_model, model_config, preset_names
from slidesparse.models.spec import DeltaNet, Experts, LinearLayer, ModelSpec

__all__ = [
    "SUPPORTED",
    "DeltaNet",
    "Experts",
    "LinearLayer",
    "ModelSpec",
    "Overflow",
    "int32_overflows",
    "load_model",
    "model_config",
    "preset_names",
    "spec_from_config",
]
