"""Search: candidates of each backend, timing, isolation and strategy.

Contents:
    backend     what a backend is
    backends    the backends by name
    cublaslt, cusparselt, torch_dense, vllm_dense, native, torchao_sparse, cpu: one backend each
    operands    random operands, rotated for a cold L2 cache
    reference   the float32 reference and the check that every candidate must pass
    timing      CUDA graph replays between events
    stats       spread, and whether two candidates can be told apart
    session     the worker's side: one problem, one candidate at a time
    worker      the worker process and the parent's handle on it
    strategy    successive halving over the candidates of one problem
    journal     what is measured is on disk before the next one starts
    driver      many problems on one or several devices
    reuse       whether a cached result answers what is asked now
    verify_cache  re-time cached results
"""
