"""The version: the build reads it here, and everything that records or prints it does."""

__version__ = "0.2.0"
