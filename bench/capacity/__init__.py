"""Result files of `slidesparse plan`, and its check against vLLM.

Contents:
    check         `slidesparse plan --check`: a plan against what vLLM reports of the same model
                  when it starts
    check_record  result files of `slidesparse plan --check`: plans against what vLLM reported,
                  part by part
    probe         What `slidesparse plan --check` asks of a vLLM worker: what its memory profile
                  found
    record        result files of `slidesparse plan`: what a model takes of a GPU, and what
                  bounds its layers
"""
