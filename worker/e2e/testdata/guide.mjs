// The client of Papermap's multi-tenancy guide, step by step. It ends with an error at the first
// step that the worker answers differently.
import assert from "node:assert/strict";

const { API, EMBED, ADMIN, TENANT } = process.env;

async function call(method, path, token, body) {
  const headers = { "Content-Type": "application/json" };
  if (token) headers.Authorization = `Bearer ${token}`;
  const answer = await fetch(API + path, { method, headers, body: body && JSON.stringify(body) });
  return { status: answer.status, body: await answer.json() };
}

async function step(name, status, request, check = () => {}) {
  const answer = await call(...request);
  assert.equal(answer.status, status, `${name}: ${JSON.stringify(answer.body)}`);
  check(answer.body);
  return answer.body;
}

const refusal = (detail) => (body) => assert.equal(body.detail, detail);
const row = (tenant, description) => (body) => {
  assert.equal(body.tenant_id, tenant);
  assert.equal(body.workspace_id, "ws-test");
  assert.equal(body.description, description);
  assert.equal(body.created_by, "papermap-worker jwt");
  assert.ok(body.dashboard_id && body.created_at && body.updated_at);
};
const dashboard = (tenant_id, workspace_id, description = null) => ({
  tenant_id, workspace_id, name: "Sales Dashboard", description,
});

await step("log in first", 401, ["GET", "/dashboards/node-1", ""], refusal("Missing authorization"));
await step("an invalid token", 401, ["GET", "/dashboards/node-1", "x"], refusal("Invalid token"));
await step("create", 201, ["POST", "/dashboards/", ADMIN, dashboard("node-1", "ws-test")], row("node-1", null));
await step("create one's own", 201, ["POST", "/dashboards/", TENANT, dashboard("node-2", null, "Q1")],
  row("node-2", "Q1"));
await step("create another's", 403, ["POST", "/dashboards/", TENANT, dashboard("node-1", null)],
  refusal("Access denied"));
const mapping = await step("read", 200, ["GET", "/dashboards/node-2/", TENANT], row("node-2", "Q1"));
await step("read another's", 403, ["GET", "/dashboards/node-1/", TENANT], refusal("Access denied"));
await step("read an unknown one", 404, ["GET", "/dashboards/node-9/", ADMIN]);
await step("another's token", 403, ["POST", "/dashboards/node-1/embed-token/", TENANT]);
await step("usage", 200, ["GET", "/usage/?tenant_id=node-2", TENANT]);

for (const when of ["first", "refreshed"]) {
  const { token, dashboard_id, expires_at } = await step(`${when} token`, 200,
    ["POST", "/dashboards/node-2/embed-token/", TENANT, { ttl_seconds: null }]);
  assert.equal(dashboard_id, mapping.dashboard_id);
  assert.ok(expires_at > Date.now() / 1000);
  const frame = await fetch(`${EMBED}?embedded-token=${encodeURIComponent(token)}`);
  assert.equal(frame.status, 200, `${when} iframe`);
}
