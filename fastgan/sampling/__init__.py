"""Sampling from a generator: noise, batches and picture files."""
