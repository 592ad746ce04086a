"""`slidesparse bench kernels`: the kernels around the GEMMs.

Contents:
    record  result files of `slidesparse bench kernels`: figures, ceilings and how they were
            taken
    rows    what the result file of `slidesparse bench kernels` says, as rows
    run     times of the row kernels of a model, against the machine's ceilings and the
            alternatives
"""
