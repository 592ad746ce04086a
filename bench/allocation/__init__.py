"""`slidesparse allocate`: a pattern for each linear, run and recorded.

Contents:
    options  What `slidesparse allocate` is asked for: options, targets, sensitivities of an
             earlier run
    record   result files of `slidesparse allocate`: every sensitivity and time, what was
             chosen, what it did
    rows     what the result file of `slidesparse allocate` says, as rows: the outcomes, not
             each group
    run      the run behind `slidesparse allocate`: model, times, sensitivities, choice,
             measured losses
"""
