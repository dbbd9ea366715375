// Compiled by `make matrix`, and never run: what users write has the types that they expect.
import { Mirror, type Change, type Entry, type MirrorLike } from "etcd-watch-client";
import { anyOf } from "etcd-watch-client/gateways";
import { connectShared } from "etcd-watch-client/shared";
import { useMirror as useReact } from "etcd-watch-client/react";
import { useMirror as useVue } from "etcd-watch-client/vue";

interface Flag {
  on: boolean;
}

const mirror = new Mirror<Flag>("http://127.0.0.1:8080", ["/config/", { key: "/leader" }, { prefix: "" }], {
  token: async () => null,
  decode: (value, entry) => (entry.valueBase64 ? { on: false } : JSON.parse(value ?? "null")),
  query: { scope: "permitted" },
  mode: "latest",
  fetch: (url, init) => fetch(url, { ...init, credentials: "include" }),
});
new Mirror("/", "/", { decode: (text) => JSON.parse(text ?? "null") }).entries.get("a")?.decoded;
// @ts-expect-error - a value that is not UTF-8 is null, which is no text
new Mirror("/", "/", { decode: JSON.parse });
mirror.addEventListener("changes", ({ detail }) => {
  for (const change of detail.changes) {
    const on: boolean | undefined = change.entry?.decoded?.on;
    const before: Entry<Flag> | undefined = change.previous;
    // A put has an entry, a delete has none.
    const kind: "put" | "delete" = change.type;
    if (change.type === "put") change.entry.value satisfies string | null;
    void [on, before, kind, detail.reset satisfies string | undefined];
  }
});
mirror.addEventListener("failed", ({ detail }) => detail?.code satisfies string | undefined);
mirror.addEventListener("anything", (event: Event) => event);
await mirror.synced();
mirror satisfies EventTarget;
void new Mirror("/", "/", { fetch: anyOf(["http://a", "http://b"]) });
const shared: MirrorLike<Flag> = connectShared<Flag>(new URL("x", "http://a"), "/", "/config/");
const entry: Entry<Flag> | undefined = shared.entries.get("/config/a");
const changes: Change[] = [];
void [entry, changes];

// @ts-expect-error - `entries` is read only
mirror.entries.set("a", entry);
// @ts-expect-error - `revision` is read only
mirror.revision = 3;
// @ts-expect-error - no such transport
new Mirror("/", "/", { transport: "websocket" });
// @ts-expect-error - no such range
new Mirror("/", { path: "/" });
// @ts-expect-error - no such state
void (mirror.state === "open");

const shown = useReact<Flag>("/", "/config/", { connect: (...words) => connectShared("worker.js", ...words) });
shown.entries.get("a")?.decoded?.on satisfies boolean | undefined;
shown.mirror?.reconnect();
const value = useVue<Flag>(() => "/", "/config/");
value.value.state satisfies string;
// @ts-expect-error - the snapshot is read only
value.value = shown;
