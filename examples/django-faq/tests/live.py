"""What the tests stand on: a private PostgreSQL, the real vecsync, Qdrant for the tests, the site, a browser. Tests nothing itself.

setup/django.sh sets VECSYNC_TEST_…; nothing outside of a temporary folder and loopback is touched.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

SITE = Path(__file__).resolve().parent.parent
#: Longer than anything takes on a machine that compiles beside it.
PATIENCE = 60.0
KEY = "key-of-the-django-tests"
#: vecsync has it with `search:` in front.
SEARCHING = "key-that-may-only-search"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_for(what: str, look: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """The first true thing that a look gives; says what was seen last if there is none in time."""
    until, seen = time.monotonic() + patience, None
    while time.monotonic() < until:
        try:
            seen = look()
        except AssertionError as error:
            seen = error
        else:
            if seen:
                return seen
        time.sleep(0.05)
    raise AssertionError(f"waited {patience:.0f} s for {what}; seen last: {seen}")


class Process:
    """A program with its output in a file."""

    def __init__(self, name: str, words: list[str], environment: dict[str, str], folder: Path) -> None:
        self.log = folder / f"{name}.log"
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(words, env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def send(self, number: signal.Signals) -> None:
        self.child.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGCONT)
            self.child.send_signal(number)
            try:
                self.child.wait(30)
            except subprocess.TimeoutExpired:
                self.child.kill()
        return self.child.wait()


class Postgres:
    """A cluster of its own, run as a user that is not root, with the two roles that a site has."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="vecsync-django-pg-"))
        self.folder.chmod(0o755)
        self.bin, self.user = Path(os.environ["VECSYNC_TEST_PG_BIN"]), os.environ["VECSYNC_TEST_PG_USER"]
        self.data, self.port = self.folder / "data", free_port()
        self.data.mkdir(mode=0o700)
        if os.geteuid() == 0:
            shutil.chown(self.data, self.user, self.user)
        self._run(
            "initdb", "-D", str(self.data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"
        )
        with (self.data / "postgresql.conf").open("a") as conf:
            conf.write(
                f"port = {self.port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\nwal_level = logical\n"
                "fsync = off\nshared_buffers = 32MB\n"
            )
        self._run("pg_ctl", "start", "-w", "-t", "60", "-s", "-D", str(self.data), "-l", str(self.data / "server.log"))
        self.execute(
            "postgres", "CREATE ROLE app LOGIN", "CREATE ROLE vecsync LOGIN REPLICATION", "CREATE DATABASE shop OWNER app"
        )

    def _run(self, program: str, *words: str) -> None:
        command = [str(self.bin / program), *words]
        if os.geteuid() == 0:
            command = ["setpriv", "--reuid", self.user, "--regid", self.user, "--init-groups", "env", "HOME=/", *command]
        subprocess.run(
            command,
            check=True,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )

    def url(self, user: str, database: str = "shop") -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}?sslmode=disable"

    def execute(self, database: str, *statements: str, user: str = "postgres") -> list[Any]:
        rows: list[Any] = []
        with psycopg.connect(self.url(user, database), autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement)
                rows = cursor.fetchall() if cursor.description else []
        return rows

    def stop(self) -> None:
        self._run("pg_ctl", "stop", "-w", "-s", "-m", "immediate", "-D", str(self.data))
        shutil.rmtree(self.folder)


class Qdrant:
    """Qdrant's engine behind Qdrant's protocol: the server of tests/support/qdrant-server."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.grpc_port = folder, free_port(), free_port()
        self.process: Process | None = None

    def start(self) -> None:
        words = ["--grpc-port", str(self.grpc_port), "--http-port", str(self.port), "--data", str(self.folder / "qdrant")]
        self.process = Process("qdrant", [os.environ["VECSYNC_TEST_QDRANT"], *words], dict(os.environ), self.folder)
        wait_for("Qdrant to answer", lambda: get(f"http://127.0.0.1:{self.port}/readyz")[0] == 200)

    def kill(self) -> None:
        if self.process:
            self.process.stop(signal.SIGKILL)
            self.process = None


class Vecsync:
    """The real program, as a user starts it."""

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.settings = {
            "PATH": os.environ["PATH"],
            "VECSYNC_DATA_DIR": str(folder / "data"),
            "VECSYNC_LISTEN": f"127.0.0.1:{self.port}",
            "VECSYNC_MODEL_DIR": os.environ["VECSYNC_TEST_MODEL_DIR"],
            "VECSYNC_MODEL": "int8",
            # On a busy machine Qdrant is slow now and then; these tests are about one that is away.
            "VECSYNC_HEDGE_DELAY_MS": "800",
            **settings,
        }
        self.process: Process | None = None

    def start(self) -> None:
        self.process = Process("vecsync", [os.environ["VECSYNC_TEST_BIN"], "run"], self.settings, self.folder)

    def start_ready(self) -> None:
        self.start()
        wait_for("vecsync to be ready", lambda: get(f"{self.url}/health/ready/")[0] == 200 or self._alive())

    def _alive(self) -> bool:
        if self.process and self.process.child.poll() is not None:
            raise RuntimeError(self.process.said())
        return False

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self.process:
            self.process.stop(number)
            self.process = None

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [os.environ["VECSYNC_TEST_BIN"], *words]
        return subprocess.run(
            command, env=self.settings, cwd=self.folder, capture_output=True, text=True, timeout=PATIENCE, check=False
        )


class World:
    """Everything at once: database with the site's tables, vecsync on it, Qdrant where it is wanted."""

    def __init__(self, with_qdrant: bool = False) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="vecsync-django-"))
        self.postgres = Postgres()
        self.qdrant = Qdrant(self.folder) if with_qdrant else None
        self.pipeline = self.folder / "pipeline.toml"
        shutil.copy(SITE / "pipeline.toml", self.pipeline)
        settings = {
            "DATABASE_URL": self.postgres.url("vecsync"),
            "VECSYNC_PIPELINE": str(self.pipeline),
            "VECSYNC_API_KEYS": f"{KEY},search:{SEARCHING}",
        }
        if self.qdrant:
            self.qdrant.start()
            settings |= {
                "QDRANT_HOST": "127.0.0.1",
                "QDRANT_PORT": str(self.qdrant.port),
                "QDRANT_GRPC_PORT": str(self.qdrant.grpc_port),
            }
        self.vecsync = Vecsync(self.folder, settings)
        self.site: Process | None = None
        self.site_port = free_port()

    @property
    def environment(self) -> dict[str, str]:
        """What the site is told: not one setting of vecsync's but where it is and its key."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        return {
            **kept,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "PYTHONDONTWRITEBYTECODE": "1",
            "DATABASE_URL": self.postgres.url("app"),
            "DJANGO_SECRET_KEY": "for the tests alone, and for nothing else",
            "FAQ_PIPELINE_FILE": str(self.pipeline),
            "VECSYNC_URL": self.vecsync.url,
            "VECSYNC_API_KEYS": KEY,
        }

    def migrate(self) -> None:
        self.manage("migrate", "--verbosity", "0")
        self.postgres.execute("shop", "GRANT SELECT ON faq_faq TO vecsync")

    def fill(self) -> None:
        """Thirty questions, written past the site."""
        rows = ", ".join(f"('Question {n}?', 'Answer {n}.', 'c', true, now(), now())" for n in range(30))
        columns = "question, answer, category, is_active, created_at, updated_at"
        self.postgres.execute("shop", f"INSERT INTO faq_faq ({columns}) VALUES {rows}", user="app")

    def manage(self, *words: str, code: int = 0, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """A command of the site in a process of its own, with the status that it must have."""
        return self.run(["manage.py", *words], code, environment)

    def run(
        self, words: list[str], code: int | None = 0, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        ended = subprocess.run(
            [sys.executable, *words],
            cwd=SITE,
            env={**self.environment, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=PATIENCE * 2,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        if code is not None and ended.returncode != code:
            raise AssertionError(f"{words}: status {ended.returncode}, wanted {code}\n{ended.stdout}\n{ended.stderr}")
        return ended

    def start_site(self) -> str:
        """The site, as `python -m help_centre.serve` serves it."""
        environment = {**self.environment, "DJANGO_ALLOWED_HOSTS": "127.0.0.1"}
        words = [sys.executable, "-m", "help_centre.serve", f"127.0.0.1:{self.site_port}"]
        environment["PYTHONPATH"] = f"{SITE}{os.pathsep}{environment['PYTHONPATH']}"
        self.site = Process("site", words, environment, self.folder)
        url = f"http://127.0.0.1:{self.site_port}"
        wait_for("the site to answer", lambda: get(f"{url}/health/live/")[0] == 200)
        return url

    def connect(self, settings: str = "help_centre.settings") -> None:
        """Has Django in this process use this world. Once: its settings are read once."""
        os.environ.update(
            {name: value for name, value in self.environment.items() if name not in ("PATH", "HOME", "PYTHONPATH")}
        )
        os.environ["DJANGO_SETTINGS_MODULE"] = settings
        import django

        django.setup()

    def close(self) -> None:
        for process in (self.site, self.vecsync):
            if process:
                process.stop()
        if self.qdrant:
            self.qdrant.kill()
        self.postgres.stop()
        shutil.rmtree(self.folder)


def get(url: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
    """Status and body; status 0 where nobody answers."""
    request = urllib.request.Request(url, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=15) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except (OSError, ConnectionError):
        return 0, ""


class Browser:
    """Chromium without a window, by WebDriver."""

    ELEMENT = "element-6066-11e4-a52e-4f735466cecf"

    def __init__(self) -> None:
        self.profile = Path(tempfile.mkdtemp(prefix="vecsync-django-browser-"))
        port = free_port()
        self.driver = Process("driver", ["chromedriver", f"--port={port}"], dict(os.environ), self.profile)
        self.url = f"http://127.0.0.1:{port}"
        wait_for("chromedriver to be ready", lambda: get(f"{self.url}/status")[0] == 200)
        arguments = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
            "--window-size=1280,900", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
            "--disable-background-networking", "--disable-component-update", "--no-first-run", f"--user-data-dir={self.profile}",
        ]  # fmt: skip
        wanted = {"browserName": "chrome", "goog:chromeOptions": {"args": arguments}, "goog:loggingPrefs": {"browser": "ALL"}}
        session = self._send("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self.url += f"/session/{session['sessionId']}"

    def _send(self, method: str, path: str, body: Any = None) -> Any:
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, content, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path}: {error.read().decode()[:500]}") from error

    def open(self, url: str) -> None:
        self._send("POST", "/url", {"url": url})

    def find(self, selector: str) -> str:
        return str(self._send("POST", "/element", {"using": "css selector", "value": selector})[self.ELEMENT])

    def click(self, selector: str) -> None:
        self._send("POST", f"/element/{self.find(selector)}/click", {})

    def fill(self, selector: str, text: str) -> None:
        element = self.find(selector)
        self._send("POST", f"/element/{element}/clear", {})
        self._send("POST", f"/element/{element}/value", {"text": text})

    def run(self, script: str) -> Any:
        return self._send("POST", "/execute/sync", {"script": script, "args": []})

    def text(self, selector: str) -> str:
        return str(self.run(f"return document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def screen(self, width: int, height: int, dark: bool = False) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._send("POST", "/goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": metrics})
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._send("POST", "/goog/cdp/execute", {"cmd": "Emulation.setEmulatedMedia", "params": {"features": features}})

    def picture(self) -> bytes:
        import base64

        return base64.b64decode(self._send("GET", "/screenshot"))

    def complaints(self) -> list[str]:
        return [f"{one['level']} {one['message']}" for one in self._send("POST", "/se/log", {"type": "browser"})]

    def close(self) -> None:
        try:
            self._send("DELETE", "")
        finally:
            self.driver.stop()
            shutil.rmtree(self.profile, ignore_errors=True)
