"""Result files of `slidesparse search` and of comparisons of its efforts.

Contents:
    effort_record  result files of scripts/compare_efforts.py: what a longer search finds beyond
                   a shorter one
    record         result files: what a search measured, with everything that is needed to read
                   it critically
    rows           what the result file of a search says, as rows: one GEMM each, and all GEMMs
                   of the model
    totals         times of a whole model's GEMMs, from a search: layers count as often as the
                   model has them
"""
