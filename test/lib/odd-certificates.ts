/** A root of its own, and certificates of servers that hold, or each fail to in one way; by openssl. */
import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import path from "node:path";

export interface KeyAndCertificate { readonly key: string; readonly cert: string }

interface Odd { extensions: string; key?: string[]; days?: string; sign?: string[]; subject?: string }
const EC = ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"];

/** What does not hold for `name`, by what is wrong with it. */
export const ODD = {
  "expired": (name) => ({ extensions: `subjectAltName=DNS:${name}`, days: "-1" }),
  "client only": (name) => ({ extensions: `subjectAltName=DNS:${name}\nextendedKeyUsage=clientAuth` }),
  "code signing": (name) => ({ extensions: `subjectAltName=DNS:${name}\nextendedKeyUsage=codeSigning` }),
  "weak key": (name) => ({ extensions: `subjectAltName=DNS:${name}`, key: ["rsa:1024"] }),
  "weak signature": (name) => ({ extensions: `subjectAltName=DNS:${name}`, sign: ["-sha1"] }),
  "common name only": (name) => ({ extensions: "basicConstraints=CA:FALSE", subject: `/CN=${name}` }),
  "another name": () => ({ extensions: "subjectAltName=DNS:evil.test" }),
  "a name below": (name) => ({ extensions: `subjectAltName=DNS:*.${name}` }),
  "an address": (name) => ({ extensions: "subjectAltName=IP:127.0.0.1", subject: `/CN=${name}` }),
  "a longer name": (name) => ({ extensions: `subjectAltName=DNS:${name}.evil.test` }),
} as const satisfies Record<string, (name: string) => Odd>;
/** All of them, and a certificate that vouches for itself. */
export const ODD_KINDS = [...(Object.keys(ODD) as (keyof typeof ODD)[]), "self-signed"] as const;
export type OddKind = (typeof ODD_KINDS)[number];

export class OddRoot {
  /** PEM */
  readonly certificate: string;
  readonly #at: (name: string) => string;

  /** @param directory in which files named odd-… are made. */
  constructor(directory: string) {
    this.#at = (name) => path.join(directory, `odd-${name}`);
    // RSA, so that it can sign with SHA-1.
    this.#run("req", "-x509", "-nodes", "-newkey", "rsa:2048", "-days", "30", "-subj", "/CN=odd root", "-addext", "keyUsage=critical,keyCertSign", "-keyout", this.#at("root.key"), "-out", this.#at("root.pem"));
    this.certificate = readFileSync(this.#at("root.pem"), "utf8");
  }

  /** @param key as openssl's -newkey has it. */
  good(name: string, key = EC): KeyAndCertificate { return this.#leaf({ extensions: `subjectAltName=DNS:${name}`, key }); }

  odd(kind: OddKind, name: string): KeyAndCertificate {
    if (kind !== "self-signed") return this.#leaf(ODD[kind](name));
    this.#run("req", "-x509", "-nodes", "-newkey", ...EC, "-days", "30", "-subj", `/CN=${name}`, "-addext", `subjectAltName=DNS:${name}`, "-keyout", this.#at("k"), "-out", this.#at("c"));
    return this.#made();
  }

  #leaf({ extensions, key = EC, days = "10", sign = [], subject = "/CN=x" }: Odd): KeyAndCertificate {
    this.#run("req", "-nodes", "-newkey", ...key, "-subj", subject, "-keyout", this.#at("k"), "-out", this.#at("csr"));
    writeFileSync(this.#at("ext"), extensions);
    this.#run("x509", "-req", "-in", this.#at("csr"), "-CA", this.#at("root.pem"), "-CAkey", this.#at("root.key"), "-days", days, "-extfile", this.#at("ext"), "-out", this.#at("c"), ...sign);
    return this.#made();
  }

  #made(): KeyAndCertificate { return { key: readFileSync(this.#at("k"), "utf8"), cert: readFileSync(this.#at("c"), "utf8") }; }
  #run(...args: string[]): void { execFileSync("openssl", args, { stdio: "pipe" }); }
}
