/**
 * Buffers of bodies that have passed, given back by the cheap kind of collection.
 *
 * Node makes a buffer for each record it decrypts. They are small on the heap and large beside it, so V8 goes through the whole heap
 * because of them, several times a second, before its young generation is full; a collection of the young one gives them back as
 * well, in a tenth of the time: it is asked for by octets passed. Where this Node does not give it, V8 goes on as it would.
 */
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

/** V8 begins at 64 MiB; an octet that passes is in two buffers. */
const EVERY = 4 << 20;

let collect: ((options: { type: "minor" }) => void) | null | undefined;
let since = 0;

/** A chunk of a body is on its way. */
export function passing(chunk: Buffer): void {
  since += chunk.length;
  if (since < EVERY) return;
  since = 0;
  if (collect === undefined) collect = collector();
  collect?.({ type: "minor" });
}

function collector(): typeof collect {
  try {
    setFlagsFromString("--expose-gc");
    const gc = runInNewContext("gc") as unknown;
    setFlagsFromString("--no-expose-gc");
    return typeof gc === "function" ? gc as (options: object) => void : null;
  } catch {
    return null;
  }
}
