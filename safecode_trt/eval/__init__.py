"""Measuring bundles: the demo, the benchmark, and what `eval` is made of: benchmarks, metrics, results."""
