"""Connects two WebRTC peers through a TURN relay on loopback and nothing else, and sends 500 messages each way over a data
channel: ICE, DTLS and SCTP inside of TURN. An argument is added to the URI: ?transport=tcp."""

import asyncio
import sys

from aiortc import (
    RTCConfiguration,
    RTCIceServer,
    RTCIceTransportPolicy,
    RTCPeerConnection,
)

COUNT = 500
# A datagram takes one of them, so that the relay's counters can tell whether it had them all.
SIZE = 1000


def peer():
    server = RTCIceServer("turn:127.0.0.1:3478" + "".join(sys.argv[1:]), username="alice", credential="secret")
    return RTCPeerConnection(RTCConfiguration([server], iceTransportPolicy=RTCIceTransportPolicy.RELAY))


def message(name, number):
    return f"{name} {number}".ljust(SIZE)


async def exchange(channel, name, other):
    opened, received = asyncio.Event(), asyncio.Queue()
    channel.on("message", received.put_nowait)
    channel.on("open", opened.set)
    if channel.readyState != "open":
        await asyncio.wait_for(opened.wait(), 20)
    for number in range(COUNT):
        channel.send(message(name, number))
    for number in range(COUNT):
        assert await asyncio.wait_for(received.get(), 20) == message(other, number)


def relayed_only(description):
    candidates = [line for line in description.sdp.splitlines() if line.startswith("a=candidate:")]
    assert candidates and all(" typ relay" in line for line in candidates), candidates
    return description


async def main():
    a, b = peer(), peer()
    theirs = asyncio.get_running_loop().create_future()
    b.on("datachannel", theirs.set_result)
    mine = a.createDataChannel("messages")
    # Before anything is open, so that no message comes before somebody listens.
    ours = asyncio.create_task(exchange(mine, "a", "b"))
    await a.setLocalDescription(await a.createOffer())
    await b.setRemoteDescription(relayed_only(a.localDescription))
    await b.setLocalDescription(await b.createAnswer())
    await a.setRemoteDescription(relayed_only(b.localDescription))
    await exchange(await asyncio.wait_for(theirs, 20), "b", "a")
    await ours
    await asyncio.gather(a.close(), b.close())
    print(f"{COUNT} messages each way, relayed")


asyncio.run(main())
