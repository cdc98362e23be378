/**
 * The self-test on a tap, and telling its frame from a guest's: the kernel counts and tells both alike.
 *
 * Holds always: of events that are as that of a self-test, at its time, one is left out for each test that the kernel told of; a
 * guest's that is the same is not. Main thread only.
 */
import { clockMonotonicCoarse } from "../../native/index.js";
import type { PacketEvent } from "../kernel/events.js";
import type { Instance } from "../kernel/instance.js";
import { layouts } from "../kernel/layout.gen.js";
import { slotKey } from "../kernel/sandbox-tables.js";
import { isAsTapTest, selfTestTap } from "../kernel/self-test.js";
import type { Programs } from "../kernel/tap-link.js";
import type { TapFacts } from "../net/tap.js";

export class TapTests {
  readonly #instance: Instance;
  /** That the kernel told of, and whose event has not come yet. */
  readonly #told: { readonly slot: number; readonly generation: number; readonly from: bigint; readonly until: bigint }[] = [];

  constructor(instance: Instance) { this.#instance = instance; }

  /** Sends the frame that no policy allows into the tap's programs; the thread is in its namespace. @throws EnforcerError E_SELF_TEST when it is not denied. */
  run(programs: Programs, slot: number, generation: number, { ifindex, name }: Pick<TapFacts, "ifindex" | "name">): void {
    const lost = (): bigint | undefined => this.#instance.map("event_limits").lookup(slotKey(slot))?.readBigUInt64LE(layouts.event_limit.fields.lost.offset);
    const before = lost(), from = clockMonotonicCoarse();
    selfTestTap(this.#instance, programs, slot, ifindex, name);
    // Had it not been told, as in a sandbox that tells nothing yet, it would be counted as lost.
    if (lost() === before) this.#told.push({ slot, generation, from, until: clockMonotonicCoarse() });
  }

  /** Those of guests. */
  withoutOwn(events: readonly PacketEvent[]): readonly PacketEvent[] {
    if (this.#told.length === 0) return events;
    return events.filter((event) => {
      const own = isAsTapTest(event) ? this.#told.findIndex(({ slot, generation, from, until }) => slot === event.slot && generation === event.generation && from <= event.timeNs && event.timeNs <= until) : -1;
      if (own >= 0) this.#told.splice(own, 1);
      return own < 0;
    });
  }
}
