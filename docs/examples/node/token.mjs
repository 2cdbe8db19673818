// Asks for a tenant's embed token and prints the address for the iframe. While the answer says that trying again
// makes sense, it does, for half a minute.
//
//   node token.mjs TENANT
import { setTimeout as sleep } from "node:timers/promises";
import { connect } from "@nats-io/transport-node";

const [tenantId] = process.argv.slice(2);
if (!tenantId) {
  console.error("usage: node token.mjs TENANT");
  process.exit(2);
}

async function token(nc, until) {
  const request = JSON.stringify({ tenant_id: tenantId, ttl_seconds: 600 });
  for (;;) {
    const reply = await nc.request("papermap.rpc.embed-token", request, { timeout: 2000 });
    const answer = reply.json();
    const status = reply.headers?.get("Nats-Service-Error-Code"); // empty unless the body is an error
    if (!status) return answer;
    const wait = (answer.retry_after ?? 0) * 1000;
    if (wait === 0 || Date.now() + wait > until) {
      throw new Error(`${status} ${answer.code}: ${answer.message}`);
    }
    await sleep(wait);
  }
}

let nc;
try {
  nc = await connect({ servers: process.env.NATS_URL || "nats://127.0.0.1:4222" });
  const { embed_url } = await token(nc, Date.now() + 30_000);
  console.log(embed_url);
} catch (err) {
  console.error("token:", err.message); // "no responders": no worker listens there
  process.exitCode = 1;
} finally {
  await nc?.close();
}
