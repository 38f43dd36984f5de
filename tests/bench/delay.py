# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A network that is far away: a relay to a port of this machine that holds back every byte for a time, each way.

It delays and does not throttle: what has been sent goes on as fast as it comes, later. For machines whose kernel has no
`tc netem`; unlike that, it does not delay the handshake of a connection.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from typing import Deque, Tuple

CHUNK = 1 << 18
HELD = 64 << 20  # bytes on their way, in one direction of one connection


class Delay:
    """Listens on `port` of 127.0.0.1 until the interpreter ends. `seconds` is one way."""

    def __init__(self, target: int, seconds: float) -> None:
        self._target, self._seconds = target, seconds
        self.port = 0
        self._listens = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True).start()
        self._listens.wait()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=CHUNK)
        self.port = server.sockets[0].getsockname()[1]
        self._listens.set()
        await server.serve_forever()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target, limit=CHUNK)
        await asyncio.gather(self._relay(reader, far_writer), self._relay(far_reader, writer), return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        way: Deque[Tuple[float, bytes]] = deque()
        changed = asyncio.Event()
        held = 0

        async def arrive() -> None:
            nonlocal held
            while True:
                while not way:
                    changed.clear()
                    await changed.wait()
                due, data = way[0]
                await asyncio.sleep(max(0.0, due - loop.time()))
                way.popleft()
                held -= len(data)
                changed.set()
                if not data:
                    writer.close()
                    return
                writer.write(data)
                await writer.drain()

        arriving = asyncio.ensure_future(arrive())
        data = b"-"
        while data:
            try:
                data = await reader.read(CHUNK)
            except ConnectionError:
                data = b""
            way.append((loop.time() + self._seconds, data))
            held += len(data)
            changed.set()
            while held > HELD:
                changed.clear()
                await changed.wait()
        await asyncio.gather(arriving, return_exceptions=True)
