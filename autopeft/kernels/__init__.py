"""Fused operations, each with its plain-torch twin; none yet: every method runs on torch's own."""
