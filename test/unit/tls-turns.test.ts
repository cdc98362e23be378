/** Whose handshake begins next (src/tls/turns.ts). */
import { expect, test } from "vitest";
import { Turns } from "../../src/tls/turns.js";

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(() => setImmediate(resolve)));
function stage(): { turns: Turns<string>; begun: string[]; end: (name: string) => void; enter: (key: string, name: string) => () => void } {
  const turns = new Turns<string>(3), begun: string[] = [], ends = new Map<string, () => void>();
  return {
    turns, begun, end: (name) => ends.get(name)?.(),
    enter: (key, name) => turns.enter(key, () => { begun.push(name); return new Promise((resolve) => ends.set(name, resolve)); }),
  };
}

test("at once where nobody waits, a few in one turn of the loop", async () => {
  const { turns, begun, enter } = stage();
  for (let i = 0; i < 9; i++) enter(`box${i}`, `${i}`);
  expect(begun).toEqual(["0", "1", "2", "3"]);
  await turn();
  await turn();
  expect(begun).toHaveLength(9);
  expect(turns.of("box0")).toEqual({ waiting: 0, underWay: 1 });
});

test("sandboxes take turns, however many one of them has waiting", async () => {
  const { begun, enter, end } = stage();
  for (let i = 0; i < 1000; i++) enter("flood", `f${i}`);
  enter("one", "a");
  enter("one", "b");
  enter("two", "c");
  await turn();
  expect(begun.slice(0, 3)).toEqual(["f0", "f1", "f2"]);
  expect(begun.slice(3).sort()).toEqual(["a", "b", "c"]);
  for (const name of ["f0", "f1", "f2", "a", "b", "c"]) end(name);
  await turn();
  expect(begun).toHaveLength(9);
  enter("two", "d");
  await turn();
  expect(begun).toContain("d");
});

test("a bounded number of one sandbox is under way; each that ends, well or not, makes room for its next", async () => {
  const turns = new Turns<string>(2), ends: [() => void, (error: Error) => void][] = [];
  for (let i = 0; i < 5; i++) turns.enter("box", () => new Promise((resolve, reject) => ends.push([resolve, reject])));
  await turn();
  expect(turns.of("box")).toEqual({ waiting: 3, underWay: 2 });
  ends[0]![0]();
  ends[1]![1](new Error("failed"));
  await turn();
  expect(turns.of("box")).toEqual({ waiting: 1, underWay: 2 });
  for (let i = 2; i < 5; i++) { ends[i]![0](); await turn(); }
  expect(turns.of("box")).toEqual({ waiting: 0, underWay: 0 });
});

test("what leaves the line never begins", async () => {
  const { turns, begun, enter } = stage();
  const leave = [0, 1, 2, 3, 4].map((i) => enter("box", `${i}`));
  leave[3]!();
  leave[3]!();
  leave[0]!();
  await turn();
  expect(begun).toEqual(["0", "1", "2"]);
  expect(turns.of("box")).toEqual({ waiting: 1, underWay: 3 });
});
