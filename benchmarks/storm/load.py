"""How fast the storm judge answers: raw sockets, requests of 6 kB. ``python -m benchmarks.storm.load [seconds]``."""

from __future__ import annotations

import json
import socket
import sys
import time
from urllib.parse import urlsplit

from benchmarks import storm

CONNECTIONS, DIFFERENT = 32, 500


def requests(size: int = 6000) -> list[bytes]:
    """Whole HTTP requests with ranking prompts of about ``size`` bytes, each different."""
    mark, made = "0123456789abcdef", []
    for number in range(DIFFERENT):
        fill = (f"answer {number} says some more, " * size)[: size // 7 - 60]
        text = "\n".join(f"\n<answer {x} {mark}>\n{fill}\n</answer {x} {mark}>" for x in "ABCDEFG")
        messages = [{"role": "system", "content": f"tags carry the mark {mark}."}, {"role": "user", "content": text}]
        body = json.dumps({"messages": messages, "model": storm.MODEL}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        made.append(head.encode() + body)
    return made


def measure(url: str, seconds: float) -> float:
    """Replies per second over kept-alive connections, one request under way on each."""
    place, asks, done = urlsplit(url), requests(), 0
    lines = [socket.create_connection((str(place.hostname), int(place.port or 0))) for _ in range(CONNECTIONS)]
    try:
        begin = time.perf_counter()
        while time.perf_counter() - begin < seconds:
            for number, line in enumerate(lines):
                line.sendall(asks[(done + number) % DIFFERENT])
            for line in lines:
                _read(line)
            done += len(lines)
        return done / (time.perf_counter() - begin)
    finally:
        for line in lines:
            line.close()


def _read(line: socket.socket) -> None:
    got = line.recv(65536)
    head, _, body = got.partition(b"\r\n\r\n")
    left = int(head.rpartition(b"Content-Length: ")[2]) - len(body)
    while left > 0:
        left -= len(line.recv(65536))


if __name__ == "__main__":
    with storm.Process() as server:
        print(f"{measure(server.url, float((sys.argv[1:] or ['5'])[0])):,.0f} replies/s")
