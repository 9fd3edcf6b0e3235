"""Timing of bundles: what a reply costs, in rounds that are interleaved, as tables and plots."""
