"""Tests of the method table."""
