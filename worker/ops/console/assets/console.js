// Charts, the state of the connection, local time, copy buttons, keyboard shortcuts, and questions before what cannot be
// undone. Without this file all can be read and done.
(() => {
  const colour = (element, property) => getComputedStyle(element).getPropertyValue(property).trim();

  // draw reads the first column as labels, and the columns of figures whose cells have a data-value: bars, then a line.
  const draw = (figure) => {
    const table = document.getElementById(figure.dataset.chart);
    if (!table || !window.uPlot) return;
    const rows = [...table.tBodies[0].rows];
    const labels = rows.map((r) => r.cells[0].textContent);
    const heads = [...table.tHead.rows[0].cells].map((c) => c.textContent);
    const series = (n) => rows.map((r) => Number(r.cells[n].dataset.value));
    const probe = (name) => {
      const e = document.createElement("i");
      e.className = name;
      figure.append(e);
      const c = colour(e, "color");
      e.remove();
      return c;
    };
    const [ink, grid, bars, line] = ["c-ink", "c-grid", "c-bars", "c-line"].map(probe);
    const short = (v) => (v >= 1e6 ? v / 1e6 + " M" : v >= 1e4 ? v / 1e3 + " k" : String(v));
    const axis = { stroke: ink, grid: { stroke: grid, width: 1 }, ticks: { show: false }, font: "12px system-ui", labelFont: "12px system-ui", labelSize: 18, size: 50 };
    const title = document.createElement("figcaption");
    title.textContent = `${heads[1]} and ${heads[2].toLowerCase()} by month, ${labels[0]} to ${labels.at(-1)}`;
    const tip = document.createElement("div");
    tip.className = "tip";
    tip.hidden = true;
    const point = (u) => {
      const i = u.cursor.idx;
      tip.hidden = i == null || u.cursor.left < 0;
      if (tip.hidden) return;
      const cells = rows[i].cells;
      tip.textContent = `${labels[i]}: ${cells[1].textContent} ${heads[1].toLowerCase()}, ${cells[2].textContent} ${heads[2].toLowerCase()}`;
      tip.style.left = `${Math.max(0, Math.min(figure.clientWidth - tip.offsetWidth, u.over.offsetLeft + u.valToPos(i, "x") - tip.offsetWidth / 2))}px`;
    };
    figure.replaceChildren(title, tip);
    const plot = new uPlot({
      width: figure.clientWidth, height: 240, padding: [12, 8, 0, 0],
      cursor: { y: false, points: { show: false }, drag: { x: false, y: false } }, hooks: { setCursor: [point] }, legend: { live: false },
      scales: { x: { time: false, range: [-0.6, labels.length - 0.4] }, credits: { range: (_, __, max) => [0, max * 1.1 || 1] }, requests: { range: (_, __, max) => [0, max * 1.1 || 1] } },
      axes: [
        { ...axis, size: 30, label: "Month, UTC", grid: { show: false }, splits: () => labels.map((_, i) => i), values: (_, splits) => splits.map((i) => ((figure.clientWidth - 140) / labels.length < 64 ? labels[i].slice(0, 3) : labels[i])) },
        { ...axis, scale: "credits", label: heads[1], values: (_, v) => v.map(short) },
        { ...axis, scale: "requests", label: heads[2], side: 1, grid: { show: false }, values: (_, v) => v.map(short) },
      ],
      series: [
        { label: heads[0], value: (_, i) => labels[i] ?? "" },
        { label: heads[1], scale: "credits", stroke: bars, fill: bars, paths: uPlot.paths.bars({ size: [0.55, 56] }), points: { show: false } },
        { label: heads[2], scale: "requests", stroke: line, width: 2, points: { size: 6, fill: line } },
      ],
    }, [labels.map((_, i) => i), series(1), series(2)], figure);
    plot.root.setAttribute("aria-hidden", "true"); // the table says it
    figure.plot = plot;
  };

  const drawAll = () => document.querySelectorAll("[data-chart]").forEach(draw);
  document.addEventListener("DOMContentLoaded", drawAll);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  let waiting;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(drawAll, 150);
  });

  // Times are shown as the browser's clock has them, with UTC for whoever points at them; ages grow.
  const two = (n) => String(n).padStart(2, "0");
  const clock = (t) => [t.getHours(), t.getMinutes(), t.getSeconds()].map(two).join(":");
  const zone = (t) => new Intl.DateTimeFormat("en", { timeZoneName: "short" }).formatToParts(t).find((p) => p.type === "timeZoneName").value;
  const local = (t) => `${[t.getFullYear(), t.getMonth() + 1, t.getDate()].map(two).join("-")} ${clock(t)} ${zone(t)}`;
  const utc = (t) => `${t.toISOString().slice(0, 19).replace("T", " ")} UTC`;
  const units = [[172800e3, 86400e3, "days"], [3600e3, 3600e3, "h"], [60e3, 60e3, "min"], [0, 1e3, "s"]];
  const age = (ms) => {
    if (Math.abs(ms) < 5e3) return "just now";
    const [, unit, name] = units.find(([from]) => Math.abs(ms) >= from);
    const text = `${Math.floor(Math.abs(ms) / unit)} ${name}`;
    return ms < 0 ? `in ${text}` : `${text} ago`;
  };
  let skew = 0; // of the worker's clock, in ms
  const write = (element, text) => {
    if (element.textContent !== text) element.textContent = text;
  };
  const times = () => document.querySelectorAll("time[datetime]").forEach((e) => {
    const t = new Date(e.dateTime);
    if (e.className === "age") write(e, age(Date.now() + skew - t));
    else write(e, e.className === "clock" ? clock(t) : local(t));
    e.title = e.className === "age" ? `${local(t)} · ${utc(t)}` : utc(t);
  });
  setInterval(() => {
    if (getSelection().isCollapsed && !document.hidden) times();
  }, 5000);

  // A button to copy what is copied often.
  const copies = () => document.querySelectorAll("[data-copy]:not(:has(+ .copy))").forEach((e) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    const what = e.dataset.copy || e.textContent;
    button.setAttribute("aria-label", `Copy ${e.textContent}`);
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(what);
      } catch { // a page without TLS has no clipboard
        getSelection().selectAllChildren(e);
        document.execCommand("copy");
        getSelection().removeAllRanges();
      }
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy"), 1500);
    });
    e.after(button);
  });

  // Buttons for chosen rows say how many, and rest until there are some.
  const chosen = (form) => {
    const all = form.querySelector('[name="all"]');
    return all?.checked ? Number(all.dataset.count) : form.querySelectorAll('[name="sequence"]:checked').length;
  };
  const choices = () => document.querySelectorAll("form.choices").forEach((form) => {
    const n = chosen(form), page = form.querySelector(".page");
    form.querySelectorAll("button").forEach((b) => (b.disabled = n === 0));
    form.querySelector(".chosen").textContent = n === 0 ? "None chosen" : `${n} chosen`;
    if (page) {
      page.hidden = false;
      page.checked = [...form.querySelectorAll('[name="sequence"]')].every((b) => b.checked);
    }
  });
  document.addEventListener("change", (event) => {
    const form = event.target.closest("form.choices");
    if (!form) return;
    if (event.target.matches(".page")) form.querySelectorAll('[name="sequence"]').forEach((b) => (b.checked = event.target.checked));
    else if (event.target.name === "sequence" && form.elements.all) form.elements.all.checked = false;
    choices();
  });

  const dress = () => {
    times();
    copies();
    choices();
  };
  document.addEventListener("DOMContentLoaded", () => {
    const ahead = new Date(document.getElementById("read")?.dateTime) - Date.now();
    if (Math.abs(ahead) > 5e3) skew = ahead;
    dress();
    document.querySelectorAll(".keys").forEach((e) => (e.hidden = false));
  });
  document.addEventListener("htmx:afterSettle", dress);

  // What the page shows is as old as the last answer. Where none comes, the head says so.
  const refreshes = (e) => e.getAttribute("hx-trigger")?.startsWith("every");
  const trouble = new Map(); // by what asked
  const tell = () => {
    const lost = document.getElementById("lost"), read = document.getElementById("read");
    if (!lost) return;
    const text = trouble.has("pulse") ? "Connection lost." : [...trouble.values()][0];
    document.documentElement.toggleAttribute("data-lost", trouble.has("pulse"));
    lost.hidden = !text;
    if (text) write(lost, `${text} This page shows data from ${clock(new Date(read.dateTime))}.`);
  };
  const failed = (event) => {
    const e = event.detail.elt, status = event.detail.xhr.status;
    if (!refreshes(e)) return;
    trouble.set(e.id, status && status !== 502 && status !== 504 ? "The worker cannot refresh this page now." : "Connection lost.");
    tell();
  };
  for (const name of ["sendError", "timeout", "responseError"]) document.addEventListener(`htmx:${name}`, failed);
  document.addEventListener("htmx:afterOnLoad", (event) => {
    const { requestConfig: { elt }, xhr } = event.detail, read = document.getElementById("read");
    if (xhr.status >= 400 || !read) return;
    trouble.delete(elt.id);
    const date = new Date(xhr.getResponseHeader("Date"));
    if (elt.id !== "pulse" && !isNaN(date)) read.dateTime = date.toISOString();
    tell();
  });

  // A page that refreshes itself waits while nobody looks, while somebody marks text to copy it, and while somebody writes.
  document.addEventListener("htmx:beforeRequest", (event) => {
    const e = event.detail.elt;
    if (!refreshes(e)) return;
    const busy = !getSelection().isCollapsed || (e.contains(document.activeElement) && document.activeElement.matches("input, select"));
    if (document.hidden || (busy && e.id !== "pulse")) event.preventDefault();
  });

  // Shortcuts, which no field and no other key takes part in.
  const places = { o: "/", t: "/tenants", a: "/attention", d: "/dead", u: "/usage", l: "/audit" };
  let going = 0;
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea") || document.querySelector("dialog[open]")) return;
    const soon = Date.now() - going < 1500;
    going = 0;
    if (soon && places[event.key]) location.assign(places[event.key]);
    else if (event.key === "g") going = Date.now();
    else if (event.key === "?") document.getElementById("keys")?.showModal();
    else if (event.key === "/") {
      const field = document.querySelector("form.search input");
      event.preventDefault();
      if (field) {
        field.focus();
        field.select();
      } else location.assign("/tenants#q");
    }
  });

  // What was refused in the background is asked for as a page, which says why.
  document.addEventListener("htmx:responseError", (event) => {
    if (event.detail.elt.matches("form[method=post]")) event.detail.elt.submit();
  });

  document.addEventListener("submit", (event) => {
    const question = event.submitter?.dataset.confirm ?? event.target.dataset.confirm;
    if (question && !confirm(question.replace("{n}", chosen(event.target)))) event.preventDefault();
  }, true);
})();
