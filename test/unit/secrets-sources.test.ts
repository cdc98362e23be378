/** Where values come from and what becomes of them over time; placeholders (TLS.md test 38, A59). */
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { EnforcerError } from "../../src/errors.js";
import type { SecretSource, SecretSpec } from "../../src/policy/types.js";
import { GRACE_MS, LiveSecret } from "../../src/secrets/live-secret.js";
import { forgetPlaceholders, keptEnvironment, PlaceholderBook, placeholderPath } from "../../src/secrets/placeholder.js";
import { refuseLeaks, SandboxSecrets } from "../../src/secrets/sandbox-secrets.js";
import { readValue, VALUE_OCTETS } from "../../src/secrets/source.js";
import { assertNowhere, pattern, secretSpec } from "../lib/secrets.js";

let folder = "";
beforeEach(() => { folder = mkdtempSync(join(tmpdir(), "secrets-")); });
afterEach(() => rmSync(folder, { recursive: true, force: true }));
const file = (name: string, text: string | Buffer, mode = 0o600): string => {
  const path = join(folder, name);
  writeFileSync(path, text, { mode });
  chmodSync(path, mode);
  return path;
};
const read = async (from: SecretSource, options: Parameters<typeof readValue>[2] = {}): Promise<string> => (await readValue("S", from, options)).value.toString("utf8");
/** The error's whole text. */
const failure = async (from: SecretSource, options: Parameters<typeof readValue>[2] = {}): Promise<string> => {
  const error = await readValue("S", from, options).then(() => null, (caught: unknown) => caught);
  expect(error).toBeInstanceOf(EnforcerError);
  expect((error as EnforcerError).code).toBe("E_SECRET");
  expect((error as EnforcerError).message).toMatch(/^secret S: /);
  return `${(error as Error).message}\n${(error as Error).stack ?? ""}\n${JSON.stringify(error)}`;
};

describe("sources", () => {
  it("environment, file, credential, command", async () => {
    expect(await read({ kind: "env", variable: "V" }, { environment: { V: "from-env" } })).toBe("from-env");
    expect(await read({ kind: "file", path: file("f", "from-file\n") })).toBe("from-file");
    file("cred", "from-cred\r\n", 0o400);
    expect(await read({ kind: "credential", name: "cred" }, { environment: { CREDENTIALS_DIRECTORY: folder } })).toBe("from-cred");
    expect(await read({ kind: "command", argv: ["/bin/echo", "from command $HOME; `id`"] })).toBe("from command $HOME; `id`");
  });
  it("one final line end is taken off, and no more", async () => {
    expect(await failure({ kind: "file", path: file("two", "value\n\n") })).toContain("control characters");
    expect(await read({ kind: "file", path: file("none", "value") })).toBe("value");
  });
  it("a command has no environment of the agent's", async () => {
    process.env["SECRETS_TEST_LEAK"] = "leak";
    try {
      expect(await read({ kind: "command", argv: ["/bin/sh", "-c", "echo [$SECRETS_TEST_LEAK]"] })).toBe("[]");
    } finally {
      delete process.env["SECRETS_TEST_LEAK"];
    }
  });
  it("what cannot be a value is refused, without being told", async () => {
    const hidden = "hidden-part-of-a-value";
    for (const [text, why] of [["", "empty"], ["\n", "empty"], [`${hidden}\r\nx`, "control"], [`${hidden}\0`, "control"], [`${hidden}\t`, "control"], [` ${hidden}`, "space"], [hidden + "x".repeat(VALUE_OCTETS), "KiB"]] as const) {
      const told = await failure({ kind: "file", path: file("bad", text) });
      expect(told).toContain(why);
      assertNowhere(hidden, { texts: { error: told } });
      if (text !== "" && !text.includes("\0")) assertNowhere(hidden, { texts: { error: await failure({ kind: "env", variable: "V" }, { environment: { V: text } }) } });
    }
    expect(await read({ kind: "file", path: file("max", "x".repeat(VALUE_OCTETS)) })).toHaveLength(VALUE_OCTETS);
    expect(await read({ kind: "file", path: file("utf8", "pässwörd") })).toBe("pässwörd");
  });
  it("a file that others can read, that is none, or that is not there", async () => {
    for (const mode of [0o644, 0o640, 0o606, 0o660]) expect(await failure({ kind: "file", path: file("open", "value", mode) })).toContain("open to others");
    expect(await failure({ kind: "file", path: folder })).toContain("not a file");
    expect(await failure({ kind: "file", path: join(folder, "absent") })).toContain("ENOENT");
    symlinkSync(join(folder, "absent"), join(folder, "link"));
    expect(await failure({ kind: "file", path: join(folder, "link") })).toContain("ENOENT");
    expect(await failure({ kind: "env", variable: "ABSENT" }, { environment: {} })).toContain("not set");
    expect(await failure({ kind: "credential", name: "x" }, { environment: {} })).toContain("CREDENTIALS_DIRECTORY");
  });
  it("a command that fails, prints too much, does not end, or is not there", async () => {
    const hidden = "hidden-part-of-a-value";
    expect(await failure({ kind: "command", argv: ["/bin/sh", "-c", `echo ${hidden}; echo ${hidden} >&2; exit 3`] })).toContain("status 3");
    expect(await failure({ kind: "command", argv: ["/bin/sh", "-c", "yes hidden"] })).toContain("more than 8 KiB");
    expect(await failure({ kind: "command", argv: ["/bin/sh", "-c", "sleep 1000 & wait"] }, { commandMs: 50 })).toContain("did not end");
    expect(await failure({ kind: "command", argv: [join(folder, "absent")] })).toContain("ENOENT");
    // Of a command only its name is told.
    const told = await failure({ kind: "command", argv: ["/bin/false", hidden] });
    assertNowhere(hidden, { texts: { told: (told.split("\n", 1)[0] as string) } });
  });
});

class Hand {
  time = 0;
  now(): number { return this.time; }
}
const live = (spec: Partial<SecretSpec>, clock: Hand, environment: NodeJS.ProcessEnv = {}): LiveSecret => new LiveSecret(secretSpec("S", spec), { environment }, clock);

describe("test 38: rotation, ttl, failure_ttl", () => {
  it("a file that is replaced or rewritten counts a second later at most, and the former value is looked for during the grace time", async () => {
    const clock = new Hand(), path = file("f", "first-value");
    const secret = live({ from: { kind: "file", path } }, clock);
    await secret.load();
    const version = secret.version;
    expect(String(await secret.current())).toBe("first-value");
    renameSync(file("new", "second-value\n"), path);
    clock.time += 1000;
    const both = await Promise.all([secret.current(), secret.current()]);
    expect(both.map(String)).toEqual(["second-value", "second-value"]);
    expect(secret.version).toBeGreaterThan(version);
    expect(secret.values().map(String)).toEqual(["second-value", "first-value"]);
    const former = secret.values()[1] as Buffer;
    clock.time += GRACE_MS;
    expect(secret.values().map(String)).toEqual(["second-value"]);
    expect(former.every((octet) => octet === 0)).toBe(true);
  });
  it("an unchanged file is not read again", async () => {
    const clock = new Hand(), path = file("f", "value-one");
    const secret = live({ from: { kind: "file", path } }, clock);
    await secret.load();
    const version = secret.version;
    for (let i = 0; i < 3; i++) {
      clock.time += 1000;
      await secret.current();
    }
    expect(secret.version).toBe(version);
  });
  it("with ttl the source is asked when it is over, once for all who wait", async () => {
    const clock = new Hand(), log = file("log", "");
    const secret = live({ from: { kind: "command", argv: ["/bin/sh", "-c", `echo >> ${log}; wc -l < ${log} | sed 's/^/value-number-/'`] }, ttl: 60 }, clock);
    await secret.load();
    clock.time += 59_999;
    expect(secret.current()).toBeInstanceOf(Buffer);
    clock.time += 1;
    const all = await Promise.all([1, 2, 3, 4].map(() => secret.current()));
    expect(new Set(all.map(String))).toEqual(new Set(["value-number-2"]));
    expect(readFileSync(log, "utf8")).toBe("\n\n");
  });
  it("a source that fails: the value serves on for failure_ttl, then no more, and again when it is back", async () => {
    const clock = new Hand(), environment: NodeJS.ProcessEnv = { S: "value-here" };
    const secret = live({ ttl: 10, failureTtl: 30 }, clock, environment);
    await secret.load();
    delete environment["S"];
    clock.time += 10_000;
    expect(String(await secret.current())).toBe("value-here");
    expect(secret.failing).toBe(true);
    clock.time += 29_999;
    expect(String(await secret.current())).toBe("value-here");
    clock.time += 1;
    expect(await secret.current()).toBeNull();
    expect(secret.values().map(String)).toEqual(["value-here"]);
    environment["S"] = "another-value";
    clock.time += 5_000;
    expect(String(await secret.current())).toBe("another-value");
    expect(secret.failing).toBe(false);
  });
  it("failure_ttl 0 fails at once; without it the last value serves on", async () => {
    for (const [failureTtl, expected] of [[0, null], [null, "value-here"]] as const) {
      const clock = new Hand(), environment: NodeJS.ProcessEnv = { S: "value-here" };
      const secret = live({ ttl: 10, failureTtl }, clock, environment);
      await secret.load();
      delete environment["S"];
      clock.time += 10_000_000;
      const value = await secret.current();
      expect(value === null ? null : String(value)).toBe(expected);
    }
  });
  it("a file that becomes open to others, or unusable, is a source that fails", async () => {
    const clock = new Hand(), path = file("f", "value-one");
    const secret = live({ from: { kind: "file", path }, failureTtl: 0 }, clock);
    await secret.load();
    writeFileSync(path, "line\r\nline");
    clock.time += 1000;
    expect(await secret.current()).toBeNull();
  });
});

describe("placeholders", () => {
  const shape = (placeholder: Partial<SecretSpec["placeholder"]>): Partial<SecretSpec> => ({ placeholder: { prefix: "", sameLength: false, jwt: false, ...placeholder } });
  it("are random, of the shape asked for, of safe characters, and none is in another", () => {
    const book = new PlaceholderBook(null);
    const plain = book.take(secretSpec("A"), 5), prefixed = book.take(secretSpec("B", shape({ prefix: "ghp_" })), 40), same = book.take(secretSpec("C", shape({ prefix: "sk-", sameLength: true })), 51), short = book.take(secretSpec("D", shape({ sameLength: true })), 10), jwt = book.take(secretSpec("E", shape({ jwt: true })), 900);
    expect(prefixed).toMatch(/^ghp_[A-Za-z0-9]{36}$/);
    expect(same).toMatch(/^sk-[A-Za-z0-9]{48}$/);
    // Shorter than 128 random bits it never gets.
    expect(short).toMatch(/^[A-Za-z0-9]{34}$/);
    expect(jwt).toMatch(/^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{43}$/);
    for (const part of jwt.split(".")) expect(Buffer.from(part, "base64url").toString("base64url")).toBe(part);
    expect(JSON.parse(Buffer.from(jwt.split(".")[1] as string, "base64url").toString())).toMatchObject({ sub: "placeholder" });
    const all = [plain, prefixed, same, short, jwt];
    for (const one of all) {
      expect(one).toContain(book.marker);
      for (const other of all) if (one !== other) expect(other.includes(one)).toBe(false);
    }
    expect(new PlaceholderBook(null).take(secretSpec("A"), 5)).not.toBe(plain);
  });
  it("survive the agent in a file of mode 0600, and a removed one is still known", () => {
    const path = placeholderPath(folder, "tap/0");
    const book = new PlaceholderBook(path);
    const a = book.take(secretSpec("A"), 10), b = book.take(secretSpec("B"), 10);
    book.remove("B");
    book.save();
    expect(statSync(path).mode & 0o777).toBe(0o600);
    expect(keptEnvironment(folder, "tap/0")).toEqual({ A: a });
    const again = new PlaceholderBook(path);
    expect(again.take(secretSpec("A"), 10)).toBe(a);
    expect(again.all()).toContainEqual({ name: "B", placeholder: b });
    expect(again.take(secretSpec("B"), 10)).toBe(b);
    // Another shape: a new one, and the former stays known.
    const shaped = again.take(secretSpec("A", shape({ prefix: "xoxb-" })), 10);
    expect(shaped).toMatch(/^xoxb-/);
    expect(again.all()).toContainEqual({ name: "A", placeholder: a });
    expect(again.environment()["A"]).toBe(shaped);
    forgetPlaceholders(folder, "tap/0");
    expect(keptEnvironment(folder, "tap/0")).toEqual({});
  });
  it("hosts are remembered once each, the newest of them, and those of a file without any", () => {
    const path = placeholderPath(folder, "h");
    const book = new PlaceholderBook(path), hosts = (from: number, count: number): SecretSpec => secretSpec("A", { allowedHosts: Array.from({ length: count }, (_, i) => pattern(`h${from + i}.test`)), ports: [1, 443] });
    book.take(secretSpec("A"), 10);
    for (const _again of [1, 2]) book.entrust(hosts(0, 8_192));
    expect(book.entrusted("A")).toHaveLength(16_384);
    book.entrust(hosts(8_192, 1));
    book.save();
    const kept = new PlaceholderBook(path).entrusted("A");
    expect([kept.length, kept[0], kept.at(-1)]).toEqual([16_384, { allowedHosts: [pattern("h1.test")], ports: [1] }, { allowedHosts: [pattern("h8192.test")], ports: [443] }]);
    const { hosts: _hosts, ...former } = JSON.parse(readFileSync(path, "utf8")) as { hosts: unknown };
    writeFileSync(path, JSON.stringify(former));
    expect([new PlaceholderBook(path).entrusted("A"), Object.keys(new PlaceholderBook(path).environment())]).toEqual([[], ["A"]]);
  });
  it("a file that is torn, writable by others, or not of this form counts as absent", () => {
    const path = placeholderPath(folder, "t");
    const book = new PlaceholderBook(path);
    const first = book.take(secretSpec("A"), 10);
    book.entrust(secretSpec("A"));
    book.save();
    const text = readFileSync(path, "utf8");
    expect(new PlaceholderBook(path).entrusted("A")).toEqual([{ allowedHosts: secretSpec("A").allowedHosts, ports: [443] }]);
    for (const [content, mode] of [[text.slice(0, -3), 0o600], ["{}", 0o600], [text.replaceAll(first, "short"), 0o600], [text.replaceAll("origin.test:443", "origin.test:0"), 0o600], [text.replaceAll("origin.test:443", "*:443"), 0o600], [text, 0o666]] as const) {
      writeFileSync(path, content);
      chmodSync(path, mode);
      expect(new PlaceholderBook(path).all()).toEqual([]);
    }
  });
});

describe("a sandbox's secrets", () => {
  it("39: are refused while the process would print or give away what it is sent", () => {
    for (const [environment, options] of [[{ NODE_DEBUG: "http2" }, []], [{ NODE_DEBUG: "fs,tls" }, []], [{ NODE_DEBUG_NATIVE: "x" }, []], [{ NODE_TLS_REJECT_UNAUTHORIZED: "0" }, []], [{}, ["--inspect=127.0.0.1:0"]], [{}, ["--tls-keylog=/x"]], [{}, ["--report-on-signal"]]] as const) {
      expect(() => refuseLeaks(environment, options)).toThrow(/cannot be served/);
    }
    expect(() => refuseLeaks({ NODE_DEBUG: "timer", SSLKEYLOGFILE: "/x" }, ["--max-old-space-size=100"])).not.toThrow();
  });
  it("take force all together or not at all; values stay out of the file", async () => {
    const environment: NodeJS.ProcessEnv = { A: "value-of-a-9f8e7d", B: "value-of-b-1a2b3c" };
    const path = placeholderPath(folder, "t");
    const secrets = await SandboxSecrets.open([secretSpec("A")], { path, environment });
    const before = secrets.environment();
    await expect(secrets.replace([secretSpec("B"), secretSpec("MISSING")])).rejects.toMatchObject({ code: "E_SECRET" });
    expect(secrets.environment()).toEqual(before);
    await secrets.replace([secretSpec("A"), secretSpec("B")]);
    expect(Object.keys(secrets.environment())).toEqual(["A", "B"]);
    expect(secrets.environment()["A"]).toBe(before["A"]);
    for (const value of Object.values(environment)) assertNowhere(value as string, { files: [folder], texts: { environment: JSON.stringify(secrets.environment()), counters: JSON.stringify(secrets.counters()) } });
    await expect(SandboxSecrets.open([secretSpec("MISSING")], { path: null, environment })).rejects.toMatchObject({ code: "E_SECRET" });
  });
  it("a file of placeholders that cannot be written changes nothing", async () => {
    const environment: NodeJS.ProcessEnv = { A: "value-of-a-9f8e7d", B: "value-of-b-1a2b3c" };
    const path = placeholderPath(join(folder, "gone"), "t");
    mkdirSync(join(folder, "gone"));
    const secrets = await SandboxSecrets.open([secretSpec("A")], { path, environment });
    const before = secrets.environment();
    rmSync(join(folder, "gone"), { recursive: true });
    await expect(secrets.replace([secretSpec("B")])).rejects.toMatchObject({ code: "E_STATE" });
    expect(secrets.environment()).toEqual(before);
    expect(String(await secrets.byName("A")?.current())).toBe("value-of-a-9f8e7d");
    expect(secrets.byName("B")).toBeNull();
  });
  it("after a restart a source that fails makes its secret unavailable, not the sandbox", async () => {
    const path = placeholderPath(folder, "t");
    const first = await SandboxSecrets.open([secretSpec("A")], { path, environment: { A: "value-of-a-9f8e7d" } });
    const again = await SandboxSecrets.open([secretSpec("A")], { path, environment: {} });
    expect(again.environment()).toEqual(first.environment());
    expect(await again.byName("A")?.current()).toBeNull();
    expect(again.counters()["A"]?.failing).toBe(true);
  });
});
