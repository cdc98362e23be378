/** Turns of sandboxes with what takes long to look through. */
import { expect, it } from "vitest";
import { Looks, PER_TURN_MS } from "../../src/secrets/looks.js";

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

it("at once while nothing took long; then each sandbox in its turn, a bounded time in one turn of the event loop", async () => {
  let now = 0;
  const looks = new Looks(() => now), had: string[] = [], [a, b] = [{}, {}];
  const look = (owner: object, name: string, ms: number): string | Promise<string> => looks.look(owner, () => {
    had.push(name);
    now += ms;
    return name;
  });
  expect([look(a, "a1", PER_TURN_MS - 1), look(a, "a2", 1)]).toEqual(["a1", "a2"]);
  const later = ["a3", "a4", "a5"].map((name) => look(a, name, PER_TURN_MS)).concat(look(b, "b1", 0), look(b, "b2", PER_TURN_MS));
  expect(had).toEqual(["a1", "a2"]);
  const order = ["a3", "b1", "a4", "b2", "a5"];
  for (const upTo of [1, 3, 4, 5]) {
    await turn();
    expect(had.slice(2)).toEqual(order.slice(0, upTo));
  }
  expect(await Promise.all(later)).toEqual(["a3", "a4", "a5", "b1", "b2"]);
  await turn();
  expect(look(b, "b3", 0)).toBe("b3");
});

it("an error is that look's own, at once or later", async () => {
  let now = 0;
  const looks = new Looks(() => now), fail = (): never => { now += PER_TURN_MS; throw new Error("of its own"); };
  expect(() => looks.look({}, fail)).toThrow("of its own");
  const [failed, good] = [looks.look({}, fail), looks.look({}, () => "good")];
  await expect(failed).rejects.toThrow("of its own");
  expect(await good).toBe("good");
});
