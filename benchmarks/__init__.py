"""Skate measured beside Ray, xoscar, Dask and multiprocessing: each workload written once.

`python -m benchmarks` alternates the peers within one run and prints ratios; see README.md.
"""
