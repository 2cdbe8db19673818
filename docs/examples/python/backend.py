"""A site that logs people in and answers <papermap-dashboard> with their tenant's token, over REST.

    HTTP_JWT_SECRET=$(cat ../../../.papermap-dev/jwt-secret) uvicorn backend:app --port 3000
"""

import json
import os
import secrets
import time
import urllib.error
import urllib.parse
import urllib.request

import jwt
from fastapi import Cookie, FastAPI, Form
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles

WORKER = os.environ.get("WORKER_URL") or "http://127.0.0.1:8080"
KEY = os.environ["HTTP_JWT_SECRET"]  # or your identity provider's token of the person
TENANTS = {"ada": "org-1", "bob": "org-2"}  # of the people
sessions = {}  # tenants by the value of the cookie

app = FastAPI()


def answer(status: int, body: dict, retry_after: str | None = None) -> JSONResponse:
    headers = {"Cache-Control": "no-store"} | ({"Retry-After": retry_after} if retry_after else {})
    return JSONResponse(body, status, headers)


@app.post("/login")
def login(user: str = Form()):
    if user not in TENANTS:  # check a password here
        return answer(401, {"code": "LOG_IN", "message": "unknown user"})
    session = secrets.token_urlsafe()
    sessions[session] = TENANTS[user]
    response = RedirectResponse("/", 303)
    response.set_cookie("session", session, httponly=True, samesite="lax")
    return response


@app.post("/dashboard-token")
def dashboard_token(session: str | None = Cookie(None)):
    if (tenant := sessions.get(session)) is None:
        return answer(401, {"code": "LOG_IN", "message": "log in first"})
    bearer = jwt.encode({"tenant_id": tenant, "exp": int(time.time()) + 60}, KEY)
    url = f"{WORKER}/api/v1/dashboards/{urllib.parse.quote(tenant, safe='')}/embed-token"
    request = urllib.request.Request(url, method="POST", headers={"Authorization": f"Bearer {bearer}"})
    try:
        with urllib.request.urlopen(request, timeout=2) as reply:
            return answer(reply.status, json.load(reply))
    except urllib.error.HTTPError as refused:
        return answer(refused.code, json.load(refused), refused.headers["Retry-After"])
    except OSError:
        return answer(503, {"code": "UNAVAILABLE", "message": "try again"}, "2")


app.mount("/", StaticFiles(directory=os.environ.get("WEB", "../web"), html=True))
