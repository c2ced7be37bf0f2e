"""Fused operations for many adapters on one base model, each with its plain-torch twin.

`low_rank` has what a model calls; `dispatch` says which of kernel and twin computes it; `reference` defines it.
"""
