"""What ``docs/operations-rabbitmq.md`` asks of ``connect_robust``, on a server that says nothing."""

from __future__ import annotations

import asyncio

import aio_pika
from yarl import URL


async def test_a_handshake_that_nobody_answers_is_made_again() -> None:
    """With a time limit aio-pika gives up a handshake without an answer, and tries again."""
    attempts: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
    server = await asyncio.start_server(lambda _, writer: attempts.put_nowait(writer), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    connection = aio_pika.RobustConnection(URL(f"amqp://127.0.0.1:{port}/?fail_fast=0&reconnect_interval=0.01"))
    connecting = asyncio.create_task(connection.connect(timeout=0.05))
    taken: list[asyncio.StreamWriter] = []
    try:
        async with asyncio.timeout(5):
            while len(taken) < 3:
                taken.append(await attempts.get())
    finally:
        connecting.cancel()
        await connection.close()
        server.close()
        for writer in taken:
            writer.close()
