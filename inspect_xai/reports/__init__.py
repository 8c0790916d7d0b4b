"""A day of inspections as a page and as Parquet."""
