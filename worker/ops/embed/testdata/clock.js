// Replaces the page's clocks, timers and visibility before any other script runs. Time passes only in
// clock.advance and clock.sleep, and what the network does takes none of it.
if (window === top) {
  const delay = setTimeout.bind(window);
  const request = fetch.bind(window);
  const timers = new Map();
  const started = 1_800_000_000_000;
  let ids = 0, busy = 0, hidden = false, gap = 0;

  const policy = trustedTypes.createPolicy("test", { createHTML: (html) => html });
  const find = (selector) => document.querySelector("papermap-dashboard")?.shadowRoot.querySelector(selector);
  const frame = () => find("iframe:not([inert])");
  const loading = () => find("iframe[inert]");
  const validUntil = () => Number(frame() && new URL(frame().src).searchParams.get("exp"));

  const clock = window.clock = {
    now: 0, // the true time
    mono: 0, // performance.now()
    wall: started, // Date.now()
    granting: true, // whether the backend should give tokens now
    hangs: false, // whether a request is not waited for
    gap: 0, // longest time without a valid token while the page is visible, awake and online
    requests: 0, // also those that do not reach the backend
    events: [],
    frame,
    get timers() { return timers.size; },

    put: (html) => { document.body.innerHTML = policy.createHTML(html); },

    // settle waits until nothing is loading.
    async settle() {
      await null;
      await null;
      while (!clock.hangs && (busy || loading())) {
        await new Promise((done) => delay(done, 1));
      }
    },

    pass(ms) {
      const end = clock.now + ms;
      gap = clock.granting && !hidden && navigator.onLine && validUntil() < end
        ? gap + end - Math.max(clock.now, validUntil()) : 0;
      clock.gap = Math.max(clock.gap, gap);
      clock.now = end;
      clock.mono += ms;
      clock.wall += ms;
    },

    async advance(seconds) {
      const end = clock.now + seconds * 1000;
      await clock.settle();
      for (;;) {
        const [id, timer] = [...timers].sort((a, b) => a[1].at - b[1].at)[0] ?? [];
        const wait = id ? Math.max(timer.at - clock.mono, 0) : Infinity;
        clock.pass(Math.min(wait, end - clock.now));
        if (wait > 0 && clock.now >= end && timer?.at !== clock.mono) return;
        timers.delete(id);
        timer.run();
        if (busy || loading()) await clock.settle();
      }
    },

    // sleep is a computer's: no timer runs, and performance.now() stands still.
    sleep(seconds) {
      clock.now += seconds * 1000;
      clock.wall += seconds * 1000;
    },

    // show hides the page, or shows it again.
    show(visible) {
      hidden = !visible;
      document.dispatchEvent(new Event("visibilitychange"));
    },
  };

  performance.now = () => clock.mono;
  Date.now = () => clock.wall;
  window.setTimeout = (run, ms) => {
    if (ms > 2 ** 31 - 1) ms = 1; // as browsers do
    timers.set(++ids, { at: clock.mono + (ms || 0), run });
    return ids;
  };
  window.clearTimeout = (id) => timers.delete(id);
  window.fetch = async (...args) => {
    document.cookie = `now=${Math.round(clock.now)}; path=/`;
    busy++;
    clock.requests++;
    try {
      const response = await request(...args);
      const body = await response.text();
      return new Response(response.status === 204 ? null : body, response);
    } finally {
      delay(() => busy--, 0); // after the element has read it
    }
  };
  Object.defineProperty(document, "visibilityState", { get: () => (hidden ? "hidden" : "visible") });
  Object.defineProperty(document, "hidden", { get: () => hidden });
  for (const name of ["papermap-ready", "papermap-refreshed", "papermap-error"]) {
    addEventListener(name, ({ detail: d }) => {
      const what = d ? ` ${d.status} ${d.code} ${d.retryAfter} ${d.retrying ? "retrying" : "ended"}` : "";
      clock.events.push(`${clock.now / 1000} ${name.slice(9)}${what}`);
    });
  }
}
