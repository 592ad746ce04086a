"""`slidesparse bench agreement`: the plug-in's results against stock vLLM's.

Contents:
    numbers   what two engines say of the same tokens, compared: likeliest tokens, perplexity,
              near ties
    plan      What `slidesparse bench agreement` is asked for, and what it asks of each
              checkpoint
    record    result files of `slidesparse bench agreement`: what ours and stock vLLM said, and
              the verdict
    requests  mixed requests that run together and then alone: what is asked, and whether the
              tokens agree
    rows      what the result file of `slidesparse bench agreement` says, as rows
    run       one run of `slidesparse bench agreement`: every checkpoint in stock vLLM and in
              ours
    verdict   the verdict of `slidesparse bench agreement`: what is not as the limits want it
    vllm      one vLLM of `slidesparse bench agreement`: stock or ours, made and used in a
              process of its own
"""
