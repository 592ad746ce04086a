"""`slidesparse bench attention`: attention backends in one race, beside the GPU's bound.

Contents:
    backends  ways to compute an attention: torch's SDPA backends, each forced alone, and
              FlashAttention 3
    bound     the least time that an attention can take on a GPU, and what a target would need
    check     whether an attention is right: sampled heads against torch's math backend in
              float32
    csv       the table that `slidesparse bench attention` writes for spreadsheets
    problem   one attention: its sizes, and the least work that any algorithm for it has to do
    rates     the best rates of a GPU for attention: of the one that is here, or of one from the
              table
    record    result files of `slidesparse bench attention`: every backend, what it took or why
              not
    rows      what the result file of `slidesparse bench attention` says, as rows
    run       times of attention: every backend that runs here, in one race, and each sustained
              for a while
"""
