// Reads a list with the types that openapi-typescript has made: `node list.js BASE TOKEN` prints the keys.
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

type Event = components["schemas"]["Event"];

const client = createClient<paths>({
  baseUrl: process.argv[2]!,
  headers: { Authorization: `Bearer ${process.argv[3]}` },
});

// Does not compile if the types of the events are not apart.
export function keyOf(event: Event): string | undefined {
  switch (event.type) {
    case "put":
    case "delete":
      return event.key;
    case "reset":
      return event.ranges[0];
    case "close":
      return event.reason === "drain" ? "" : undefined;
    default:
      return undefined;
  }
}

const { data, error } = await client.GET("/v1/kv", { params: { query: { prefix: ["/svc/"], keys_only: false } } });
if (error) throw new Error(`${error.code}: ${error.detail}`);
if (!("kvs" in data)) throw new Error("not a list");
for (const item of data.kvs) console.log(`${item.key}=${item.value}`);
const denied = await client.GET("/v1/kv", { params: { query: { prefix: ["/secret/"] } } });
console.log(denied.error?.code);
