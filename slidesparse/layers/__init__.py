"""Linear layers that run the fastest planned GEMM, dense or sparse."""

from slidesparse.layers.layer_plan import LayerPlan, Step
from slidesparse.layers.linear import SparseLinear
from slidesparse.layers.load import linear_from_checkpoint, load_model
from slidesparse.layers.planning import forget, plan_layer
from slidesparse.layers.sparsify import sparsify_
from slidesparse.layers.weight import SparseWeight

__all__ = [
    "LayerPlan",
    "SparseLinear",
    "SparseWeight",
    "Step",
    "forget",
    "linear_from_checkpoint",
    "load_model",
    "plan_layer",
    "sparsify_",
]
