"""Make a virtual environment that runs the project, on a machine with nothing but Python.

    python3 deploy/install.py                 the product
    python3 deploy/install.py --extras test   and what the tests need

A second call with an unchanged pyproject.toml does nothing. Needs no package but the standard library.
"""

import argparse
import hashlib
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 11)


def main() -> None:
    """Install, or say in one line why not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="where the environment goes")
    parser.add_argument("--extras", default="", help="comma-separated extras of pyproject.toml")
    options = parser.parse_args()
    if sys.version_info < OLDEST:
        sys.exit(f"found Python {sys.version.split()[0]}, expected 3.11 or newer: say make PYTHON=python3.11 ...")
    extras = [extra for extra in options.extras.split(",") if extra]
    stamp = options.venv / f"installed-{'-'.join(extras) or 'product'}.sha256"
    wanted = _fingerprint()
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    python = options.venv / "bin" / "python"
    if not python.exists():
        print(f"making {options.venv}", flush=True)
        if subprocess.run([sys.executable, "-m", "venv", str(options.venv)], check=False).returncode:
            sys.exit("found no working venv module: on Debian and Ubuntu, apt-get install python3-venv")
    target = f"{ROOT}[{','.join(extras)}]" if extras else str(ROOT)
    what = ", ".join(["the product", *extras])
    print(f"installing {what} (a minute or two)", flush=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    constraints = ["--constraint", str(ROOT / "deploy" / "constraints.txt")]
    _must([*pip, "install", *constraints, "--editable", target])
    _mend_opencv(python, pip)
    stamp.write_text(wanted)


def _fingerprint() -> str:
    names = ("pyproject.toml", "inspect_xai/_version.py", "deploy/constraints.txt")
    return hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in names)).hexdigest()


def _mend_opencv(python: Path, pip: list[str]) -> None:
    """Put the headless build over opencv-python where the machine has no X libraries: it needs none of them."""
    probe = subprocess.run([str(python), "-c", "import cv2"], capture_output=True, text=True, check=False)
    if probe.returncode == 0:
        return
    if not re.search(r"lib\w+[\w.-]*\.so", probe.stderr):
        sys.exit(f"OpenCV does not load: {probe.stderr.strip().splitlines()[-1]}")
    ask = "from importlib.metadata import version; print(version('opencv-python'))"
    version = subprocess.run([str(python), "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
    print("no X libraries on this machine: taking OpenCV's headless build", flush=True)
    _must([*pip, "install", "--force-reinstall", "--no-deps", f"opencv-python-headless=={version}"])
    _must([str(python), "-c", "import cv2"])


def _must(command: list[str]) -> None:
    if subprocess.run(command, check=False).returncode:
        sys.exit(f"failed: {' '.join(command)}")


if __name__ == "__main__":
    main()
