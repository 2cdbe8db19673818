// Tells the worker of a new tenant and returns when the stream has stored the event.
//
//   node publish.mjs TENANT NAME [DASHBOARD]
//
// With the id of a dashboard that the tenant has at Papermap already, it gets that one.
import { connect } from "@nats-io/transport-node";
import { jetstream } from "@nats-io/jetstream";

const [tenantId, name, dashboardId] = process.argv.slice(2);
if (!name) {
  console.error("usage: node publish.mjs TENANT NAME [DASHBOARD]");
  process.exit(2);
}

let nc;
try {
  nc = await connect({ servers: process.env.NATS_URL || "nats://127.0.0.1:4222" });
  const data = JSON.stringify({ tenant_id: tenantId, name, dashboard_id: dashboardId });
  const ack = await jetstream(nc).publish("papermap.events.tenant.created", data, { msgID: `signup-${tenantId}`, timeout: 10_000 });
  console.log(`stored in ${ack.stream} as ${ack.seq}, duplicate: ${ack.duplicate}`);
} catch (err) {
  // It may be stored or not: publishing it again under the same id is right in both cases.
  console.error("publish:", err.message);
  process.exitCode = 1;
} finally {
  await nc?.close();
}
