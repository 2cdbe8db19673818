// Charts from the tables under them, and questions before what cannot be undone. Without this file all can be read and done.
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
    const axis = { stroke: ink, grid: { stroke: grid, width: 1 }, ticks: { show: false }, font: "12px system-ui", size: 56 };
    figure.replaceChildren();
    const plot = new uPlot({
      width: figure.clientWidth, height: 240, padding: [12, 8, 0, 0],
      cursor: { show: false }, legend: { live: false },
      scales: { x: { time: false, range: [-0.6, labels.length - 0.4] }, credits: { range: (_, __, max) => [0, max * 1.1 || 1] }, requests: { range: (_, __, max) => [0, max * 1.1 || 1] } },
      axes: [
        { ...axis, size: 34, grid: { show: false }, splits: () => labels.map((_, i) => i), values: (_, splits) => splits.map((i) => (figure.clientWidth / labels.length < 64 ? labels[i].slice(0, 3) : labels[i])) },
        { ...axis, scale: "credits", values: (_, v) => v.map(short) },
        { ...axis, scale: "requests", side: 1, grid: { show: false }, values: (_, v) => v.map(short) },
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

  // A page that refreshes itself waits while nobody looks, or while somebody marks text to copy it.
  document.addEventListener("htmx:beforeRequest", (event) => {
    const refresh = event.detail.elt.getAttribute("hx-trigger")?.startsWith("every");
    if (refresh && (document.hidden || !getSelection().isCollapsed)) event.preventDefault();
  });
  // What was refused in the background is asked for as a page, which says why.
  document.addEventListener("htmx:responseError", (event) => {
    if (event.detail.elt.matches("form[method=post]")) event.detail.elt.submit();
  });

  document.addEventListener("submit", (event) => {
    const question = event.submitter?.dataset.confirm ?? event.target.dataset.confirm;
    if (question && !confirm(question)) event.preventDefault();
  }, true);
})();
