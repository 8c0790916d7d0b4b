"""What every test can use: where the real pictures lie, and seeds."""

import os
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with the real pictures and trained networks (`data/`, `models/`); skips where it is absent."""
    folder = Path(os.environ.get("INSPECT_XAI_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir() or not (folder / "models").is_dir():
        pytest.skip(f"no real pictures at {folder}: set INSPECT_XAI_SHARED to a folder with data/ and models/")
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers that are the same in every run."""
    return np.random.default_rng(20261123)
