// A site that logs people in and answers <papermap-dashboard> with their tenant's token.
//
//   node backend.mjs
import { randomUUID } from "node:crypto";
import { connect } from "@nats-io/transport-node";
import express from "express";

const tenants = { ada: "org-1", bob: "org-2" }; // of the people
const sessions = new Map(); // tenants by the value of the cookie

const nc = await connect({
  servers: process.env.NATS_URL || "nats://127.0.0.1:4222",
  maxReconnectAttempts: -1,
});
const app = express();

app.post("/login", express.urlencoded(), (req, res) => {
  const user = req.body?.user; // check a password here
  if (!Object.hasOwn(tenants, user)) return res.status(401).json({ code: "LOG_IN", message: "unknown user" });
  const id = randomUUID();
  sessions.set(id, tenants[user]);
  res.cookie("session", id, { httpOnly: true, sameSite: "lax" }).redirect(303, "/");
});

app.post("/dashboard-token", async (req, res) => {
  res.set("Cache-Control", "no-store");
  const tenant = sessions.get(/(?:^|; )session=([^;]*)/.exec(req.headers.cookie ?? "")?.[1]);
  if (!tenant) return res.status(401).json({ code: "LOG_IN", message: "log in first" });
  try {
    const request = JSON.stringify({ tenant_id: tenant }); // never what the browser says
    const reply = await nc.request("papermap.rpc.embed-token", request, { timeout: 2000 });
    res.status(Number(reply.headers?.get("Nats-Service-Error-Code") || 200)).json(reply.json());
  } catch (err) {
    console.error("request a token:", err.message);
    res.status(503).json({ code: "UNAVAILABLE", message: "try again", retry_after: 2 });
  }
});

app.use(express.static(process.env.WEB || "../web"));
app.listen(Number(process.env.PORT || 3000), "127.0.0.1");
