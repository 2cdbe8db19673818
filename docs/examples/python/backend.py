"""A site that logs people in and answers <papermap-dashboard> with their tenant's token.

    uvicorn backend:app --port 3000
"""

import json
import os
import secrets
from contextlib import asynccontextmanager
from typing import Annotated

import nats
import nats.errors
from fastapi import Cookie, FastAPI, Form
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles

TENANTS = {"ada": "org-1", "bob": "org-2"}  # of the people
sessions = {}  # tenants by the value of the cookie

@asynccontextmanager
async def lifespan(app: FastAPI):
    url = os.environ.get("NATS_URL") or "nats://127.0.0.1:4222"
    app.state.nc = await nats.connect(url, max_reconnect_attempts=-1)
    yield
    await app.state.nc.close()


app = FastAPI(lifespan=lifespan)


def answer(status: int, body: dict) -> JSONResponse:
    return JSONResponse(body, status, {"Cache-Control": "no-store"})


@app.post("/login")
async def login(user: Annotated[str, Form()]):
    if user not in TENANTS:  # check a password here
        return answer(401, {"code": "LOG_IN", "message": "unknown user"})
    session = secrets.token_urlsafe()
    sessions[session] = TENANTS[user]
    response = RedirectResponse("/", 303)
    response.set_cookie("session", session, httponly=True, samesite="lax")
    return response


@app.post("/dashboard-token")
async def dashboard_token(session: Annotated[str | None, Cookie()] = None):
    if (tenant := sessions.get(session)) is None:
        return answer(401, {"code": "LOG_IN", "message": "log in first"})
    try:
        request = json.dumps({"tenant_id": tenant}).encode()  # never what the browser says
        reply = await app.state.nc.request("papermap.rpc.embed-token", request, timeout=2)
    except nats.errors.Error:
        return answer(503, {"code": "UNAVAILABLE", "message": "try again", "retry_after": 2})
    return answer(int((reply.headers or {}).get("Nats-Service-Error-Code", 200)), json.loads(reply.data))


app.mount("/", StaticFiles(directory=os.environ.get("WEB", "../web"), html=True))
