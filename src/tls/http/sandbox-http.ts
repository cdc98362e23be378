/**
 * HTTP of one sandbox: its policy, its secrets and what was counted, made into the passages of its connections.
 *
 * Holds always: policy and secrets are read when a request is judged, so a change holds for the next request of every open
 * connection. Over TLS the name was judged and pinned when the connection began, and the end of the pin does not end it; over
 * plain HTTP every request's host must be pinned to the address then.
 * Does not: accept connections, decide what is intercepted.
 */
import { formatAddress, type Address } from "../../addresses/address.js";
import type { GroupTable } from "../../addresses/groups.js";
import { matchesPattern } from "../../policy/names.js";
import type { Policy } from "../../policy/types.js";
import { isDnsMessage } from "./fields.js";
import { httpLimits, type HttpLimits } from "./limits.js";
import type { ExchangeFilter, HttpCounters, Passage, RequestFacts } from "./passage.js";
import { refuse, type Refusal } from "./refusal.js";
import { judgeRequest } from "./rules.js";
import type { Trust } from "./trust.js";
import type { Watch } from "./watch.js";

/** Where a request goes, for the secrets' gate. All of it has been checked but what the gate itself checks. */
export interface ExchangeFacts extends RequestFacts {
  readonly tls: boolean;
  readonly port: number;
  readonly labels: readonly string[];
}

/** A refused request, for events: nothing of its content. */
export interface HttpRefusal {
  readonly refusal: Refusal;
  readonly method: string;
  readonly host: string | null;
  readonly address: Address;
  readonly port: number;
}

export interface SandboxHttpOptions {
  readonly policy: Policy;
  /** What holds beside it, whatever the sandbox's own policy says; null: nothing. */
  readonly floor: Policy | null;
  readonly groups: GroupTable;
  readonly watch: Watch;
  /** Whether a live pin of exactly this name is at the address (or within grace). */
  readonly pinned: (labels: readonly string[], address: Address) => Promise<boolean>;
  readonly filter: (facts: ExchangeFacts) => ExchangeFilter | Refusal | null | Promise<ExchangeFilter | Refusal | null>;
  readonly refused: (refusal: HttpRefusal) => void;
  readonly limits?: HttpLimits;
}

export class SandboxHttp {
  readonly counters: HttpCounters = { requests: 0, refused: {}, upgrades: 0 };
  policy: Policy;
  floor: Policy | null;
  groups: GroupTable;
  readonly #options: SandboxHttpOptions;

  constructor(options: SandboxHttpOptions) {
    this.policy = options.policy;
    this.floor = options.floor;
    this.groups = options.groups;
    this.#options = options;
  }

  get limits(): HttpLimits { return this.#options.limits ?? httpLimits; }

  /** Who vouches for the upstream of a name, as the policy says now. */
  trust(labels: readonly string[]): Trust {
    const { upstreamCa, trustHostCas } = this.policy.tls;
    return { hostCas: trustHostCas, extra: upstreamCa.filter(({ hosts }) => hosts === null || hosts.some((pattern) => matchesPattern(pattern, labels))).map(({ pem }) => pem) };
  }

  /** For an intercepted connection to `labels`, judged and pinned. */
  tlsPassage(labels: readonly string[], address: Address, port: number): Passage & { readonly name: string } {
    const { watch, filter } = this.#options;
    return {
      scheme: "https", name: labels.join("."), port, address: null, limits: this.limits, counters: this.counters, watch,
      judge: (request) => this.#judge(request, labels, address, port),
      filter: (request) => filter({ ...request, tls: true, port, labels }),
      refused: (refusal, { method, host }) => this.#options.refused({ refusal, method, host, address, port }),
    };
  }

  plainPassage(address: Address, port: number): Passage & { readonly name: null; readonly address: string } {
    const { watch, filter, pinned } = this.#options;
    const text = formatAddress(address);
    return {
      scheme: "http", name: null, port, address: text, limits: this.limits, counters: this.counters, watch,
      judge: async (request) => {
        const labels = request.host === text ? null : request.host.split(".");
        if (labels !== null && !await pinned(labels, address)) return refuse(403, "host-denied", "this host was not resolved to this address, or no longer", true);
        return this.#judge(request, labels, address, port);
      },
      filter: (request) => filter({ ...request, tls: false, port, labels: request.host.split(".") }),
      refused: (refusal, { method, host }) => this.#options.refused({ refusal, method, host, address, port }),
    };
  }

  #judge(request: RequestFacts, labels: readonly string[] | null, address: Address, port: number): Refusal | null {
    const question = { address, port, labels, method: request.method, target: request.target };
    if ((this.policy.tls.denyDoh || this.floor?.tls.denyDoh === true) && isDnsMessage(request.fields, request.target)) return refuse(403, "dns-message", "DNS over HTTPS is not allowed: the sandbox's resolver is on port 53");
    return judgeRequest(this.policy, this.groups, question) ?? (this.floor === null ? null : judgeRequest(this.floor, this.groups, question));
  }
}
