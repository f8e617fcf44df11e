"""How a failure leaves a gRPC service of ours: status and, in the trailing metadata, the whole `PhaulError`.

A decorator for servicer methods in `agent_service` and `peer_service`; `client.reported_error` is its counterpart.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn, TypeVar

import grpc
import structlog

from phaul.agent.client import ERROR_METADATA_KEY
from phaul.agent.messages import error_to_message
from phaul.errors import DefectError, PhaulError

log = structlog.get_logger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
R = TypeVar("R")


async def _abort(context: Context, method: str, error: Exception) -> NoReturn:
    if isinstance(error, PhaulError):
        reported = error
        log.info("call.refused", method=method, code=error.code, reason=error.message)
    else:
        log.exception("call.failed", method=method)
        reported = DefectError(f"{method} failed: {type(error).__name__}: {error}")
    await context.abort(
        grpc.StatusCode[reported.grpc_status],
        reported.message,
        trailing_metadata=((ERROR_METADATA_KEY, error_to_message(reported).SerializeToString()),),
    )
    raise AssertionError("abort returns never")


def reports_errors(
    method: Callable[[Any, Any, Context], Awaitable[R]],
) -> Callable[[Any, Any, Context], Awaitable[R]]:
    """Make a unary servicer method report what it raises."""

    @functools.wraps(method)
    async def answered(self: Any, request: Any, context: Context) -> R:
        try:
            return await method(self, request, context)
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller must be told
            await _abort(context, method.__name__, error)

    return answered


def reports_stream_errors(
    method: Callable[[Any, Any, Context], AsyncIterator[R]],
) -> Callable[[Any, Any, Context], AsyncIterator[R]]:
    """Do the same for a method that answers with a stream."""

    @functools.wraps(method)
    async def answered(self: Any, request: Any, context: Context) -> AsyncIterator[R]:
        try:
            async for reply in method(self, request, context):
                yield reply
        except Exception as error:  # noqa: BLE001 - as above
            await _abort(context, method.__name__, error)

    return answered
