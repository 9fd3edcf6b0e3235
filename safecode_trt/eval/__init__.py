"""Measuring bundles: the demo, the benchmark, the demo world's test set."""
