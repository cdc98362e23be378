/**
 * Every error that a user may see: a stable code, a sentence with the place in it, a remedy, an exit status.
 *
 * Holds always: whoever throws names the code here; docs/ERRORS.md is generated from this table. An error never carries a
 * secret. Faults of the program itself (a bug) are plain Errors and end with exit status 70.
 */

/** Exit statuses, after sysexits.h where one fits. */
export const ExitStatus = { ok: 0, failed: 1, usage: 64, data: 65, unavailable: 69, software: 70, osError: 71, noPermission: 77, config: 78 } as const;
export type ExitStatus = (typeof ExitStatus)[keyof typeof ExitStatus];

interface ErrorKind { readonly exit: ExitStatus; readonly remedy: string }

export const errorKinds = {
  E_USAGE: { exit: ExitStatus.usage, remedy: "see enforcer --help" },
  E_NOT_ROOT: { exit: ExitStatus.noPermission, remedy: "run it as root (sudo enforcer …): it loads programs into the kernel, and the agent answers root alone" },
  E_POLICY: { exit: ExitStatus.data, remedy: "mend the policy at the place named; nothing of it was applied" },
  E_POLICY_FILE: { exit: ExitStatus.data, remedy: "name a readable YAML or JSON file" },
  E_GROUPS: { exit: ExitStatus.config, remedy: "mend the prefix named in groups or nat64_prefixes of the agent's configuration" },
  E_TAP_MISSING: { exit: ExitStatus.unavailable, remedy: "create the tap first: ip tuntap add <name> mode tap" },
  E_TAP_KIND: { exit: ExitStatus.data, remedy: "name the guest's tap device, not another kind of link" },
  E_TAP_TAKEN: { exit: ExitStatus.unavailable, remedy: "detach the other enforcer from it first; it still holds this tap" },
  E_GATEWAY_UNKNOWN: { exit: ExitStatus.config, remedy: "give the tap (or its bridge) an address, or name the guest's gateway with --gateway" },
  E_BPFFS: { exit: ExitStatus.config, remedy: "mount it: mount -t bpf bpf /sys/fs/bpf, or name another with --bpffs" },
  E_KERNEL: { exit: ExitStatus.unavailable, remedy: "use a kernel ≥ 6.1 with BTF (CONFIG_DEBUG_INFO_BTF=y); enforcer doctor says what is missing" },
  E_LOAD: { exit: ExitStatus.osError, remedy: "run enforcer doctor; if it is satisfied, report this with the verifier's line" },
  E_ATTACH: { exit: ExitStatus.osError, remedy: "run enforcer doctor; nothing was left behind" },
  E_SELF_TEST: { exit: ExitStatus.osError, remedy: "nothing was put in force; report this with the packet and verdict named" },
  E_RESOLVER: { exit: ExitStatus.osError, remedy: "run enforcer doctor; the resolver's device or namespace could not be made" },
  E_NO_UPSTREAM: { exit: ExitStatus.config, remedy: "name a resolver with --upstream ADDR[:PORT] or in dns.upstreams, or mend /etc/resolv.conf" },
  E_METRICS_LISTEN: { exit: ExitStatus.unavailable, remedy: "choose a free address, or off: --metrics of enforcer attach, metrics in the agent's configuration" },
  E_STATE: { exit: ExitStatus.osError, remedy: "make the directory writable for root, or name another with --run-dir" },
  E_LIMIT: { exit: ExitStatus.data, remedy: "make the policy smaller or raise the limit named" },
  E_NETLINK: { exit: ExitStatus.osError, remedy: "run enforcer doctor; the kernel refused a network request" },
  E_UPGRADE: { exit: ExitStatus.unavailable, remedy: "detach those sandboxes with the version that made them, or end their guests, and start again; nothing was touched" },
  E_CONFIG: { exit: ExitStatus.config, remedy: "mend the configuration file at the place named; nothing of it was applied" },
  E_NO_AGENT: { exit: ExitStatus.unavailable, remedy: "start it: systemctl start enforcer-agent, or enforcer agent" },
  E_AGENT_RUNS: { exit: ExitStatus.unavailable, remedy: "one agent serves a host; end the other one, or choose another --run-dir and bpffs" },
  E_NO_SANDBOX: { exit: ExitStatus.data, remedy: "enforcer list shows the sandboxes there are" },
  E_NAME_TAKEN: { exit: ExitStatus.data, remedy: "detach it first, or change its policy with enforcer policy set" },
  E_REQUEST: { exit: ExitStatus.usage, remedy: "see docs/API.md" },
  E_NETNS: { exit: ExitStatus.data, remedy: "name a network namespace as ip netns does, or a path such as /run/netns/NAME or /proc/PID/ns/net" },
  E_TLS: { exit: ExitStatus.osError, remedy: "run enforcer doctor; the thread that looks into connections could not be started" },
  E_CA: { exit: ExitStatus.config, remedy: "name a certificate that may issue and its key under `tls.ca`, in PEM and not encrypted; without `tls.ca` a CA is made for each sandbox whose TLS is intercepted" },
  E_SECRET: { exit: ExitStatus.data, remedy: "mend the source of the secret that is named; docs/SECRETS.md says what each must be" },
  E_DATA: { exit: ExitStatus.software, remedy: "the installation is damaged: build or install it again" },
} as const satisfies Record<string, ErrorKind>;

export type ErrorCode = keyof typeof errorKinds;

/**
 * Text that may quote what others wrote, for a terminal or a log: control characters (C1 too, which terminals obey) and those that turn
 * the direction of writing come out as escapes. Line breaks stay.
 */
export function visible(text: string): string { return text.replace(/[^\P{Cc}\n]|[\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/gu, escaped); }

/** The same for what is to be one line. */
export function visibleLine(text: string): string { return visible(text).replaceAll("\n", escaped); }

function escaped(char: string): string { return `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`; }

export class EnforcerError extends Error {
  readonly code: ErrorCode;
  readonly remedy: string;
  readonly exit: ExitStatus;

  /** @param remedy replaces the table's remedy where the place allows a more exact one. */
  constructor(code: ErrorCode, message: string, options: { remedy?: string; cause?: unknown } = {}) {
    super(visible(message), options.cause === undefined ? undefined : { cause: options.cause });
    this.name = "EnforcerError";
    this.code = code;
    this.remedy = visible(options.remedy ?? errorKinds[code].remedy);
    this.exit = errorKinds[code].exit;
  }
}
