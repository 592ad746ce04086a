"""Linear layers that run the fastest planned GEMM, dense or sparse."""
