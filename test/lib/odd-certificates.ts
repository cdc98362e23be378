/** A root of its own, and certificates of servers that hold, or each fail to in one way; by openssl. */
import { execFileSync } from "node:child_process";
import { X509Certificate } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import path from "node:path";

export interface KeyAndCertificate { readonly key: string; readonly cert: string }

interface Odd { extensions: string; key?: string[]; days?: string; sign?: string[]; subject?: string; /** who issues it, itself issued by the root. */ by?: Odd; /** of the signature, when all is done. */ flip?: boolean }
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
  "a wildcard of a whole domain": (name) => ({ extensions: `subjectAltName=DNS:*.${name.slice(name.indexOf(".") + 1)}` }),
  "issued by a server": (name) => ({ extensions: `subjectAltName=DNS:${name}`, by: { extensions: `basicConstraints=CA:FALSE\nsubjectAltName=DNS:${name}` } }),
  "issued by one that may not sign": (name) => ({ extensions: `subjectAltName=DNS:${name}`, by: { extensions: "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,digitalSignature" } }),
  "issued by one for clients": (name) => ({ extensions: `subjectAltName=DNS:${name}`, by: { extensions: "basicConstraints=critical,CA:TRUE\nextendedKeyUsage=clientAuth" } }),
  "issued by one that has expired": (name) => ({ extensions: `subjectAltName=DNS:${name}`, by: { extensions: "basicConstraints=critical,CA:TRUE", days: "-1" } }),
  "issued by one for other names": (name) => ({ extensions: `subjectAltName=DNS:${name}`, by: { extensions: "basicConstraints=critical,CA:TRUE\nnameConstraints=critical,permitted;DNS:evil.test" } }),
  "a signature that does not fit": (name) => ({ extensions: `subjectAltName=DNS:${name}`, flip: true }),
  "an issuer's signature that does not fit": (name) => ({ extensions: `subjectAltName=DNS:${name}`, by: { extensions: "basicConstraints=critical,CA:TRUE", flip: true } }),
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

  #leaf({ by, ...odd }: Odd): KeyAndCertificate {
    if (by === undefined) return this.#issue("root", odd);
    const issuer = this.#issue("root", { subject: "/CN=between", ...by });
    writeFileSync(this.#at("between.key"), issuer.key);
    writeFileSync(this.#at("between.pem"), issuer.cert);
    const { key, cert } = this.#issue("between", odd);
    return { key, cert: cert + issuer.cert };
  }

  #issue(by: string, { extensions, key = EC, days = "10", sign = [], subject = "/CN=x", flip = false }: Odd): KeyAndCertificate {
    this.#run("req", "-nodes", "-newkey", ...key, "-subj", subject, "-keyout", this.#at("k"), "-out", this.#at("csr"));
    writeFileSync(this.#at("ext"), extensions);
    this.#run("x509", "-req", "-in", this.#at("csr"), "-CA", this.#at(`${by}.pem`), "-CAkey", this.#at(`${by}.key`), "-days", days, "-extfile", this.#at("ext"), "-out", this.#at("c"), ...sign);
    const made = this.#made();
    if (!flip) return made;
    // The last octets of a certificate are its signature's.
    const octets = new X509Certificate(made.cert).raw;
    octets[octets.length - 1] = (octets[octets.length - 1] as number) ^ 1;
    return { key: made.key, cert: `-----BEGIN CERTIFICATE-----\n${(octets.toString("base64").match(/.{1,64}/g) as string[]).join("\n")}\n-----END CERTIFICATE-----\n` };
  }

  #made(): KeyAndCertificate { return { key: readFileSync(this.#at("k"), "utf8"), cert: readFileSync(this.#at("c"), "utf8") }; }
  #run(...args: string[]): void { execFileSync("openssl", args, { stdio: "pipe" }); }
}
