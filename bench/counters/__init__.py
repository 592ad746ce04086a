"""`slidesparse bench decode --counters`: a steady load in vLLM, and the GPU's counters.

Contents:
    book       what a load benchmark has measured so far: begun anew, or taken over from a file
    compat     what the load benchmark knows of vLLM's inside beyond what sweeps know. Read
               from vLLM 0.25.1
    headroom   what a load leaves of a GPU for a second, co-scheduled one; and eager beside CUDA
               graphs
    job        what one process of a load benchmark measures and gives, and how long everything
               will take
    loop       a closed loop: exactly C requests are in the engine all the time, and a window of
               it is measured
    published  published figures of MoE decode under load, to stand beside measured ones and
               labelled so
    record     result files of `slidesparse bench decode --counters`: every cell, measured or
               why not
    rows       what the result file of `slidesparse bench decode --counters` says, as rows and
               as CSV
    sampler    takes samples in a thread beside the engine, and stops when told so, to show what
               they cost
    samples    samples taken beside a running engine, and the figures that they come to
    vllm       the engine of `slidesparse bench decode --counters`: stock vLLM under a steady
               load, watched
    window     from the steps of a running engine to rates: windows between steps, and what
               sampling costs
"""
