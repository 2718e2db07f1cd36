"""Connects pairs of ICE agents through a TURN relay on loopback and nothing else, and sends messages each way.

Usage: aioice_pair.py MESSAGES PAIRS"""

import asyncio
import sys

import aioice

COUNT, PAIRS = int(sys.argv[1]), int(sys.argv[2])


def agent(controlling):
    connection = aioice.Connection(
        ice_controlling=controlling,
        stun_server=None,
        turn_server=("127.0.0.1", 3478),
        turn_username="alice",
        turn_password="secret",
        transport_policy=aioice.TransportPolicy.RELAY,
    )
    return connection


async def send(connection, name):
    for number in range(COUNT):
        await connection.send(f"{name} {number}".encode())
        # asyncio reads one datagram a turn of its loop: faster, and the loss would be in this process.
        await asyncio.sleep(0.001)


async def receive(connection, name):
    seen = set()
    while len(seen) < COUNT:
        message = await asyncio.wait_for(connection.recv(), 10)
        seen.add(message.decode())
    assert seen == {f"{name} {number}" for number in range(COUNT)}, seen


async def connect():
    a, b = agent(True), agent(False)
    await asyncio.gather(a.gather_candidates(), b.gather_candidates())
    for connection in (a, b):
        types = {candidate.type for candidate in connection.local_candidates}
        assert types == {"relay"}, types
    for one, other in ((a, b), (b, a)):
        for candidate in one.local_candidates:
            await other.add_remote_candidate(candidate)
        await other.add_remote_candidate(None)
        other.remote_username, other.remote_password = one.local_username, one.local_password
    await asyncio.gather(a.connect(), b.connect())
    await asyncio.gather(send(a, "a"), send(b, "b"), receive(a, "b"), receive(b, "a"))
    await asyncio.gather(a.close(), b.close())


async def main():
    for _ in range(PAIRS):
        await connect()
    print(f"{PAIRS} pairs: {COUNT} messages each way, relayed")


asyncio.run(main())
