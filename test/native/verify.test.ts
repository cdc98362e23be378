/** How long a chain of certificates may be that the process verifies, since the addon was loaded. */
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { type AddressInfo } from "node:net";
import { connect, createServer } from "node:tls";
import { afterAll, beforeAll, expect, test } from "vitest";
import "../../native/index.js";

const LONGEST = 7;
let directory: string;
const at = (name: string): string => path.join(directory, name);
beforeAll(() => {
  directory = mkdtempSync(path.join(tmpdir(), "enforcer-chain-"));
  const run = (...args: string[]): void => { execFileSync("openssl", args, { stdio: "pipe" }); };
  writeFileSync(at("ca"), "basicConstraints=critical,CA:TRUE\n");
  writeFileSync(at("leaf"), "subjectAltName=DNS:chain.test\n");
  run("req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-days", "3", "-subj", "/CN=0", "-addext", "keyUsage=critical,keyCertSign", "-keyout", at("0.key"), "-out", at("0.pem"));
  const issue = (name: string, by: number, extensions: string): void => {
    run("req", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-subj", `/CN=${name}`, "-keyout", at(`${name}.key`), "-out", at("csr"));
    run("x509", "-req", "-in", at("csr"), "-CA", at(`${by}.pem`), "-CAkey", at(`${by}.key`), "-days", "3", "-extfile", at(extensions), "-out", at(`${name}.pem`));
  };
  for (let i = 1; i <= LONGEST; i++) issue(String(i), i - 1, "ca");
  for (let i = 0; i <= LONGEST; i++) issue(`leaf${i}`, i, "leaf");
});
afterAll(() => rmSync(directory, { recursive: true, force: true }));

/** What a client says of a server with so many certificates between its own and the root, which the client trusts. */
async function judge(between: number): Promise<string> {
  const chain = [`leaf${between}`, ...Array.from({ length: between }, (_, i) => String(between - i))].map((name) => readFileSync(at(`${name}.pem`), "utf8")).join("");
  const server = createServer({ key: readFileSync(at(`leaf${between}.key`)), cert: chain });
  server.on("tlsClientError", () => undefined);
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const socket = connect({ port: (server.address() as AddressInfo).port, host: "127.0.0.1", servername: "chain.test", ca: readFileSync(at("0.pem")) });
  const said = await new Promise<string>((resolve) => {
    socket.on("secureConnect", () => resolve("verified"));
    socket.on("error", (error: NodeJS.ErrnoException) => resolve(error.code ?? ""));
  });
  socket.destroy();
  server.close();
  return said;
}

test.each([0, 1, 2, 3, 5])("A44: %i certificates between a server's and the root are verified", async (between) => {
  expect(await judge(between)).toBe("verified");
});
test.each([6, LONGEST])("A44: a chain with %i between is not followed to its end", async (between) => {
  expect(await judge(between)).not.toBe("verified");
});
