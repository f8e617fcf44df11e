"""A WebSocket by the library `websockets`: a server that answers numbers and sends its own, and who checks both.

`server ADDRESS PORT` runs on a host. `client ADDRESS PORT` says "connected"; then "report" on a line of its own gives
how many messages have come in which direction, "" (the end of input) closes the connection properly, and what is not
the next number is an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sys

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve

PAUSE_SECONDS = 0.005


async def answer(connection: ServerConnection) -> None:
    """Answer each message, and push numbers meanwhile."""
    pushing = asyncio.create_task(push(connection))
    try:
        async for message in connection:
            await connection.send(f"answer {message}")
    finally:
        pushing.cancel()


async def push(connection: ServerConnection) -> None:
    for number in itertools.count(1):
        await connection.send(f"push {number}")
        await asyncio.sleep(PAUSE_SECONDS)


async def run_server(address: str, port: int) -> None:
    """Serve for ever."""
    async with serve(answer, address, port) as server:
        await server.serve_forever()


class Client:
    """One connection. `came` counts what has come of each kind; everything must come once and in order."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self.came = {"push": 0, "answer": 0}
        self.error = ""

    async def ask(self) -> None:
        """Send the next number each time the last one is answered."""
        for number in itertools.count(1):
            await self._connection.send(str(number))
            while self.came["answer"] < number:
                await asyncio.sleep(PAUSE_SECONDS)

    async def listen(self) -> None:
        """Take what comes, until the connection is closed."""
        async for message in self._connection:
            kind, _, number = str(message).partition(" ")
            if int(number) != self.came[kind] + 1:
                self.error = self.error or f"{message} came after {self.came[kind]}"
            self.came[kind] = int(number)


async def run_client(address: str, port: int) -> None:
    """Talk until the end of input, obeying its lines."""
    lines: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def read() -> None:
        while (line := sys.stdin.readline()) != "":
            loop.call_soon_threadsafe(lines.put_nowait, line)
        loop.call_soon_threadsafe(lines.put_nowait, "")

    async with connect(f"ws://{address}:{port}") as connection:
        client = Client(connection)
        print("connected", flush=True)
        asking, listening = asyncio.create_task(client.ask()), asyncio.create_task(client.listen())
        reading = loop.run_in_executor(None, read)
        while await lines.get():
            print(json.dumps(client.came | {"error": client.error}), flush=True)
        asking.cancel()
        await connection.close()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(asking, listening)
        await reading
    closed = {"code": connection.close_code, "error": client.error}
    print(json.dumps(client.came | closed), flush=True)


if __name__ == "__main__":
    what, where, at = sys.argv[1:]
    asyncio.run({"server": run_server, "client": run_client}[what](where, int(at)))
