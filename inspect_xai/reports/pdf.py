"""A page as PDF, printed by the Chromium of this machine; nothing of it is shipped with the product."""

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from inspect_xai.errors import SettingsError

PROGRAMS: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_PATIENCE_S: Final = 120


def print_pdf(page: Path) -> Path:
    """Write `page` as A4 beside itself; a file that stands there is replaced as a whole.

    Raises:
        SettingsError: There is no Chromium, or it made no PDF.
    """
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        raise SettingsError(
            "no Chromium on this machine", remedy="install the package chromium, or open the page and print it"
        )
    target = page.with_suffix(".pdf")
    with tempfile.TemporaryDirectory(prefix="inspect-xai-pdf-") as folder:
        made = Path(folder, "page.pdf")
        # The sandbox cannot start in most containers; the page runs no script and loads nothing.
        options = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--no-pdf-header-footer")
        command = [
            program,
            *options,
            f"--user-data-dir={folder}/profile",
            f"--print-to-pdf={made}",
            page.resolve().as_uri(),
        ]
        try:
            done = subprocess.run(command, capture_output=True, timeout=_PATIENCE_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SettingsError(f"{program} does not print: {error}", remedy="open the page and print it") from error
        if not made.is_file():
            said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise SettingsError(f"{program} printed nothing: {said}", remedy="open the page and print it")
        aside = target.with_name(f".{target.name}.part")
        shutil.copyfile(made, aside)
        aside.replace(target)
    return target
