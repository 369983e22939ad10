"""A small web application of the kind that users write: it never blocks its loop."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from celery_bgtask import BgResult
from celery_bgtask.results.listener import listener_of
from tests.smoke import progress_tasks
from tests.smoke.app import app as celery_app


TASK = f"{progress_tasks.MODULE}.work"


def result_of(request: Request) -> BgResult:
    """The result that a path names."""
    return BgResult(request.path_params["task_id"], app=celery_app)


async def submit(request: Request) -> JSONResponse:
    """Submit a task."""
    facts = await request.json()
    result = celery_app.tasks[TASK].delay(facts.pop("key"), **facts)
    return JSONResponse({"id": result.id})


async def value(request: Request) -> JSONResponse:
    """Wait for the value of a task."""
    return JSONResponse({"value": await result_of(request).aget(timeout=60)})


async def events(request: Request) -> StreamingResponse:
    """Stream the progress of a task, then its value."""

    async def stream() -> AsyncIterator[str]:
        result = result_of(request)
        async for progress in result.aprogress():
            yield sse("progress", [progress.current, progress.description])
        yield sse("done", await result.aget(timeout=60))

    return StreamingResponse(stream(), media_type="text/event-stream")


def sse(event: str, data: Any) -> str:
    """A server-sent event."""
    return f"event: {event}\ndata: {json.dumps(data)}\n\n"


async def insight(_: Request) -> JSONResponse:
    """What this process is made of, for the test."""
    followers = listener_of(celery_app)._followers
    return JSONResponse(
        {
            "threads": [thread.name for thread in threading.enumerate()],
            "followers": sum(map(len, followers.values())),
        }
    )


web = Starlette(
    routes=[
        Route("/tasks", submit, methods=["POST"]),
        Route("/tasks/{task_id}", value),
        Route("/tasks/{task_id}/events", events),
        Route("/insight", insight),
    ]
)
