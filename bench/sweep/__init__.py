"""`slidesparse bench prefill` and `decode`: steps of a model over M, ours against stock.

Contents:
    book          what a sweep has measured so far: begun anew, or taken over from a file of
                  equal settings
    cells         what books of measured cells share: settings that have to be equal, cells taken
                  over, sessions
    chain         the linears of a model one after the other, with what is fused to them: one
                  step of a sweep
    compare       which of a sweep's differences are real: ours against both runs of stock,
                  spread and drift known
    figure        a figure of a sweep: speedup over M, one panel per (model, dtype, mode), a
                  line per pattern
    job           what one process of a sweep measures, and what it says of each cell
    linear        the engine `linear` of a sweep: a model's linears and fused kernels alone,
                  without vLLM
    plan          which processes a sweep runs, in which order, and which of their cells are
                  still to be measured
    record        result files of `slidesparse bench prefill` and `decode`: every cell, measured
                  or why not
    rows          what the result file of `slidesparse bench prefill` or `decode` says, as rows
    runner        runs a sweep: each turn in a process of its own, and what fails there costs
                  its cell only
    timing        samples of a whole step: CUDA graphs, eager launches, or the wall clock on the
                  CPU
    torch_model   Torch's own way through a model's linears: what `--engine linear` calls stock
    vllm          the engine of `slidesparse bench prefill|decode --engine vllm`: stock vLLM,
                  with or without us
    vllm_cells    the cells of a sweep in a vLLM that is built: which requests run, and what
                  their steps took
    vllm_compat   what the benchmark knows of vLLM's inside, and what may differ between its
                  versions
    vllm_model    the folder that vLLM loads: a preset's config.json written out in full, or a
                  folder given
    vllm_steps    what the steps of an engine were, and the times of those that a cell measures
    vllm_weights  realistic random weights for a model that vLLM builds without a checkpoint
    vllm_worker   what the benchmark asks of each vLLM worker: what it runs, and the GPU time of
                  its kernels
"""
