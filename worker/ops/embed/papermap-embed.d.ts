// Types of papermap-embed.js.

/** Why there is no new token. */
export interface PapermapErrorDetail {
  /** The HTTP status of the answer; 0 without an answer. */
  status: number;
  /** The `code` of the answer's body, such as `TENANT_SUSPENDED`. */
  code: string | null;
  /** The answer's `retry_after`, in seconds. */
  retryAfter: number | null;
  /** Whether the element requests again by itself; otherwise it waits for `refresh()`. */
  retrying: boolean;
}

export interface PapermapDashboardEventMap extends HTMLElementEventMap {
  /** The dashboard is shown, where there was none. */
  "papermap-ready": CustomEvent<null>;
  /** The dashboard was loaded again, with the next token. */
  "papermap-refreshed": CustomEvent<null>;
  "papermap-error": CustomEvent<PapermapErrorDetail>;
}

/**
 * `<papermap-dashboard src="/your/endpoint">`. Attributes: `src`, `method` (default `POST`),
 * `credentials` (default `same-origin`), `title`, `loading` (`eager`, `lazy`) and `refresh`
 * (`reload`, `on-return`). Slots and parts: `loading`, `error`.
 */
export class PapermapDashboard extends HTMLElement {
  /** Requests a new token and loads the dashboard again. */
  refresh(): void;
  addEventListener<K extends keyof PapermapDashboardEventMap>(
    type: K,
    listener: (this: PapermapDashboard, event: PapermapDashboardEventMap[K]) => unknown,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject,
    options?: boolean | AddEventListenerOptions,
  ): void;
}

declare global {
  interface HTMLElementTagNameMap {
    "papermap-dashboard": PapermapDashboard;
  }
}
