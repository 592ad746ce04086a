"""SlideSparse: the fastest correct linear layers of a W8A8 language model on this GPU.

Importing this package is quick and touches no GPU library; torch is imported where it is needed.

Contents:
    pattern    (2N-2):2N sparsity patterns and their sliding-window arithmetic
    slide      the decomposition of weights and the lift of activations, in torch
    problem    GemmProblem, dtypes and the M buckets that tuning and run time share
    kernel_problem  KernelProblem, K buckets, and the ranked configurations of one row kernel
    candidate  Candidate, Measurement and the ranked result of one problem
    models     ModelSpec: the linear layers of a model, from a preset or a config.json
    devices    Device, and the Fingerprint of the machine
    libraries  run-time versions of the libraries
    monitor    clock and power while something is timed
    timing     Runner, and samples of it by CUDA graph or wall clock
    stats      spread, and whether two candidates can be told apart
    tensors    the dtypes of problems in torch
    worker     a process whose crash costs one candidate
    serialize  values to plain data and back, checked
    cache      TuningCache: measured winners per machine
    plan       which candidate runs for which M range
    cli        the `slidesparse` command
    search, kernels, bench: the packages on top of this core
"""

from slidesparse._version import __version__

__all__ = ["__version__"]
