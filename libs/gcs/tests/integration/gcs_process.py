"""A GCS to be killed. Usage: gcs_process.py ENDPOINT STORAGE, with the token on stdin."""

from __future__ import annotations

import asyncio
import sys

from skate_gcs import GcsConfig, GcsServer


async def main() -> None:
    token = sys.stdin.readline().strip()
    server = GcsServer(GcsConfig(sys.argv[1], token, sys.argv[2], holder="head"))
    print(await server.start(), flush=True)
    await server.wait_stopped()


asyncio.run(main())
