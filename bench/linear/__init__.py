"""`slidesparse bench linear`: whole linear layers against torch's own.

Contents:
    ahead       what linears launch on a GPU, compiled before the first of them: in parallel it
                takes seconds
    case        the weights and activations of a linear layer, in as many copies as a cold L2
                cache needs
    record      result files of `slidesparse bench linear`: whole linears of ours against
                torch's
    rows        what the result file of `slidesparse bench linear` says, as rows
    run         times of whole linear layers, ours against torch's, BF16 in and BF16 out on both
                sides
    torch_ways  torch's own W8A8 linear: what a layer costs without SlideSparse, as fast as
                torch makes it
"""
