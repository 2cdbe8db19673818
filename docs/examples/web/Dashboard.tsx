// <Dashboard> for React 19: the types, and the events as properties.
import type { CSSProperties, ReactNode, Ref } from "react";
import { useEffect, useRef } from "react";
import type { PapermapDashboard, PapermapErrorDetail } from "./papermap-embed.js";
import "./papermap-embed.js";

declare module "react" {
  namespace JSX {
    interface IntrinsicElements {
      "papermap-dashboard": {
        ref?: Ref<PapermapDashboard>;
        src: string;
        title?: string;
        loading?: "eager" | "lazy";
        refresh?: "reload" | "on-return";
        style?: CSSProperties;
        children?: ReactNode;
      };
    }
  }
}

export function Dashboard(props: { title: string; onError?: (error: PapermapErrorDetail) => void }) {
  const element = useRef<PapermapDashboard>(null);
  const { title, onError } = props;
  useEffect(() => {
    const dashboard = element.current;
    if (!dashboard || !onError) return;
    const listener = (event: CustomEvent<PapermapErrorDetail>) => onError(event.detail);
    dashboard.addEventListener("papermap-error", listener);
    return () => dashboard.removeEventListener("papermap-error", listener as EventListener);
  }, [onError]);
  return (
    <papermap-dashboard ref={element} src="/dashboard-token" title={title} style={{ height: "30rem" }}>
      <p slot="loading">Loading…</p>
    </papermap-dashboard>
  );
}
