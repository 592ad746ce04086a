"""Benchmarks: workloads, sweeps, counters and reports."""
