"""Build wheel and sdist into dist/, install the wheel in an empty environment, and check both as PyPI would.

    make release-check

The wheel is built from the sdist, so that the sdist is complete. Needs the extra `release`.
"""

import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"


def main() -> None:
    """Run the steps; the first that fails ends the check."""
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(DIST), str(ROOT))
    (wheel,), (sdist,) = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
    run(sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(sdist))
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        programs = Path(folder) / "bin"
        constraints = str(ROOT / "deploy" / "constraints.txt")
        run(str(programs / "python"), "-m", "pip", "install", "--quiet", "--constraint", constraints, str(wheel))
        printed = run(str(programs / "inspect-xai"), "--version", cwd=folder).split()
        database = f"sqlite:///{folder}/record.db"
        run(str(programs / "inspect-xai"), "db", "upgrade", "--db", database, cwd=folder)
    version = wheel.name.split("-")[1]
    if printed != ["inspect-xai", version] or f"-{version}.tar.gz" not in sdist.name:
        sys.exit(f"found versions {printed}, {wheel.name} and {sdist.name}, expected one version")
    print(f"{wheel.name} and {sdist.name} can be released")


def run(*command: str, cwd: str | None = None) -> str:
    """Run a command and return what it prints; print its output and end where it fails."""
    print("$", *command, flush=True)
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return done.stdout


if __name__ == "__main__":
    main()
