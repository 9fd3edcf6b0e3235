"""Benchmarks of safety: their items, the answers to them, who judges those, and the report."""
