"""Figures that others published, as result files that say so.

Contents:
    record  result files of `slidesparse results import`: figures that another project published
    tables  reading the tables that the SlideSparse paper's authors published (arXiv 2603.05232)
"""
