"""A throw-away PostgreSQL on loopback for the tests, from the server programs of the distribution."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg


def programs() -> Path | None:
    """Return the folder with initdb and pg_ctl of the newest version installed; None where there is no server."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parent.parent.name))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


class Cluster:
    """A running server; `create` makes an empty database and gives its URL."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port

    def create(self, *, template: str = "template1", tablespace: Path | None = None) -> str:
        """Make a database; with `tablespace` its files lie in that folder."""
        name = f"t{secrets.token_hex(6)}"
        with self._connected() as connection:
            where = ""
            if tablespace is not None:
                connection.execute(f"CREATE TABLESPACE {tablespace.name} LOCATION '{tablespace}'")
                where = f" TABLESPACE {tablespace.name}"
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}{where}")
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"

    def drop(self, url: str, *, tablespace: Path) -> None:
        """Remove a database and the tablespace it was made in."""
        with self._connected() as connection:
            connection.execute(f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")
            connection.execute(f"DROP TABLESPACE {tablespace.name}")

    def _connected(self) -> psycopg.Connection:
        return psycopg.connect(f"postgresql://postgres@127.0.0.1:{self.port}/postgres", autocommit=True)

    def start(self) -> None:
        """Start the server and wait until it takes connections."""
        # fsync off: the cluster does not outlive the test run
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c fsync=off -c unix_socket_directories={self.folder}"
        self._run("pg_ctl", "-D", "data", "-w", "-l", "log", "-o", options, "start")

    def stop(self) -> None:
        """Cut every connection, as a server that goes away does."""
        self._run("pg_ctl", "-D", "data", "-m", "immediate", "-w", "stop")

    def kill(self) -> None:
        """End the server as a power cut would: kill -9, without a word to anybody."""
        lock = self.folder / "data" / "postmaster.pid"
        os.kill(int(lock.read_text().splitlines()[0]), signal.SIGKILL)
        # Where nobody waits for the dead process its number stays taken, and the next start would refuse.
        for each in (lock, self.folder / f".s.PGSQL.{self.port}.lock"):
            each.unlink()

    def initialize(self) -> None:
        """Make the folder of an empty cluster."""
        self._run("initdb", "-D", "data", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-locale", "--no-sync")

    def _run(self, program: str, *arguments: str) -> None:
        folder = programs()
        assert folder is not None
        # The server refuses to run as root.
        other = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
        done = subprocess.run(
            [*other, str(folder / program), *arguments],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if program == "initdb" else subprocess.DEVNULL,  # the server keeps a pipe open
            stderr=subprocess.STDOUT if program == "initdb" else subprocess.DEVNULL,
            timeout=60,
            check=False,
        )
        if done.returncode:
            log = self.folder / "log"
            said = log.read_text() if log.exists() else str(done.stdout)
            raise RuntimeError(f"{program} ended with {done.returncode}: {said}")


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Run a server as long as the block."""
    with tempfile.TemporaryDirectory(prefix="inspect-xai-pg-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres", "postgres")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        server = Cluster(folder, port)
        server.initialize()
        server.start()
        try:
            yield server
        finally:
            server.stop()
