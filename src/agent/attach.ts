/**
 * Putting one tap under its policy.
 *
 * Order: facts of the tap → state says so → drop beneath the tap's name → tables of the sandbox → the workers are told; while they
 * answer, the tap's settings → in force → hooks on the tap → self-test on the tap → state says it is done. Each step that fails
 * takes back what came before it. What a former process left in force on the tap goes through the same steps and is never out of
 * force between them.
 */
import { EnforcerError } from "../errors.js";
import { SandboxTables } from "../kernel/sandbox-tables.js";
import { attachHooks, detachHooks, TAP_HOOKS, type Attachment } from "../kernel/tap-link.js";
import { plannedChanges, prepareTap, restoreTap, tapFacts, type TapChange, type TapPreparation } from "../net/tap.js";
import type { Policy } from "../policy/types.js";
import { quietly, type Parts, type Step } from "./parts.js";
import { compiledAs, type Predecessor, type Served } from "./predecessor.js";
import type { OwnFrames, PolicyState, SandboxState } from "./run-directory.js";
import { digestOf, gatewaysLeftOut, identityOf, sizesOf, type AttachOptions, type Sandbox } from "./sandbox.js";
import type { PinMaps } from "./workers.js";

/** What is to be put in force, and where: known before anything is changed. */
interface Request {
  readonly options: AttachOptions;
  readonly facts: Sandbox["facts"];
  readonly identity: Sandbox["identity"];
  readonly policy: Policy;
  readonly floor: Policy | null;
  readonly digest: string;
  /** The state file, when it is of this device. */
  readonly former: SandboxState | null;
  /** The tables that a former process left in force on this device; null: none. */
  readonly left: SandboxTables | null;
  readonly slot: number;
  readonly generation: number;
  /** What self-tests have left in the counters, and what they will have when this one's is over. */
  readonly tested: OwnFrames;
  readonly tests: OwnFrames;
  /** Settings of the tap that are about to be changed, with their values of now. */
  readonly planned: readonly TapChange[];
  /** Those, and what a former process changed. */
  readonly changes: readonly TapChange[];
}

/** The policy in its tables, not in force. */
interface Staged extends Pick<Served, "uid" | "compiled" | "compiledFloor"> {
  readonly tables: SandboxTables;
  /** It is in force already, by a former process. */
  readonly standing: boolean;
  /** The workers know it already. */
  readonly served: boolean;
  readonly maps: PinMaps;
}

/** @throws EnforcerError; then the tap is as it was, and what was in force on it is (leftInForce). */
export async function attach(parts: Parts, options: AttachOptions, leftInForce: () => void): Promise<Sandbox> {
  const request = await planned(parts, options);
  const undo: Step[] = [];
  try {
    announce(parts, request, undo);
    const staged = stage(parts, request, undo);
    const told = tell(parts, request, staged, undo);
    const preparation = prepare(parts, request, undo);
    await told;
    const attachment = enforce(parts, request, staged, undo);
    return admitted(request, staged, preparation, attachment);
  } catch (error) {
    if (request.left !== null) leftInForce();
    for (const step of undo.reverse()) await quietly(step);
    throw error;
  }
}

/** Reads and checks; nothing is changed but what a device left that has gone and whose number this one has, and the host's groups. */
async function planned(parts: Parts, options: AttachOptions): Promise<Request> {
  const { name, tap } = options;
  const facts = parts.inside(() => tapFacts(tap));
  for (const other of parts.sandboxes.values()) {
    if (other.name === name || other.facts.ifindex === facts.ifindex) throw new EnforcerError("E_TAP_TAKEN", `${other.name} is attached already (device ${other.facts.name})`, { remedy: "detach it first, or change its policy with enforcer policy set" });
  }
  if (facts.xdp !== null) parts.notice(`${tap}: an XDP program (id ${facts.xdp.programId ?? "unknown"}) sees the guest's frames before the enforcer does`);
  const identity = identityOf(facts, options, parts.place), leftOut = gatewaysLeftOut(tap, identity);
  if (leftOut !== null) parts.notice(leftOut);
  parts.expectGateways(options.gateways);
  const [policy, floor] = parts.regrouped(options.policy, options.floor ?? null);
  const file = parts.run.read(name);
  const former = file?.ifindex === facts.ifindex ? file : null;
  const left = parts.predecessor.tablesOf(facts.ifindex);
  if (left === null) await parts.predecessor.clearOf(facts.ifindex, parts);
  const slot = left?.slot ?? parts.slots.free(), generation = left?.generation ?? parts.slots.nextGeneration();
  const tested = left !== null && former?.slot === slot && former.generation === generation && former.tests !== undefined ? former.tests : { denied: 0, lost: 0 };
  const changes = parts.inside(() => plannedChanges(facts.name));
  return {
    options, facts, identity, policy, floor, digest: digestOf(policy, floor), former, left, slot, generation, tested,
    // A new sandbox tells nothing before its test is over; one that is taken over tells of the frame, or it is one of those that it may not tell.
    tests: { denied: tested.denied + 1, lost: tested.lost + (left === null ? 1 : 0) },
    // A setting's oldest value is the one to go back to.
    planned: changes, changes: mergeChanges(former?.changes ?? [], changes),
  };
}

/** Whoever comes after a kill knows what was begun; and only what our programs have marked comes in by the tap's name, whatever device has it. */
function announce(parts: Parts, request: Request, undo: Step[]): void {
  const { name, tap } = request.options;
  if (request.left === null) {
    write(parts, request, { phase: "attaching", policy: policyState(request, 0n) });
    undo.push(() => { parts.run.remove(name); });
  }
  parts.held.hold(tap, undo);
}

function stage({ instance, predecessor }: Parts, request: Request, undo: Step[]): Staged {
  const { left, slot, generation, identity, policy, floor, digest, options: { tap } } = request;
  const sizes = sizesOf(policy);
  const standing = left === null ? null : standingPolicy(predecessor, request, left);
  // Silent until its test is over.
  const tables = left ?? SandboxTables.make(instance, slot, generation, identity, { ...sizes, eventsPerSecond: 0 });
  if (left === null) undo.push(() => tables.clear());
  const uid = standing === null ? tables.nextUid() : tables.uid;
  const { compiled, compiledFloor } = standing ?? compiledAs(uid, policy, floor);
  const pins = standing === null ? tables.stage(compiled, uid, sizes.pins) : tables.pins();
  const floorPins = compiledFloor === null ? null : standing === null ? tables.stageFloor(compiledFloor, uid, sizes.pins) : tables.pins("floor");
  if (pins === null || (floor !== null && floorPins === null)) throw new EnforcerError("E_ATTACH", `${tap}: the map of pins is missing`);
  const served = standing !== null && predecessor.servedAs(slot, { generation, uid, digest }) !== null;
  return { tables, standing: standing !== null, served, uid, compiled, compiledFloor, maps: { pins, floorPins } };
}

/** The policy as a former process compiled it, when it is this one and the kernel holds all of it. */
function standingPolicy(predecessor: Predecessor, request: Request, left: SandboxTables): Pick<Served, "compiled" | "compiledFloor"> | null {
  const { slot, generation, policy, floor, digest } = request, { uid } = left;
  const inForce = policyInForce(request, left);
  if (inForce === null || inForce.uid !== uid.toString() || inForce.digest !== digest) return null;
  const standing = predecessor.servedAs(slot, { generation, uid, digest }) ?? compiledAs(uid, policy, floor);
  return [standing.compiled, standing.compiledFloor].every((one) => one === null || left.holds(one)) ? standing : null;
}

/** As the state file tells of it; null: it does not. */
function policyInForce({ former }: Request, left: SandboxTables): PolicyState | null {
  if (former === null) return null;
  return former.next !== null && former.next.uid === left.uid.toString() ? former.next : former.policy;
}

/**
 * Resolves when both workers serve the sandbox. They have been told when this returns, and what fails meanwhile takes it back after their
 * answer.
 */
function tell(parts: Parts, request: Request, { tables, standing, served, compiled, compiledFloor, maps }: Staged, undo: Step[]): Promise<void> {
  const { slot, generation, policy, floor, left, options: { name, upstreams } } = request;
  const { workers, predecessor } = parts;
  if (served) {
    maps.pins.close();
    maps.floorPins?.close();
    undo.push(() => predecessor.forgetInWorkers(slot, parts));
    return Promise.resolve();
  }
  const add = (): Promise<void> => workers.add({ name, slot, generation, tables, policy, floor, compiled, compiledFloor, upstreams }, maps, left === null ? "none" : standing ? "in the maps" : "written");
  const told = left === null ? add() : predecessor.forgetInWorkers(slot, parts).then(add);
  const removed = told.then(() => () => workers.remove(slot, generation), () => () => undefined);
  undo.push(async () => (await removed)());
  return told;
}

function prepare(parts: Parts, { facts, options: { tap }, planned, changes }: Request, undo: Step[]): TapPreparation {
  const preparation = parts.inside(() => prepareTap(facts, planned));
  undo.push(() => { parts.inside(() => restoreTap({ ifindex: facts.ifindex, name: tap, changes })); });
  return { ...preparation, changes };
}

/** From here on packets are judged by this policy. */
function enforce(parts: Parts, request: Request, { tables, standing, uid }: Staged, undo: Step[]): Attachment {
  const { left, slot, generation, facts, identity, policy, tested, tests, options: { tap } } = request;
  if (left !== null && !standing) {
    write(parts, request, { phase: "enforced", policy: policyInForce(request, left) ?? { ...policyState(request, left.uid), digest: "" }, next: policyState(request, uid), tests: tested });
  }
  if (!standing) tables.commit(uid);
  if (left === null) tables.enforce();
  const attachment = parts.inside(() => {
    parts.globals.setTap(facts.ifindex, slot, generation, parts.place);
    if (left === null) undo.push(() => parts.globals.clearTap(facts.ifindex, parts.place));
    const hooks = attachHooks(parts.programs, facts.ifindex, tap, TAP_HOOKS);
    if (left === null) undo.push(() => parts.inside(() => detachHooks(parts.programs, facts.ifindex, TAP_HOOKS)));
    parts.tapTests.run(parts.programs, slot, generation, facts);
    return hooks;
  });
  tables.describe(identity, sizesOf(policy));
  write(parts, request, { phase: "enforced", policy: policyState(request, uid), tests });
  return attachment;
}

function admitted(request: Request, { tables, compiled, compiledFloor }: Staged, preparation: TapPreparation, { mechanism, before }: Attachment): Sandbox {
  const { options, facts, identity, policy, floor, slot, generation, left, tests } = request;
  return {
    name: options.name, slot, generation, options, facts, identity, policy, compiled, floor, compiledFloor, former: null, mechanism, before: before.map(({ hook, program }) => `${program} (${hook})`),
    preparation, tables, adopted: left !== null, tests, since: Date.now(),
  };
}

function policyState({ digest, options: { source } }: Request, uid: bigint): PolicyState { return { uid: uid.toString(), digest, source }; }

function write({ run }: Parts, { options: { name, tap, spec }, facts: { ifindex }, slot, generation, changes }: Request, state: Pick<SandboxState, "phase" | "policy"> & Partial<Pick<SandboxState, "next" | "tests">>): void {
  run.write({ version: 1, name, device: tap, ifindex, slot, generation, next: null, changes, spec, ...state });
}

function mergeChanges(former: readonly TapChange[], now: readonly TapChange[]): TapChange[] {
  return [...former, ...now.filter((change) => !former.some(({ family, setting }) => family === change.family && setting === change.setting))];
}
