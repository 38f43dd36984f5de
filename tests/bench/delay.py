# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A network that is far away: a relay to a port of this machine that holds back every byte for a time, each way.

It delays and does not throttle: what has been sent goes on as fast as it comes, later. For machines whose kernel has no
`tc netem`; unlike that, it does not delay the handshake of a connection.

The relay is a process of its own, so that it takes no turns from the threads of the one that measures, and looks at its
connections at most once in a TICK: many small pieces then cost little more than a few large ones. A byte goes on up to
three TICKs late (one when it comes, one when it is due, and epoll counts in whole milliseconds), never early.
"""

from __future__ import annotations

import mmap
import select
import socket
import subprocess
import sys
import time
from collections import deque
from math import inf
from typing import ClassVar, Deque, Dict, List, Tuple

TICK = 0.001  # seconds
HELD = 16 << 20  # bytes on their way, in one direction of one connection: 1.5 GB/s at 10 ms


class Delay:
    """Listens on `port` of 127.0.0.1 until the interpreter ends. `seconds` is one way."""

    _relays: ClassVar[List[subprocess.Popen[bytes]]] = []  # kept, as a relay ends when its standard input is closed

    def __init__(self, target: int, seconds: float) -> None:
        relay = subprocess.Popen(
            [sys.executable, "-I", __file__, str(target), str(seconds)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )
        self._relays.append(relay)
        assert relay.stdout
        self.port = int(relay.stdout.readline())


class Way:
    """One direction of a connection. Positions count its bytes; those on their way are in a ring."""

    back: Way

    def __init__(self, source: socket.socket, sink: socket.socket, seconds: float) -> None:
        self.source, self.sink, self._seconds = source, sink, seconds
        self.readable = self.writable = True  # until tried; epoll then says when they are so again
        self.done = False
        self._ring = memoryview(mmap.mmap(-1, HELD))
        self._received = self._due = self._sent = 0
        self._arrivals: Deque[Tuple[float, int]] = deque()  # when the bytes before a position are due
        self._end = inf  # when the end is

    def move(self, now: float) -> float:
        """Take what has come and pass on what is due. Returns when to do so again if no socket asks for it before."""
        if self.done:
            return inf
        if self.readable and self._received - self._sent < HELD:
            self._take(now)
        while self._arrivals and self._arrivals[0][0] <= now:
            self._due = self._arrivals.popleft()[1]
        if self.writable and self._sent < self._due:
            self._pass_on()
        if self._sent == self._received:
            self._received = self._due = self._sent = 0  # the same memory again
            if self._end <= now:
                self._finish()
        if self.readable and self._received - self._sent < HELD or self.writable and self._sent < self._due:
            return now
        if not self.writable:
            return inf
        return self._arrivals[0][0] if self._arrivals else self._end

    def _take(self, now: float) -> None:
        start = self._received % HELD
        room = min(HELD - start, HELD - (self._received - self._sent))
        try:
            count = self.source.recv_into(self._ring[start : start + room])
        except BlockingIOError:
            self.readable = False
            return
        except OSError:  # a reset goes on as an end; what is sent back will find nobody
            count = 0
        if count:
            self._received += count
            self._arrivals.append((now + self._seconds, self._received))
        else:
            self.readable = False
            self._end = now + self._seconds

    def _pass_on(self) -> None:
        start = self._sent % HELD
        try:
            self._sent += self.sink.send(self._ring[start : min(start + self._due - self._sent, HELD)])
        except BlockingIOError:
            self.writable = False
        except OSError:  # nobody takes it; what they last said still comes back
            self.done = True

    def _finish(self) -> None:
        self.done = True
        try:
            self.sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it is closed already

    def close(self) -> None:
        self._ring.release()
        self.source.close()


def connect(listener: socket.socket, target: int, seconds: float) -> List[Way]:
    """The two ways of the connection that waits; none if nobody listens on `target`."""
    near = listener.accept()[0]
    try:
        far = socket.create_connection(("127.0.0.1", target))
    except OSError:
        near.close()
        return []
    for end in (near, far):
        end.setblocking(False)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    there, back = Way(near, far, seconds), Way(far, near, seconds)
    there.back, back.back = back, there
    return [there, back]


def relay(target: int, seconds: float) -> None:
    """Until standard input ends, which is when the process that started this one does."""
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    epoll = select.epoll()
    epoll.register(listener, select.EPOLLIN)
    epoll.register(sys.stdin, select.EPOLLIN)
    ways: Dict[int, Way] = {}  # by the descriptor of their source
    times: Dict[Way, float] = {}  # when to move them
    now = 0.0
    while True:
        first = min(times.values(), default=inf)
        events = epoll.poll(None if first == inf else max(0.0, first - time.monotonic()))
        before, now = now, time.monotonic()
        moving = {way for way, due in times.items() if due <= now}
        for descriptor, event in events:
            if descriptor == sys.stdin.fileno():
                return
            if descriptor == listener.fileno():
                for way in connect(listener, target, seconds):
                    ways[way.source.fileno()] = way
                    epoll.register(way.source, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
                continue
            way = ways[descriptor]
            if event & ~select.EPOLLOUT:
                way.readable = True
                moving.add(way)
            if event & ~select.EPOLLIN:
                way.back.writable = True
                moving.add(way.back)
        for way in moving:
            times[way] = way.move(now)
            if way.done and way.back.done:
                for each in (way, way.back):
                    ways.pop(each.source.fileno(), None)
                    times.pop(each, None)
                    each.close()
        if now - before < 2 * TICK:
            time.sleep(TICK)


if __name__ == "__main__":
    relay(int(sys.argv[1]), float(sys.argv[2]))
