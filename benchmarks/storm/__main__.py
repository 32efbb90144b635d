"""Serve on the port that is given, or any, until the process is ended; prints the URL first."""

import asyncio
import sys

from benchmarks.storm.server import run

asyncio.run(run(int((sys.argv[1:] or ["0"])[0]), lambda url: print(url, flush=True), asyncio.Event()))
