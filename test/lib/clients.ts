/** Programs of test/clients that must be built before they run. */
import { mkdirSync } from "node:fs";
import path from "node:path";
import { must } from "./processes.mjs";

const FOLDER = path.resolve(import.meta.dirname, "../clients"), BUILD = path.join(FOLDER, "build");

/** The Go program, built where it is missing or old, by one process at a time; the standard library alone: nothing is fetched. */
export async function goClient(): Promise<string> {
  mkdirSync(BUILD, { recursive: true });
  const source = path.join(FOLDER, "client.go"), program = path.join(BUILD, "client");
  await must(["flock", path.join(BUILD, "lock"), "sh", "-c", '[ "$1" -nt "$0" ] || go build -o "$1" "$0"', source, program], {
    timeoutMs: 300_000, env: { GOFLAGS: "-mod=mod", GOPROXY: "off", CGO_ENABLED: "0", GOCACHE: path.join(BUILD, "cache"), HOME: BUILD },
  });
  return program;
}
