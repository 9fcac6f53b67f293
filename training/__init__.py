"""Sequences in, tracked models out."""
