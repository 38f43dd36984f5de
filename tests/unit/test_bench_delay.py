# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The relay of the benchmarks: every byte, in its order, late, and the ends of connections too."""

from __future__ import annotations

import random
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Tuple

import pytest

from tests.bench.delay import HELD, Delay
from tests.support.runs import wait_until

SECONDS = 0.02
PATIENCE = 60  # seconds until a wait is given up; never a measure of speed


@pytest.fixture(scope="module")
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        listener.settimeout(PATIENCE)
        yield listener


@pytest.fixture(scope="module")
def port(listener: socket.socket) -> int:
    return Delay(listener.getsockname()[1], SECONDS).port


@contextmanager
def connected(listener: socket.socket, port: int) -> Iterator[Tuple[socket.socket, socket.socket]]:
    """A client, and what the server has of it."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        server = listener.accept()[0]
        server.settimeout(PATIENCE)
        with server:
            yield client, server


def send(end: socket.socket, data: bytes, seed: int) -> threading.Thread:
    """Send it in pieces of any size, then the end, meanwhile."""

    def run() -> None:
        pieces, at = random.Random(seed), 0
        while at < len(data):
            size = int(2 ** pieces.uniform(0, 20))
            end.sendall(data[at : at + size])
            at += size
        end.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def received(end: socket.socket) -> bytes:
    data = bytearray()
    while piece := end.recv(1 << 18):
        data += piece
    return bytes(data)


def speak_until_reset(end: socket.socket) -> None:
    with pytest.raises(ConnectionError):
        while True:
            end.sendall(b"-" * (1 << 16))


def test_both_ways_whole_and_in_order(listener: socket.socket, port: int) -> None:
    """More than can be on its way, to a receiver that begins late: what has no room waits."""
    there, back = random.Random(1).randbytes(2 * HELD + 12345), random.Random(2).randbytes(HELD + 1)
    with connected(listener, port) as (client, server):
        sending = send(client, there, 3), send(server, back, 4)
        sending[0].join(0.5)
        assert received(server) == there
        assert received(client) == back
        for each in sending:
            each.join(PATIENCE)


def test_never_early(listener: socket.socket, port: int) -> None:
    with connected(listener, port) as (client, server):
        for source, sink in [(client, server), (server, client)] * 5:
            sent = time.monotonic()
            source.sendall(b"-")
            assert sink.recv(10) == b"-"
            assert time.monotonic() - sent >= SECONDS
        ended = time.monotonic()
        client.shutdown(socket.SHUT_WR)
        assert server.recv(1) == b""
        assert time.monotonic() - ended >= SECONDS


def test_one_way_ends_and_the_other_goes_on(listener: socket.socket, port: int) -> None:
    with connected(listener, port) as (client, server):
        client.sendall(b"all I say")
        client.shutdown(socket.SHUT_WR)
        assert received(server) == b"all I say"
        server.sendall(b"an answer")
        assert client.recv(9) == b"an answer"
        server.close()
        assert client.recv(1) == b""


@pytest.mark.parametrize("speaks", [True, False])
def test_a_reset_ends_the_other_side(listener: socket.socket, port: int, speaks: bool) -> None:
    with connected(listener, port) as (client, server):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        assert server.recv(1) == b""
        if speaks:
            speak_until_reset(server)
    with connected(listener, port) as (client, server):  # the relay goes on
        client.sendall(b"-")
        assert server.recv(1) == b"-"


def test_last_words_of_a_server_that_stops_reading(listener: socket.socket, port: int) -> None:
    """As PostgreSQL says why it closes a connection while the client still sends."""
    with connected(listener, port) as (client, server):
        speaking = threading.Thread(target=speak_until_reset, args=(client,), daemon=True)
        speaking.start()
        assert server.recv(1) == b"-"
        server.sendall(b"FATAL")
        server.close()  # with bytes unread, which makes it a reset
        assert client.recv(5) == b"FATAL"
        speaking.join(PATIENCE)


def test_many_connections(listener: socket.socket, port: int) -> None:
    def echo(end: socket.socket) -> None:
        with end:
            end.sendall(received(end))
            end.shutdown(socket.SHUT_WR)

    clients = [socket.create_connection(("127.0.0.1", port), PATIENCE) for _client in range(60)]
    said = [random.Random(number).randbytes(number * 1000) for number in range(len(clients))]
    for _client in clients:
        threading.Thread(target=echo, args=(listener.accept()[0],), daemon=True).start()
    for number, (client, data) in enumerate(zip(clients, said)):
        send(client, data, number)
    for client, data in zip(clients, said):
        with client:
            assert received(client) == data


def test_nobody_at_the_other_side(port: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        unused = nobody.getsockname()[1]
    with socket.create_connection(("127.0.0.1", Delay(unused, SECONDS).port), PATIENCE) as client:
        assert client.recv(1) == b""


def test_ends_with_its_owner_however_that_ends() -> None:
    program = "import time; from tests.bench.delay import Delay; print(Delay(1, 0).port, flush=True); time.sleep(600)"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).resolve().parents[2]) as owner:
        assert owner.stdout
        port = int(owner.stdout.readline())
        socket.create_connection(("127.0.0.1", port), PATIENCE).close()
        owner.kill()

    def refused() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), PATIENCE).close()
        except ConnectionError:
            return True
        return False

    wait_until(refused, "the end of the relay")
