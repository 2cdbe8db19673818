"""Asks for a tenant's embed token and prints the address for the iframe. While the answer says that trying again
makes sense, it does, for half a minute.

    python embed_token.py TENANT
"""

import asyncio
import json
import os
import sys
import time

import nats


async def embed_token(tenant_id: str, until: float) -> dict:
    nc = await nats.connect(os.environ.get("NATS_URL") or "nats://127.0.0.1:4222", allow_reconnect=False)
    try:
        request = json.dumps({"tenant_id": tenant_id, "ttl_seconds": 600}).encode()
        while True:
            reply = await nc.request("papermap.rpc.embed-token", request, timeout=2)
            answer = json.loads(reply.data)
            status = (reply.headers or {}).get("Nats-Service-Error-Code")
            if not status:
                return answer
            wait = answer.get("retry_after", 0)
            if wait == 0 or time.monotonic() + wait > until:
                raise RuntimeError(f"{status} {answer['code']}: {answer['message']}")
            await asyncio.sleep(wait)
    finally:
        await nc.close()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python embed_token.py TENANT")
    try:
        print(asyncio.run(embed_token(sys.argv[1], time.monotonic() + 30))["embed_url"])
    except Exception as err:  # NoRespondersError: no worker listens there
        sys.exit(f"token: {err!r}")
