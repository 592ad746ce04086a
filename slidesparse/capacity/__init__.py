"""What a served model needs of a GPU's memory and how fast it can be: `slidesparse plan`.

Contents:
    settings    what is planned: model, GPU, sequences, context, quantisation
    figure      Figure and Part: numbers with their provenance
    weights     bytes of the weights of one rank, from the sizes of the model
    stored      the same from the headers of a local checkpoint, exactly
    kv_cache    blocks of the KV cache, and what a sequence takes of them
    activations the peak that vLLM profiles before it sizes its KV cache
    graphs      CUDA graphs, and what lies outside torch
    plan        CapacityPlan: all of it against the GPU
    refused     what vLLM refuses although the memory suffices
    limits      the longest context, the most sequences
    nearest     the nearest change of each setting that fits
    roofline    what each layer of a step is bound by
    gemm_times  measured times of GEMMs, from tuning caches of the planned GPU

Memory follows what vLLM 0.25.1 does. No GPU and no vLLM is needed.
"""

from slidesparse.capacity.plan import CapacityPlan, make_plan
from slidesparse.capacity.settings import KvDtype, Quant, Settings

__all__ = ["CapacityPlan", "KvDtype", "Quant", "Settings", "make_plan"]
