"""Measuring a model on labeled pictures, and comparing two models."""
