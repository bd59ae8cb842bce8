"""Measurements, apart from the tests and off by default."""
