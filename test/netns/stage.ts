/**
 * How an attack row is shown: the same frames in two worlds, one without the enforcer (control) and one with it.
 *
 * Holds always: every frame carries a mark of its own, so that what was captured can be told apart; a frame that is said to
 * escape must be seen to do so in the control, or the row fails; with the enforcer nothing of it may be seen anywhere, nor
 * answered, and an allowed frame sent afterwards must still get out. Set ENFORCER_TEST_CONTROLS=only to run the controls alone.
 */
import { expect, vi } from "vitest";
import { type Bytes, decode, type Decoded, type Endpoints, isV6, tcpFrame } from "../lib/frames.js";
import { PATIENCE } from "../lib/processes.mjs";
import { ADDRESS, type Captured, type Enforcer, MAC, World } from "../lib/world.mjs";

// Worlds are built in hooks, and rows wait for what must not come: bounds, not expectations.
vi.setConfig({ testTimeout: 240_000 * PATIENCE, hookTimeout: 240_000 * PATIENCE });

export const controlsOnly = process.env.ENFORCER_TEST_CONTROLS === "only";

/** Public addresses that nobody owns in the world: what goes there is seen at the sink and never answered. */
export const SINK = { v4: "93.184.216.99", v6: "2606:2800:220:1::99" } as const;

export interface Mark {
  /** in the payload of the frame */
  bytes: Bytes;
  /** source port, where the frame has ports */
  port: number;
}

export type Item = Bytes | { vnet: Bytes; frame: Bytes } | { repeat: number; frame: Bytes };

export interface Stimulus {
  name: string;
  build: (mark: Mark) => Item | Item[];
  /**
   * Where the control must see it: at a sink, as an answer to the guest, or nowhere (the host's own stack drops it already,
   * or what it would change is looked at in another way).
   */
  escapes: keyof Captured | "reply" | null;
}

export interface Row {
  stimuli: readonly Stimulus[];
  /** reasons one of which each denial must have; at least one denial is reported. Absent: not looked at. */
  reasons?: readonly string[];
}

let marks = 0;

export function nextMark(): Mark {
  marks++;
  return { bytes: new TextEncoder().encode(`<enf${String(marks).padStart(7, "0")}>`), port: 20000 + (marks % 40000) };
}

export function contains(frame: Bytes, part: Bytes): boolean {
  return Buffer.from(frame.buffer, frame.byteOffset, frame.byteLength).includes(Buffer.from(part));
}

export interface StageOptions {
  bridged?: boolean;
  policy?: string;
  args?: readonly string[];
  /** the guest's addresses are not given, but learned from its first frames */
  learn?: boolean;
  /** changes both worlds before the enforcer starts */
  prepare?: (world: World) => Promise<unknown>;
  internet?: readonly string[];
}

export class Stage {
  enforcer: Enforcer | null = null;

  private constructor(readonly options: StageOptions, readonly control: World, readonly held: World) {}

  static async open(options: StageOptions = {}): Promise<Stage> {
    const make = (): Promise<World> => World.create({
      guest: "vnet", sibling: true, quiet: true, bridged: options.bridged ?? false, ...(options.internet === undefined ? {} : { internet: options.internet }),
    });
    const [control, held] = await Promise.all([make(), make()]);
    const stage = new Stage(options, control, held);
    try {
      for (const world of [control, held]) await options.prepare?.(world);
      if (!controlsOnly) {
        stage.enforcer = await held.enforce({
          args: [...(options.learn === true ? [] : ["--guest-ip", ADDRESS.guest4, "--guest-ip", ADDRESS.guest6, "--guest-mac", MAC.guest]), ...(options.args ?? [])],
          ...(options.policy === undefined ? {} : { policy: options.policy }),
        });
      }
    } catch (error) {
      await stage.close();
      throw error;
    }
    return stage;
  }

  get gatewayMac(): string {
    return this.options.bridged === true ? MAC.bridge : MAC.tap0;
  }

  get worlds(): World[] {
    return controlsOnly ? [this.control] : [this.control, this.held];
  }

  /** The guest's own addresses, to a destination by way of the host. */
  to(destination: string, change: Partial<Endpoints> = {}): Endpoints {
    return {
      sourceMac: MAC.guest, destinationMac: this.gatewayMac, source: isV6(destination) ? ADDRESS.guest6 : ADDRESS.guest4, destination, ...change,
    };
  }

  /** TCP SYN with the mark as its data, to a port of the destination. */
  syn(name: string, destination: string, escapes: Stimulus["escapes"], change: Partial<Endpoints> = {}, port = 443): Stimulus {
    return {
      name: `${name} ${destination}`, escapes,
      build: (mark) => tcpFrame(this.to(destination, change), { sourcePort: mark.port, destinationPort: port, payload: mark.bytes }),
    };
  }

  async inject(world: World, items: readonly Item[]): Promise<{ captured: Captured; received: Bytes[]; errors: number[] }> {
    let errors: number[] = [];
    world.frames.received.length = 0;
    const captured = await world.watch(async () => {
      errors = await world.frames.send(...items);
    });
    return { captured, received: [...world.frames.received], errors };
  }

  /** Shows the row; gives what the enforcer's world saw, for further looks. */
  async show(row: Row): Promise<void> {
    const marked = row.stimuli.map((stimulus) => {
      const mark = nextMark();
      const built = stimulus.build(mark);
      return { stimulus, mark, items: Array.isArray(built) ? built : [built] };
    });
    const items = marked.flatMap((one) => one.items);
    const seen = (result: { captured: Captured; received: Bytes[] }, mark: Mark, where: keyof Captured | "reply"): boolean =>
      where === "reply"
        ? result.received.some((frame) => contains(frame, mark.bytes) || decode(frame).destinationPort === mark.port)
        : result.captured[where].some((frame) => contains(frame, mark.bytes));

    const control = await this.inject(this.control, items);
    expect(marked.filter((one) => one.stimulus.escapes !== null && !seen(control, one.mark, one.stimulus.escapes)).map((one) => one.stimulus.name),
      "control: not seen without the enforcer, so the row would prove nothing").toEqual([]);
    if (this.enforcer === null) return;

    const events = this.enforcer.events.length;
    const held = await this.inject(this.held, items);
    const places = ["uplink", "lan", "sibling", "reply"] as const;
    expect(marked.flatMap((one) => places.filter((place) => seen(held, one.mark, place)).map((place) => `${one.stimulus.name} at ${place}`)),
      "got through the enforcer").toEqual([]);
    await this.alive();
    if (row.reasons !== undefined) {
      const enforcer = this.enforcer;
      const denials = (): Record<string, unknown>[] => enforcer.events.slice(events).filter((event) => event.event === "denied");
      // Reports are limited per second and sandbox, and the row before may have used them up: then the frames are sent again.
      for (const deadline = Date.now() + 5000; denials().length === 0 && Date.now() < deadline;) {
        await new Promise((resolve) => setTimeout(resolve, 200));
        if (denials().length === 0) await this.held.frames.send(...items.slice(0, 20));
      }
      const reasons = new Set(denials().map((event) => String(event.reason)));
      expect(reasons.size, "denials that were reported").toBeGreaterThan(0);
      expect([...reasons].filter((reason) => !row.reasons?.includes(reason)), "reasons of the denials").toEqual([]);
    }
  }

  /** The enforcer lets an allowed frame out: it does not hold by dropping everything. */
  async alive(): Promise<void> {
    const both = [SINK.v4, SINK.v6].map((destination) => ({ mark: nextMark(), stimulus: this.syn("allowed", destination, "uplink") }));
    const result = await this.inject(this.held, both.flatMap((one) => one.stimulus.build(one.mark)));
    for (const one of both) {
      expect(result.captured.uplink.some((frame) => contains(frame, one.mark.bytes)), `${one.stimulus.name} must still get out`).toBe(true);
    }
  }

  async close(): Promise<void> {
    await this.enforcer?.stop();
    await Promise.all([this.control.close(), this.held.close()]);
  }
}

/** Frames of the guest among the captured ones, decoded. */
export function decoded(frames: readonly Bytes[]): Decoded[] {
  return frames.map(decode);
}
