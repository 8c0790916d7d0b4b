"""A Prefect server of its own on loopback, for tests and benchmarks, and programs that talk to it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(sys.executable).parent


class Prefect:
    """The programs run from the checkout, in an environment in which nothing else of Prefect is set."""

    def __init__(self, home: Path, environment: dict[str, str]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.home = home
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "INSPECT_XAI_"))
        } | {
            "PREFECT_HOME": str(home),
            "PREFECT_API_URL": f"http://127.0.0.1:{self.port}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: str) -> None:
        """Start `prefect ...` in the background; its output goes to a log in the home folder."""
        with (self.home / f"{arguments[0]}.log").open("wb") as log:
            program = [str(PROGRAMS / "prefect"), *arguments]
            self.started.append(
                subprocess.Popen(
                    program,
                    cwd=ROOT,
                    env=self.environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    preexec_fn=_heed_sigint,
                )
            )

    def say(self, *arguments: str) -> str:
        """Run `prefect ...` to its end and return what it prints."""
        program = [str(PROGRAMS / "prefect"), *arguments]
        done = subprocess.run(
            program, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Return the server's JSON answer to a request."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310  loopback
            return json.loads(answer.read())

    def runs(self, deployment: str, state: str) -> list[dict[str, Any]]:
        """Return the flow runs of a deployment in a state."""
        found: list[dict[str, Any]] = self.ask(
            "flow_runs/filter",
            {"deployments": {"name": {"any_": [deployment]}}, "flow_runs": {"state": {"type": {"any_": [state]}}}},
        )
        return found

    def close(self) -> None:
        """Stop what was started, last first."""
        for process in reversed(self.started):
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _heed_sigint() -> None:
    """Undo what a shell does to programs in the background: they ignore SIGINT, which Prefect stops itself with."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def wait_for(what: Callable[[], Any], *, within_s: float, log: Path) -> Any:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try:
            if found := what():
                return found
        except OSError:
            pass
        time.sleep(1)
    raise AssertionError(f"not within {within_s:.0f} s: {log.read_text()[-3000:]}")
