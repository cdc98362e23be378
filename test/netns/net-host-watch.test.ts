import { afterAll, afterEach, beforeEach, describe, expect, test } from "vitest";
import { setTimeout } from "node:timers/promises";

import { closeFd, createNetns, openNetns, setNetns, Tap } from "../../native/index.js";
import { formatAddress, formatPrefix, parseAddress, parsePrefix } from "../../src/addresses/address.js";
import type { HostView } from "../../src/net/host-view.js";
import { ReaderClient } from "../../dist/agent/reader-client.js";
import { HostReader, type Reading } from "../../src/net/host-reading.js";
import { HostWatch, type HostWatchOptions, type LinkEvent } from "../../src/net/host-watch.js";
import { addAddress, addRoute, createLink, createVeth, deleteLink, findLink, setLink } from "../../src/net/links.js";
import { request } from "../../src/net/request.js";

const home = openNetns();
let host: number;
let watch: HostWatch;
let views: HostView[];
let events: LinkEvent[];

afterAll(() => {
  setNetns(home);
  closeFd(home);
});

/** Waits until it holds; the test's own limit ends a vain wait. */
async function until(holds: () => boolean): Promise<void> {
  while (!holds()) await setTimeout(2);
}

const has = (address: string) => (): boolean => watch.view.addresses.map(formatAddress).includes(address);
const shown = (): string[] => events.map((event) => (event.type === "changed" ? `changed ${event.before.name} ${event.link.name} ${event.link.master}` : `${event.type} ${event.link.name}`));

function makePair(): number {
  const near = createVeth({ name: "up0" }, { name: "up1" }, null);
  for (const name of ["up0", "up1"]) setLink(findLink(name)!.ifindex, { up: true });
  return near.ifindex;
}

/** Of threads that ended by themselves. */
const ended: Error[] = [];
/** Another thread reads, from the first change on. */
const apart: Partial<HostWatchOptions> = { apart: (fd, devices) => new ReaderClient(fd, devices, (error) => ended.push(error)), apartAfter: 0 };

describe.each<[string, Partial<HostWatchOptions>]>([["read here", {}], ["read by another thread", apart]])("%s", (_, where) => {
  beforeEach(() => {
    host = createNetns();
    setNetns(host);
    views = [];
    events = [];
    watch = new HostWatch({ ...where, onView: (view) => views.push(view), onLink: (event) => events.push(event) });
    // The thread starts after a reading that took longer than it may.
    if (where.apart !== undefined) watch.refresh();
  });
  afterEach(() => {
    watch.close();
    setNetns(home);
    closeFd(host);
  });

  describe("the view follows", () => {
    test("A10: addresses of both families, added and taken away", async () => {
      expect(watch.view).toEqual({ addresses: [], localPrefixes: [], broadcasts: [], connectedPrefixes: [] });
      const ifindex = makePair();
      addAddress(ifindex, parseAddress("198.51.100.7")!, 24);
      await until(has("198.51.100.7"));
      addAddress(ifindex, parseAddress("2001:db8::7")!, 64, 2);
      await until(has("2001:db8::7"));
      await until(() => watch.view.connectedPrefixes.map(formatPrefix).join() === "198.51.100.0/24,2001:db8::/64");
      expect(watch.view.broadcasts.map(formatAddress)).toEqual(["198.51.100.255"]);
      expect(views.at(-1)).toBe(watch.view);
      deleteLink(ifindex);
      await until(() => !has("198.51.100.7")() && watch.view.connectedPrefixes.length === 0);
    });

    test("A11: routes into a tunnel", async () => {
      const ifindex = makePair();
      addAddress(ifindex, parseAddress("192.0.2.2")!, 24);
      addRoute({ destination: parsePrefix("8.8.8.0/24")!, ifindex });
      await until(() => watch.view.connectedPrefixes.map(formatPrefix).includes("8.8.8.0/24"));
      addRoute({ destination: parsePrefix("0.0.0.0/0")!, ifindex, gateway: parseAddress("192.0.2.1")! });
      addRoute({ destination: parsePrefix("9.9.9.0/24")!, ifindex, gateway: parseAddress("192.0.2.1")! });
      addRoute({ destination: parsePrefix("7.7.7.0/24")!, ifindex });
      await until(() => watch.view.connectedPrefixes.map(formatPrefix).includes("7.7.7.0/24"));
      expect(watch.view.connectedPrefixes.map(formatPrefix)).not.toContain("9.9.9.0/24");
    });

    test("an address on a device that is down is the host's all the same", async () => {
      const near = createVeth({ name: "up0" }, { name: "up1" }, null);
      addAddress(near.ifindex, parseAddress("198.51.100.7")!, 24);
      await until(has("198.51.100.7"));
    });

    test("a hundred changes at once end in the right view, in few callbacks", async () => {
      const ifindex = makePair();
      for (let i = 1; i <= 100; i++) addAddress(ifindex, parseAddress(`10.0.${i}.1`)!, 24);
      await until(() => watch.view.addresses.filter((address) => address[12] === 10).length === 100);
      expect(views.length).toBeLessThan(50);
    });

    test("what changes nothing calls nobody back", async () => {
      const ifindex = makePair();
      addAddress(ifindex, parseAddress("198.51.100.7")!, 24);
      await until(() => has("198.51.100.7")() && watch.view.addresses.length === 3);
      await setTimeout(100);
      const before = views.length;
      watch.refresh();
      setLink(ifindex, { mtu: 1400 });
      await until(() => events.some((event) => event.type === "changed" && event.link.mtu === 1400));
      await setTimeout(100);
      expect(views.length).toBe(before);
    });

    test("lost notifications: a refresh finds all", async () => {
      const ifindex = makePair();
      addAddress(ifindex, parseAddress("198.51.100.7")!, 24);
      watch.refresh();
      if (where.apart === undefined) expect(has("198.51.100.7")()).toBe(true);
      await until(has("198.51.100.7"));
      expect(shown().filter((text) => text.startsWith("added"))).toEqual(["added up1", "added up0"]);
    });

    test("a flood while the thread is busy ends in the right state", async () => {
      const ifindex = makePair();
      // More than the socket's buffer holds: what is lost is made up for by a reading.
      for (let i = 0; i < 3000; i++) setLink(ifindex, { mtu: 1300 + (i % 100) });
      addAddress(ifindex, parseAddress("198.51.100.7")!, 24);
      deleteLink(findLink("up0")!.ifindex);
      addAddress(makePair(), parseAddress("198.51.100.8")!, 24);
      await until(() => has("198.51.100.8")() && !has("198.51.100.7")());
      await until(() => [...watch.links.values()].map(({ name }) => name).sort().join() === "lo,up0,up1");
    });

    test("after close nobody is called", async () => {
      watch.close();
      watch.close();
      const ifindex = makePair();
      addAddress(ifindex, parseAddress("198.51.100.7")!, 24);
      watch.refresh();
      await setTimeout(100);
      expect([views, events]).toEqual([[], []]);
    });

    test("a view that was not taken is given again", async () => {
      const errors: unknown[] = [], taken: string[][] = [];
      const other = new HostWatch({
        ...where,
        onView: (view) => {
          if (errors.length === 0) throw new Error("the table is full");
          taken.push(view.addresses.map(formatAddress));
        },
        onError: (error) => errors.push(error),
      });
      addAddress(makePair(), parseAddress("198.51.100.7")!, 24);
      await until(() => taken.at(-1)?.includes("198.51.100.7") === true);
      expect(errors).toEqual([new Error("the table is full")]);
      other.close();
    });
  });

  describe("devices", () => {
    test("A06: a tap deleted and made again under its name is two events and another ifindex", async () => {
      const first = new Tap("tap0");
      await until(() => shown().includes("added tap0"));
      first.close();
      const second = new Tap("tap0");
      await until(() => events.filter((event) => event.type === "added" && event.link.name === "tap0").length === 2);
      expect(shown().filter((text) => !text.startsWith("changed"))).toEqual(["added tap0", "removed tap0", "added tap0"]);
      expect(events.filter((event) => event.type === "added").map((event) => event.link.ifindex)).toEqual([first.ifindex, second.ifindex]);
      expect(events.find((event) => event.type === "added")!.link).toMatchObject({ kind: "tun", tunType: "tap" });
      second.close();
    });

    test("a tap that joins a bridge and leaves it has changed, and is not gone", async () => {
      const bridge = createLink("br0", "bridge");
      const tap = new Tap("tap0");
      await until(() => shown().includes("added tap0"));
      setLink(tap.ifindex, { master: bridge.ifindex });
      await until(() => shown().includes(`changed tap0 tap0 ${bridge.ifindex}`));
      setLink(tap.ifindex, { master: 0 });
      await until(() => shown().includes("changed tap0 tap0 null"));
      expect(shown()).not.toContain("removed tap0");
      tap.close();
      await until(() => shown().includes("removed tap0"));
    });

    test("a tap that is renamed has changed; one that is moved to another namespace is gone from here", async () => {
      const tap = new Tap("tap0");
      await until(() => shown().includes("added tap0"));
      rename(tap.ifindex, "vm7");
      await until(() => shown().includes("changed tap0 vm7 null"));
      const other = createNetns();
      moveTo(tap.ifindex, other);
      // A reading that comes before the notification was looked at must not take it for deleted.
      watch.refresh();
      expect(shown()).toContain("removed vm7");
      expect(events.find((event) => event.type === "removed")).toMatchObject({ movedAway: true, link: { ifindex: tap.ifindex } });
      tap.close();
      closeFd(other);
    });
  });
});

describe("a thread that fails", () => {
  interface Thread { readonly ended: () => void; stopped: boolean }
  const threads: Thread[] = [];
  const errors: unknown[] = [];
  let read: () => Promise<Reading>;
  beforeEach(() => {
    threads.length = errors.length = 0;
    host = createNetns();
    setNetns(host);
    watch = new HostWatch({
      onView: () => undefined, onError: (error) => errors.push(error), apartAfter: 0,
      apart: (fd, devices, ended) => {
        const thread = { ended, stopped: false }, reader = new HostReader(fd, devices);
        threads.push(thread);
        read = () => Promise.resolve(reader.read(""));
        return { read: () => read(), stop: () => { thread.stopped = true; } };
      },
    });
    watch.refresh();
  });
  afterEach(() => {
    watch.close();
    expect(threads.every(({ stopped }) => stopped)).toBe(true);
    setNetns(home);
    closeFd(host);
  });

  test("to read, as when the table kept changing, is asked again, and stays", async () => {
    const able = read;
    let failures = 0;
    read = () => {
      if (++failures > 2) read = able;
      return Promise.reject(new Error("the table kept changing"));
    };
    addAddress(makePair(), parseAddress("198.51.100.7")!, 24);
    await until(has("198.51.100.7"));
    expect(errors).toEqual([1, 2, 3].map(() => new Error("the table kept changing")));
    expect(threads.map(({ stopped }) => stopped)).toEqual([false]);
  });

  test("and ends, within a reading: the watch reads by itself from then on, and what was missed is told", async () => {
    read = () => {
      threads[0]!.ended();
      return Promise.reject(new Error("it has ended"));
    };
    const ifindex = makePair();
    addAddress(ifindex, parseAddress("198.51.100.7")!, 24);
    await until(has("198.51.100.7"));
    addAddress(ifindex, parseAddress("198.51.100.8")!, 24);
    await until(has("198.51.100.8"));
    expect(errors).toEqual([new Error("it has ended")]);
    expect(threads.map(({ stopped }) => stopped)).toEqual([true]);
  });
});

/** RTM_SETLINK with one attribute that the product never sets. */
function setAttribute(ifindex: number, type: number, value: Buffer): void {
  const message = Buffer.alloc(32 + 4 + ((value.length + 3) & ~3));
  message.writeUInt32LE(message.length, 0);
  message.writeUInt16LE(19, 4);
  message.writeUInt16LE(5, 6);
  message.writeInt32LE(ifindex, 20);
  message.writeUInt16LE(4 + value.length, 32);
  message.writeUInt16LE(type, 34);
  value.copy(message, 36);
  request(message, "change a device");
}

function rename(ifindex: number, name: string): void { setAttribute(ifindex, 3, Buffer.from(`${name}\0`)); }

function moveTo(ifindex: number, netns: number): void {
  const value = Buffer.alloc(4);
  value.writeUInt32LE(netns);
  setAttribute(ifindex, 28, value);
}
