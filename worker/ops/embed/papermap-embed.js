// <papermap-dashboard src="/your/endpoint"> shows a Papermap dashboard and keeps its token valid.
// The endpoint is your backend's: it answers with the body of an embed-token reply. This file needs
// no build step and no other file. Its manual is docs/embedding.md of papermap-worker.

const TICK = 1000; // longest time between two looks at the clock while the page is visible
const GIVE_UP = 10_000; // for a request, and for a frame's first load
const LONGEST_WAIT = 900; // seconds of a retry_after that are believed
const FRAME = {
  allow: "fullscreen; clipboard-write",
  referrerPolicy: "no-referrer", // Papermap need not know the page's address
  // The frame's page may not navigate this one, nor open dialogs.
  sandbox: "allow-scripts allow-same-origin allow-forms allow-popups " +
    "allow-popups-to-escape-sandbox allow-downloads",
};
const STYLE = `
:host { display: block; position: relative; overflow: hidden; min-height: 20rem }
:host([hidden]), [hidden] { display: none !important }
iframe[inert] { opacity: 0 }
iframe, div { position: absolute; inset: 0; width: 100%; height: 100%; border: 0 }
div { display: grid; place-content: center; justify-items: center; gap: 1rem; text-align: center }
button { font: inherit; color: inherit; background: none; padding: .4em 1em; cursor: pointer;
  border: 1px solid; border-radius: .4em }
[part=loading]::after { content: ""; width: 2rem; height: 2rem; border-radius: 50%; border: 3px solid;
  border-block-start-color: transparent; animation: turn 1s linear infinite }
@keyframes turn { to { rotate: 1turn } }
@media (prefers-reduced-motion: reduce) { [part=loading]::after { animation: none } }`;

// time returns milliseconds since some moment. performance.now() stands still while some computers
// sleep, and the wall clock can be set, so it follows the faster of the two.
let ahead = Date.now() - performance.now(); // of the wall clock, when last seen
let slept = 0;
function time() {
  const now = performance.now();
  const jump = Date.now() - now - ahead;
  if (Math.abs(jump) > 250) {
    slept += Math.max(jump, 0);
    ahead += jump;
  }
  return now + slept;
}

const visible = () => document.visibilityState === "visible";

function parseURL(text, base) {
  try {
    return new URL(text, base);
  } catch {
    return null;
  }
}

// readAnswer checks an embed-token reply that was requested at a time. It returns null for anything
// else.
function readAnswer(body, at) {
  const { embed_url: url, expires_in: left, expires_at: until, refresh_after: renew } = body ?? {};
  const numbers = [left, until, renew].every((n) => n == null || Number.isFinite(n));
  const scheme = typeof url === "string" && parseURL(url)?.protocol;
  const seconds = left > 0 ? left : until - Date.now() / 1000;
  const life = 1000 * (seconds - Math.min(1, seconds / 10)); // whole seconds may be rounded up
  if (!numbers || (scheme !== "https:" && scheme !== "http:") || !(life > 0)) return null;
  const early = (until - renew) * 1000;
  const end = at + life;
  return {
    url,
    end,
    half: at + life / 2,
    renew: Math.max(at + TICK, end - (early > 0 && early < life ? early : life / 5)),
    last: end - Math.min(30_000, life / 5), // the last moment to request the next one
    late: end - Math.min(5000, life / 20), // the last moment to show the next one
  };
}

// A Source requests the tokens of all elements with equal src, method and credentials.
const sources = new Map();

class Source {
  answer = null; // the newest token
  failure = null; // detail of the error since then
  #views = new Set();
  #listening = null;
  #timer = 0;
  #request = null;
  #asked = 0; // when that request was made
  #retryAt = 0;
  #failures = 0; // in a row
  #now = false; // the next token is to be shown at once

  constructor(key, url, method, credentials) {
    Object.assign(this, { key, url, method, credentials });
  }

  join(view) {
    if (!this.#views.size) {
      sources.set(this.key, this);
      this.#listening = new AbortController();
      const on = { signal: this.#listening.signal };
      document.addEventListener("visibilitychange", () => this.check(true), on);
      addEventListener("pageshow", () => this.check(true), on);
      addEventListener("offline", () => this.check(), on);
      addEventListener("online", () => {
        if (this.failure?.status === 0) this.#retryAt = 0;
        this.check();
      }, on);
    }
    this.#views.add(view);
    if (this.failure && !this.failure.retrying) this.failure = null;
    queueMicrotask(() => this.check());
  }

  leave(view) {
    this.#views.delete(view);
    if (this.#views.size) return;
    sources.delete(this.key);
    clearTimeout(this.#timer);
    this.#listening.abort();
    this.#request?.abort();
    this.#request = null;
  }

  // refresh requests a token now, or as soon as the page is visible and online.
  refresh() {
    this.#now = true;
    this.#retryAt = this.#failures = 0;
    this.failure = null;
    this.check();
  }

  // check does what is due, and sets the timer for what comes next. back: the person came back.
  check(back = false) {
    clearTimeout(this.#timer);
    if (!this.#views.size || !visible()) return;
    const now = time();
    const wanted = this.#wanted(back);
    if (this.#request) {
      if (now - this.#asked > GIVE_UP) this.#request.abort();
    } else if (navigator.onLine && wanted <= now) {
      this.#now ||= back && !!this.answer;
      this.#ask();
    }
    let next = Math.min(now + TICK, wanted > now ? wanted : Infinity);
    for (const view of this.#views) next = Math.min(next, view.look(now, back));
    if (!this.#views.size) return; // a listener removed the last one
    if (this.answer || this.#request || wanted < Infinity) {
      this.#timer = setTimeout(() => this.check(), Math.max(next - now, 20));
    }
  }

  // #wanted is when the next request is due.
  #wanted(back) {
    if (this.failure && !this.failure.retrying) return Infinity;
    if (this.failure) return this.#retryAt;
    if (this.#now || !this.answer) return 0;
    return Math.min(...Array.from(this.#views, (view) => view.wants(this.answer, back)));
  }

  async #ask() {
    const request = this.#request = new AbortController();
    const at = this.#asked = time();
    let status = 0, header, body;
    try {
      const response = await fetch(this.url, {
        method: this.method, credentials: this.credentials, cache: "no-store",
        headers: { Accept: "application/json" }, signal: request.signal,
      });
      status = response.status;
      header = response.headers.get("Retry-After");
      body = await response.json();
    } catch (err) {
      if (!(err instanceof SyntaxError)) status = 0; // else it is not JSON
    }
    if (this.#request !== request) return; // nobody waits for it any more
    this.#request = null;
    const answer = status >= 200 && status < 300 ? readAnswer(body, at) : null;
    if (answer) {
      this.answer = answer;
      this.failure = null;
      this.#failures = 0;
      for (const view of this.#views) view.look(time(), this.#now);
      this.#now = false;
    } else {
      this.#fail(status, body, Number(body?.retry_after ?? header));
    }
    this.check();
  }

  #fail(status, body, seconds) {
    const retrying = status === 0 || status === 409 || status === 429 || status >= 500;
    const retryAfter = seconds > 0 && seconds < Infinity ? seconds : null;
    const wait = retryAfter
      ? Math.min(retryAfter, LONGEST_WAIT) * (1 + Math.random() / 10)
      : Math.min(2 ** this.#failures, 30) * (1 + Math.random()) / 2;
    this.#failures++;
    this.#retryAt = time() + wait * 1000;
    const code = typeof body?.code === "string" ? body.code : null;
    this.failure = { status, code, retryAfter, retrying };
    if (!retrying) {
      this.answer = null;
      this.#now = false;
    }
    for (const view of this.#views) {
      view.look(time());
      view.announce("error", { ...this.failure });
    }
  }
}

const TEXTS = {
  failed: "The dashboard cannot be loaded.",
  retrying: "The dashboard cannot be loaded now. Trying again…",
  offline: "You are offline. The dashboard loads when you are back online.",
  401: "Your session has ended. Log in again.",
  403: "You do not have access to this dashboard.",
  404: "There is no such dashboard.",
  410: "This dashboard was deleted.",
};

// A View is what one element shows: a message, or a frame, and during a renewal the next frame
// beneath it until that has loaded.
class View {
  source = null;
  #element;
  #root;
  #loading = document.createElement("div");
  #error = document.createElement("div");
  #text = document.createElement("span");
  #frame = null;
  #next = null;
  #shown = null; // the answer whose frame is the newest
  #until = 0; // when the next frame is shown even though it has not loaded

  constructor(element) {
    this.#element = element;
    this.#root = element.attachShadow({ mode: "open" });
    const sheet = new CSSStyleSheet();
    sheet.replaceSync(STYLE);
    this.#root.adoptedStyleSheets = [sheet];
    const again = document.createElement("button");
    again.textContent = "Try again";
    again.type = "button";
    again.addEventListener("click", () => element.refresh());
    this.#part(this.#loading, "loading", "status", "Loading the dashboard…");
    this.#part(this.#error, "error", "alert", this.#text, again);
    this.clear();
  }

  #part(div, name, role, ...content) {
    const slot = document.createElement("slot");
    div.setAttribute("part", (slot.name = name));
    div.setAttribute("role", role);
    slot.append(...content);
    div.append(slot);
    this.#root.append(div);
  }

  // clear removes the frames and shows a text, or that the dashboard loads.
  clear(text = "") {
    this.#frame?.remove();
    this.#next?.remove();
    this.#frame = this.#next = this.#shown = null;
    this.#say(text);
  }

  #say(text) {
    if (this.#text.textContent !== text) this.#text.textContent = text;
    this.#error.hidden = !text;
    this.#loading.hidden = !!(text || this.#frame);
  }

  get #onReturn() {
    return this.#element.getAttribute("refresh") === "on-return";
  }

  // wants is when the token after answer is to be requested.
  wants(answer, back) {
    if (!this.#onReturn) return answer.renew;
    return back ? answer.half : answer.last;
  }

  // look shows what is to be shown now, and returns when to look again. atOnce: a new token is not
  // to wait for the end of the one that is shown.
  look(now, atOnce) {
    const { answer, failure } = this.source;
    const shown = this.#shown;
    if (answer && answer !== shown && now < answer.end &&
      (!shown || atOnce || !this.#onReturn || now >= shown.late)) this.#show(answer, now);
    if (this.#next && now >= this.#until) this.#swap();
    const refused = failure && !failure.retrying;
    if (refused || !this.#shown || (now >= this.#shown.end && (failure || !navigator.onLine))) {
      if (refused) this.clear(TEXTS[failure.status] ?? TEXTS.failed);
      else if (!navigator.onLine) this.clear(TEXTS.offline);
      else if (failure && failure.status !== 409) this.clear(TEXTS.retrying);
      else this.clear();
    }
    if (this.#next) return this.#until;
    const { late, end } = this.#shown ?? {};
    return [late, end].find((t) => t > now) ?? Infinity;
  }

  #show(answer, now) {
    this.#until = this.#shown ? this.#shown.end : now + GIVE_UP;
    this.#shown = answer;
    this.#next?.remove();
    const lazy = this.#element.getAttribute("loading") === "lazy";
    const frame = (this.#next = document.createElement("iframe"));
    Object.assign(frame, FRAME, { src: answer.url, inert: true, loading: lazy ? "lazy" : "eager" });
    this.name();
    frame.addEventListener("load", () => this.#next === frame && this.#swap());
    this.#root.prepend(frame);
  }

  // #swap replaces the frame by the next one, which gets the focus if the frame had it.
  #swap() {
    const old = this.#frame;
    const focused = old && this.#root.activeElement === old;
    this.#frame = this.#next;
    this.#next = null;
    this.#frame.inert = false;
    if (focused) this.#frame.focus({ preventScroll: true });
    old?.remove();
    this.#say("");
    this.announce(old ? "refreshed" : "ready", null);
  }

  // name gives the frames the element's title.
  name() {
    for (const frame of [this.#frame, this.#next]) {
      if (frame) frame.title = this.#element.title || "Dashboard";
    }
  }

  announce(what, detail) {
    const options = { detail, bubbles: true, composed: true };
    this.#element.dispatchEvent(new CustomEvent(`papermap-${what}`, options));
  }
}

// A server that renders pages can import this file, too.
export class PapermapDashboard extends (globalThis.HTMLElement ?? class {}) {
  static observedAttributes = ["src", "method", "credentials", "title", "loading", "refresh"];
  #view = new View(this);
  #connected = false;
  #observer = null; // while a lazy element was not near the visible part of the page

  connectedCallback() {
    this.#connected = true;
    if (!this.#lazy) return this.#start();
    this.#observer = new IntersectionObserver((entries) => {
      if (entries.some((e) => e.isIntersecting)) this.#start();
    }, { rootMargin: "200px" });
    this.#observer.observe(this);
  }

  disconnectedCallback() {
    this.#connected = false;
    this.#stop();
  }

  connectedMoveCallback() {} // moveBefore() keeps the frame

  attributeChangedCallback(name, before, after) {
    if (name === "title") this.#view.name();
    if (!this.#connected || before === after) return;
    if (name === "refresh") {
      this.#view.source?.check();
    } else if (name === "loading") {
      if (!this.#lazy) this.#start();
    } else if (name !== "title" && !this.#observer) {
      this.#stop();
      this.#start();
    }
  }

  // refresh requests a new token and loads the dashboard again.
  refresh() {
    if (!this.#connected) return;
    this.#start();
    this.#view.source?.refresh();
  }

  get #lazy() {
    return this.getAttribute("loading") === "lazy";
  }

  #start() {
    this.#observer?.disconnect();
    this.#observer = null;
    const src = this.getAttribute("src");
    if (this.#view.source || !src) return;
    const url = parseURL(src, document.baseURI)?.href;
    if (!url) {
      this.#view.clear(TEXTS.failed);
      this.#view.announce("error", { status: 0, code: null, retryAfter: null, retrying: false });
      return;
    }
    const method = (this.getAttribute("method") || "POST").toUpperCase();
    const credentials = this.getAttribute("credentials") || "same-origin";
    const key = JSON.stringify([url, method, credentials]);
    this.#view.source = sources.get(key) ?? new Source(key, url, method, credentials);
    this.#view.source.join(this.#view);
  }

  #stop() {
    this.#observer?.disconnect();
    this.#observer = null;
    this.#view.source?.leave(this.#view);
    this.#view.source = null;
    this.#view.clear();
  }
}

if (globalThis.customElements && !customElements.get("papermap-dashboard")) {
  customElements.define("papermap-dashboard", PapermapDashboard);
}
