"""Benchmarks: workloads, sweeps, counters and reports, a folder for each command.

What several of them share is here:
    result_file   what all result files have, and how they are read and written
    kinds         every kind of result file, and the one reader for all of them
    rows          what any result file says, in one form
    schema        the JSON Schema of all kinds, kept in result.schema.json
    results_text  result files in words
    race, watch, ceilings  interleaved timing, clock and power meanwhile, what the machine can do
    on_device     stream, waiting and free memory of a benchmark in this process
    workload, alternatives, compiled, vllm_kernels, kernel_kinds  what is timed, and against what
    roofline      arithmetic intensity and ceilings
    fault         what a lost device costs
"""
