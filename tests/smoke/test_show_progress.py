"""The web pages of docs/howto/show-progress.md work as they are written.

What it shows on a terminal is run by ``tests/test_docs_cli.py``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest

from celery_bgtask.testing import embedded_server
from tests.helpers import wait_until
from tests.smoke.browser import LONG, Page, get, served
from tests.smoke.nodes import ROOT


PAGE = (ROOT / "docs/howto/show-progress.md").read_text(encoding="utf-8")

FILE = re.compile(
    r"^```\w+\n(?:# |<!-- )([\w/]+\.\w+)(?: -->)?\n(.*?)^```$", re.MULTILINE | re.DOTALL
)

#: What `django-admin startproject` makes, and Celery's documentation adds to it.
PROJECT = {
    "exports/__init__.py": "",
    "mysite/__init__.py": "from .celery import app\n",
    "mysite/celery.py": """
import os
from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
app = Celery("mysite")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
""",
    "mysite/settings.py": """
SECRET_KEY = "of a test"
DEBUG = True
ROOT_URLCONF = "mysite.urls"
STATIC_URL = "/static/"
TEMPLATES = [
    {"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}
]
""",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The files of the page, with a server of their own."""
    folder = tmp_path_factory.mktemp("page")
    with embedded_server() as server:
        files = dict(PROJECT)
        for name, text in FILE.findall(PAGE):
            files[name] = files.get(name, "") + text
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            here = text.replace("redis://127.0.0.1:6379/0", server.url)
            path.write_text(here, encoding="utf-8")
        yield folder


@contextmanager
def running_worker(folder: Path, app: str) -> Iterator[None]:
    """A worker of *app*."""
    log = folder / f"{app}.log"
    with log.open("wb") as output:
        worker = subprocess.Popen(
            [*(sys.executable, "-m", "celery", "-A", app), "worker", "-c2", "-lINFO"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
            stdout=output,
            stderr=output,
        )
    try:
        wait_until(lambda: " ready." in log.read_text(), within=45, that="it is ready")
        yield
    finally:
        worker.terminate()
        worker.wait(LONG)


def test_a_browser_hears_events_to_the_end(folder: Path) -> None:
    """Who opens the stream before the start gets each report, and the state."""
    with ExitStack() as stack:
        web = ("uvicorn", "web:web", "--host", "{host}", "--port", "{port}")
        url = stack.enter_context(served(folder, *web))
        client = stack.enter_context(httpx.Client(timeout=LONG))
        stream = stack.enter_context(client.stream("GET", f"{url}/progress/soon"))
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.extend(stream.iter_lines()))
        reader.start()
        stack.enter_context(running_worker(folder, "shop"))
        submit = "from shop import export; export.apply_async((1, 4), task_id='soon')"
        subprocess.run([sys.executable, "-c", submit], cwd=folder, check=True)
        reader.join(LONG)

    *reports, end = "\n".join(lines).strip().split("\n\n")
    assert [json.loads(report.removeprefix("data: ")) for report in reports] == [
        {"percent": percent, "description": "exporting"}
        for percent in (0.0, 25.0, 50.0, 75.0, 100.0)
    ]
    assert end == 'event: done\ndata: "SUCCESS"'


def test_a_page_of_django_shows_a_task_to_its_end(folder: Path) -> None:
    """The page starts the export, and its script moves the bar to the end."""
    with ExitStack() as stack:
        stack.enter_context(running_worker(folder, "mysite"))
        run = ("django", "runserver", "--noreload", "{host}:{port}")
        site = served(folder, *run, DJANGO_SETTINGS_MODULE="mysite.settings")
        url = stack.enter_context(site)
        html = get(f"{url}/export/42/")
        script = re.search(r'<script src="(.+?)">', html)
        progress = re.search(r'initProgressBar\("(.+?)"\)', html)
        assert script is not None, html
        assert progress is not None, html
        page = Page(urljoin(url, script[1]), urljoin(url, progress[1]))
        stack.callback(page.close)
        page.shows("message", "textContent", "Success! twelve months")

    widths = [value for name, what, value in page.seen if what == "width"]
    assert widths[-1] == "100%"
