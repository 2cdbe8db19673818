"""Tells the worker of a new tenant and returns when the stream has stored the event.

    python publish.py TENANT NAME
"""

import asyncio
import json
import os
import sys

import nats


async def publish(tenant_id: str, name: str) -> None:
    nc = await nats.connect(os.environ.get("NATS_URL") or "nats://127.0.0.1:4222", allow_reconnect=False)
    try:
        data = json.dumps({"tenant_id": tenant_id, "name": name}).encode()
        ack = await nc.jetstream().publish(
            "papermap.events.tenant.created", data, timeout=10, headers={"Nats-Msg-Id": f"signup-{tenant_id}"}
        )
        print(f"stored in {ack.stream} as {ack.seq}, duplicate: {bool(ack.duplicate)}")
    finally:
        await nc.close()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python publish.py TENANT NAME")
    try:
        asyncio.run(publish(sys.argv[1], sys.argv[2]))
    except Exception as err:
        # It may be stored or not: publishing it again under the same id is right in both cases.
        sys.exit(f"publish: {err!r}")
