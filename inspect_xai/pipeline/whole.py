"""A folder that is there whole or not at all."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Give a new folder to write into; without an error it takes the place of `folder`, with one it is removed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    work.chmod(0o755)
    before = work.with_name(f"{work.name}-before")
    try:
        yield work
        if folder.exists():
            folder.rename(before)
        work.rename(folder)
    except BaseException:
        if before.exists() and not folder.exists():
            before.rename(folder)
        shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(before, ignore_errors=True)
