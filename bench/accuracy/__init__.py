"""Accuracy of patterns, methods and dtypes: `slidesparse eval`, run and recorded.

Contents:
    record  result files of `slidesparse eval`: what pruning and quantising cost, and on which
            text
    rows    what the result file of `slidesparse eval` says, as rows
    run     one run of `slidesparse eval`: load, measure every variant, keep what there is at
            any end
"""
