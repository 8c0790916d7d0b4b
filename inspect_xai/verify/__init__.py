"""Proving a recorded decision again: golden sets, replay, evidence."""
