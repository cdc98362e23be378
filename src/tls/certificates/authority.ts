/**
 * A certificate authority of one sandbox: made here, or the operator's own; it issues the leaf certificates that guests see.
 *
 * Holds always: a leaf names exactly one host or address, is for servers only, is not a CA, and carries the identifiers that
 * strict verifiers want (RFC 5280 section 4.2; Python 3.13 and `openssl verify -x509_strict` check them); serial numbers are
 * random and positive; a leaf never outlives its issuer. The private key is in this object and where store.ts put it, in no log
 * and no error. Written by hand instead of with @peculiar/x509: a tenth of the time per leaf, and no parser or decorator
 * framework in the process that holds secrets; what is written is checked by OpenSSL and Python in the tests.
 * Does not: read what guests or upstreams send, keep contexts (leaves.ts), touch files (store.ts).
 */
import { createHash, createPrivateKey, createPublicKey, generateKeyPairSync, randomBytes, sign, X509Certificate, type KeyObject } from "node:crypto";
import { isV4, type Address } from "../../addresses/address.js";
import { EnforcerError } from "../../errors.js";
import { bitString, boolean, children, context, implicit, octetString, oid, readElement, sequence, Tag, time, tlv, unsigned, utf8String } from "./der.js";

const HOUR = 3_600_000, DAY = 24 * HOUR;
/** Certificates begin so long before they are made, ms: a guest's clock may be behind. */
export const BACKDATE_MS = DAY;
/** A leaf is good for so long, ms. */
export const LEAF_MS = 7 * DAY;
/** A generated CA is good for so long, ms: it stands in the guest's trust store, so longer than a sandbox is meant to live. */
export const AUTHORITY_MS = 365 * DAY;

const OID = {
  commonName: "2.5.4.3", organization: "2.5.4.10",
  subjectKeyId: "2.5.29.14", keyUsage: "2.5.29.15", subjectAltName: "2.5.29.17", basicConstraints: "2.5.29.19", authorityKeyId: "2.5.29.35", extKeyUsage: "2.5.29.37",
  serverAuth: "1.3.6.1.5.5.7.3.1",
  ecdsaSha256: "1.2.840.10045.4.3.2", ecdsaSha384: "1.2.840.10045.4.3.3", rsaSha256: "1.2.840.113549.1.1.11", ed25519: "1.3.101.112",
} as const;
/** keyUsage bits (RFC 5280 section 4.2.1.3): octet and unused bits. */
const DIGITAL_SIGNATURE = [0x80, 7] as const, CERT_AND_CRL_SIGN = [0x06, 1] as const;
/** ub-common-name (RFC 5280 appendix A). */
const COMMON_NAME_MAX = 64;

/** What a leaf is for: a host name as labels, or an address. */
export type LeafSubject = { readonly kind: "name"; readonly labels: readonly string[] } | { readonly kind: "address"; readonly address: Address };

export interface Leaf {
  /** PEM: the leaf, then what lies between its issuer and a root, if anything. */
  readonly certificate: string;
  /** PKCS #8 PEM. */
  readonly key: string;
  readonly notBefore: number;
  readonly notAfter: number;
}

interface Signer { readonly digest: string | null; readonly algorithm: Buffer }

export class CertificateAuthority {
  /** PEM: what the guest must trust. For an operator's intermediate CA the whole chain as given. */
  readonly certificate: string;
  readonly notAfter: number;
  readonly #key: KeyObject;
  readonly #signer: Signer;
  readonly #issuer: Buffer;
  readonly #keyId: Buffer;
  readonly #between: string;
  /** All leaves of an authority share one key: it never leaves this process. */
  readonly #leaf: { readonly pem: string; readonly spki: Buffer; readonly keyId: Buffer };

  private constructor(key: KeyObject, certificates: readonly X509Certificate[]) {
    const [own] = certificates as [X509Certificate];
    this.#key = key;
    this.#signer = signerOf(key);
    const { subject, keyId, usage } = partsOf(own);
    if (!own.ca || (usage !== null && (usage & 0x04) === 0)) throw new EnforcerError("E_CA", "the CA certificate is not one that may issue certificates (basicConstraints, keyUsage)");
    this.#issuer = subject;
    this.#keyId = keyId;
    this.certificate = certificates.map((certificate) => certificate.toString()).join("");
    this.notAfter = Date.parse(own.validTo);
    // A root is what the guest has; all else must be sent along.
    this.#between = certificates.filter((certificate) => certificate.subject !== certificate.issuer).map((certificate) => certificate.toString()).join("");
    const leaf = newKey();
    this.#leaf = { pem: pemOf(leaf.privateKey), ...identified(leaf.publicKey) };
  }

  /** A new CA with a new key. @param name of the sandbox, for people to read. */
  static generate(name: string, now: number): CertificateAuthority {
    const { privateKey } = newKey();
    // The digits keep two CAs of one sandbox name apart in a trust store.
    const label = `enforcer ${name}`.slice(0, COMMON_NAME_MAX - 9).replace(/[^\x20-\x7e]/g, "?");
    return CertificateAuthority.#selfSigned(privateKey, distinguishedName(`${label} ${randomBytes(4).toString("hex")}`), now);
  }

  /**
   * An operator's CA or one kept from before.
   * @param certificates PEM: the CA's own first, then its issuers. @param key PEM, not encrypted.
   * @throws EnforcerError E_CA: not a CA, not valid at `now`, not the key of the certificate, a kind of key that is not supported.
   */
  static load(certificates: string, key: string, now: number): CertificateAuthority {
    const blocks = certificates.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? [];
    if (blocks.length === 0) throw new EnforcerError("E_CA", "there is no PEM certificate in the CA's file");
    let parsed: X509Certificate[], secret: KeyObject;
    try {
      parsed = blocks.map((block) => new X509Certificate(block));
    } catch {
      throw new EnforcerError("E_CA", "the CA's certificate cannot be read");
    }
    try {
      secret = createPrivateKey(key);
    } catch {
      // The cause could quote the key.
      throw new EnforcerError("E_CA", "the CA's key cannot be read: it must be PEM and not encrypted");
    }
    const own = parsed[0] as X509Certificate;
    if (!own.checkPrivateKey(secret)) throw new EnforcerError("E_CA", "the CA's key is not the key of its certificate");
    if (now < Date.parse(own.validFrom) || now >= Date.parse(own.validTo)) throw new EnforcerError("E_CA", `the CA's certificate is not valid now (${own.validFrom} to ${own.validTo})`);
    return new CertificateAuthority(secret, parsed);
  }

  /** The same authority with a certificate that begins now: same key and name, so a guest that trusts either accepts the leaves. */
  renewed(now: number): CertificateAuthority { return CertificateAuthority.#selfSigned(this.#key, this.#issuer, now); }

  /** PKCS #8 PEM; for store.ts only. */
  exportKey(): string { return pemOf(this.#key); }

  issue(subject: LeafSubject, now: number): Leaf {
    const notBefore = now - BACKDATE_MS, notAfter = Math.min(now + LEAF_MS, this.notAfter);
    const text = subject.kind === "name" ? subject.labels.join(".") : null;
    const san = subject.kind === "name" ? implicit(2, Buffer.from(subject.labels.join("."), "latin1"))
      : implicit(7, isV4(subject.address) ? subject.address.subarray(12) : subject.address);
    const der = this.#sign({
      subject: distinguishedName(text !== null && text.length <= COMMON_NAME_MAX ? text : null), spki: this.#leaf.spki, notBefore, notAfter,
      extensions: [
        extension(OID.basicConstraints, true, sequence()),
        extension(OID.keyUsage, true, bitString(Buffer.of(DIGITAL_SIGNATURE[0]), DIGITAL_SIGNATURE[1])),
        extension(OID.extKeyUsage, false, sequence(oid(OID.serverAuth))),
        extension(OID.subjectAltName, false, sequence(san)),
        extension(OID.subjectKeyId, false, octetString(this.#leaf.keyId)),
        extension(OID.authorityKeyId, false, sequence(implicit(0, this.#keyId))),
      ],
    });
    return { certificate: certificatePem(der) + this.#between, key: this.#leaf.pem, notBefore, notAfter };
  }

  static #selfSigned(key: KeyObject, name: Buffer, now: number): CertificateAuthority {
    const { spki, keyId } = identified(createPublicKey(key));
    const der = signed(key, signerOf(key), name, {
      subject: name, spki, notBefore: now - BACKDATE_MS, notAfter: now + AUTHORITY_MS,
      extensions: [
        // It issues leaves and no further CAs.
        extension(OID.basicConstraints, true, sequence(boolean(true), unsigned(Buffer.of(0)))),
        extension(OID.keyUsage, true, bitString(Buffer.of(CERT_AND_CRL_SIGN[0]), CERT_AND_CRL_SIGN[1])),
        extension(OID.subjectKeyId, false, octetString(keyId)),
        extension(OID.authorityKeyId, false, sequence(implicit(0, keyId))),
      ],
    });
    return new CertificateAuthority(key, [new X509Certificate(der)]);
  }

  #sign(body: Body): Buffer { return signed(this.#key, this.#signer, this.#issuer, body); }
}

interface Body {
  readonly subject: Buffer;
  readonly spki: Buffer;
  readonly notBefore: number;
  readonly notAfter: number;
  readonly extensions: readonly Buffer[];
}

function signed(key: KeyObject, signer: Signer, issuer: Buffer, body: Body): Buffer {
  const serial = randomBytes(16);
  serial[0] = ((serial[0] as number) & 0x7f) | 0x40; // positive, and always 16 octets
  const tbs = sequence(
    context(0, unsigned(Buffer.of(2))), // v3
    unsigned(serial), signer.algorithm, issuer, sequence(time(body.notBefore), time(body.notAfter)), body.subject, body.spki, context(3, sequence(...body.extensions)),
  );
  return sequence(tbs, signer.algorithm, bitString(sign(signer.digest, tbs, key)));
}

function newKey(): { publicKey: KeyObject; privateKey: KeyObject } { return generateKeyPairSync("ec", { namedCurve: "P-256" }); }

function pemOf(key: KeyObject): string { return key.export({ type: "pkcs8", format: "pem" }) as string; }

/** Key identifier after RFC 5280 section 4.2.1.2 (1): SHA-1 of the key's bits; an identifier, not a protection. */
function identified(key: KeyObject): { spki: Buffer; keyId: Buffer } {
  const spki = key.export({ type: "spki", format: "der" }) as Buffer;
  const bits = children(readElement(spki, 0))[1];
  if (bits === undefined) throw new RangeError("not a public key");
  return { spki, keyId: createHash("sha1").update(bits.content.subarray(1)).digest() };
}

function signerOf(key: KeyObject): Signer {
  const curve = key.asymmetricKeyDetails?.namedCurve;
  if (key.asymmetricKeyType === "ec" && curve === "prime256v1") return { digest: "sha256", algorithm: sequence(oid(OID.ecdsaSha256)) };
  if (key.asymmetricKeyType === "ec" && curve === "secp384r1") return { digest: "sha384", algorithm: sequence(oid(OID.ecdsaSha384)) };
  if (key.asymmetricKeyType === "ed25519") return { digest: null, algorithm: sequence(oid(OID.ed25519)) };
  if (key.asymmetricKeyType === "rsa" && (key.asymmetricKeyDetails?.modulusLength ?? 0) >= 2048) return { digest: "sha256", algorithm: sequence(oid(OID.rsaSha256), tlv(Tag.null, Buffer.alloc(0))) };
  throw new EnforcerError("E_CA", "the CA's key is of a kind that is not supported: P-256, P-384, Ed25519, or RSA of 2048 bits or more");
}

function distinguishedName(commonName: string | null): Buffer {
  const attributes = [[OID.organization, "enforcer"] as const, ...(commonName === null ? [] : [[OID.commonName, commonName] as const])];
  return sequence(...attributes.map(([type, value]) => tlv(Tag.set, sequence(oid(type), utf8String(value)))));
}

function extension(type: string, critical: boolean, value: Buffer): Buffer {
  return critical ? sequence(oid(type), boolean(true), octetString(value)) : sequence(oid(type), octetString(value));
}

function certificatePem(der: Buffer): string {
  return `-----BEGIN CERTIFICATE-----\n${(der.toString("base64").match(/.{1,64}/g) as string[]).join("\n")}\n-----END CERTIFICATE-----\n`;
}

/** What issuing needs of an issuer's certificate: its name as it is written there, its key identifier, its keyUsage. */
function partsOf(certificate: X509Certificate): { subject: Buffer; keyId: Buffer; usage: number | null } {
  const fields = children(children(readElement(certificate.raw as Buffer, 0))[0] as ReturnType<typeof readElement>);
  // version, serialNumber, signature, issuer, validity, subject, subjectPublicKeyInfo, …, [3] extensions
  const subject = fields[5], extensions = fields.find((field) => field.tag === 0xa3);
  if (fields[0]?.tag !== 0xa0 || subject === undefined) throw new EnforcerError("E_CA", "the CA's certificate is not X.509 version 3");
  let keyId: Buffer | null = null, usage: number | null = null;
  const list = extensions === undefined ? undefined : children(extensions)[0];
  for (const entry of list === undefined ? [] : children(list)) {
    const parts = children(entry), type = parts[0], value = parts.at(-1);
    if (type === undefined || value === undefined) continue;
    if (type.raw.equals(oid(OID.subjectKeyId))) keyId = readElement(value.content, 0).content;
    if (type.raw.equals(oid(OID.keyUsage))) usage = readElement(value.content, 0).content[1] ?? 0;
  }
  return { subject: subject.raw, keyId: keyId ?? identified(certificate.publicKey).keyId, usage };
}
