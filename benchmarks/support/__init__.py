"""Servers, inspections and pictures made in code, for the benchmarks and the tests."""
