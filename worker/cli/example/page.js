// Shows the element's events, and pretends to be offline.
const list = document.querySelector("#events");
const dashboard = document.querySelector("papermap-dashboard");

for (const name of ["papermap-ready", "papermap-refreshed", "papermap-error"]) {
  dashboard.addEventListener(name, ({ detail }) => {
    const item = document.createElement("li");
    item.textContent = `${new Date().toLocaleTimeString()} ${name} ${detail ? JSON.stringify(detail) : ""}`;
    list.prepend(item);
  });
}

document.querySelector("#refresh").addEventListener("click", () => dashboard.refresh());

const offline = document.querySelector("#offline");
let online = true;
Object.defineProperty(navigator, "onLine", { get: () => online });
offline.addEventListener("click", () => {
  online = !online;
  offline.textContent = online ? "Go offline" : "Go online";
  offline.setAttribute("aria-pressed", String(!online));
  dispatchEvent(new Event(online ? "online" : "offline"));
});
