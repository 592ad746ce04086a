"""NVIDIA's own GEMM libraries through nvmath's bindings: cublaslt, cusparselt."""
