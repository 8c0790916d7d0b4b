"""Prefect flows: decorators, retries, limits and schedules around functions of the package."""
