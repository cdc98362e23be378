/**
 * Under the programs: a drop that hangs on a tap's name and not on its ifindex. A device that a VMM deletes and makes again
 * under the same name has no program until it is attached again; what it sends lacks the mark that from_guest puts on every
 * packet it allows (globals.mark), and nftables drops it, in the IP layers and in bridges.
 *
 * Holds always: the tables are this instance's own, made and changed in one transaction each; while a name is in them, only
 * marked packets come in from it. They outlive the process, like the programs, and go with close().
 * Does not: touch any table of the host's, or judge anything.
 */
import { spawnSync } from "node:child_process";
import { EnforcerError } from "../errors.js";
import { checkInterfaceName } from "./links.js";

/** One bit of the packet mark, away from those of Docker, Kubernetes (0x4000, 0x8000), Calico (0xffff0000 by default) and Cilium (0x0f00). */
export const ALLOWED_MARK = 0x0000_2000;

const FAMILIES = ["inet", "bridge"] as const;

export class BaseDrop {
  readonly #table: string;

  private constructor(table: string) { this.#table = table; }

  /**
   * Makes the tables, or takes over those of a former process with the names in them.
   * @param instance letters, digits, dots, dashes and underscores.
   * @returns null, with the reason, where nftables cannot be used.
   */
  static open(instance: string): BaseDrop | { readonly missing: string } {
    const table = `enforcer_${instance.replaceAll(/[^A-Za-z0-9_]/g, (letter) => `_${letter.charCodeAt(0).toString(16)}_`)}`;
    const mark = `0x${ALLOWED_MARK.toString(16)}`;
    const script = FAMILIES.map((family) => `
      table ${family} ${table} {
        set taps { type ifname; }
        chain unjudged {
          type filter hook prerouting priority -350; policy accept;
        }
      }
      flush chain ${family} ${table} unjudged
      add rule ${family} ${table} unjudged iifname @taps meta mark & ${mark} == 0 counter drop`).join("\n");
    const failure = nft(script);
    return failure === null ? new BaseDrop(table) : { missing: failure };
  }

  /** From now on nothing comes in from a device of this name but what was allowed. @throws EnforcerError E_ATTACH. */
  add(tap: string): void { this.#change("add", tap); }

  /** No error when it was not there. @throws EnforcerError E_ATTACH. */
  remove(tap: string): void {
    this.#change("add", tap);
    this.#change("delete", tap);
  }

  /** Packets that the tables dropped, for the metrics. */
  dropped(): number {
    let sum = 0;
    for (const family of FAMILIES) {
      const { status, stdout } = spawnSync("nft", ["-j", "list", "chain", family, this.#table, "unjudged"], { encoding: "utf8" });
      if (status !== 0) continue;
      for (const match of stdout.matchAll(/"packets":\s*(\d+)/g)) sum += Number(match[1]);
    }
    return sum;
  }

  close(): void { nft(FAMILIES.map((family) => `table ${family} ${this.#table}\ndelete table ${family} ${this.#table}`).join("\n")); }

  #change(verb: "add" | "delete", tap: string): void {
    checkInterfaceName(tap);
    const failure = nft(FAMILIES.map((family) => `${verb} element ${family} ${this.#table} taps { "${tap}" }`).join("\n"));
    if (failure !== null) throw new EnforcerError("E_ATTACH", `nftables refused the drop beneath ${tap}: ${failure}`);
  }
}

/** Runs one transaction. @returns null, or why it failed. */
function nft(script: string): string | null {
  const { status, stderr, error } = spawnSync("nft", ["-f", "-"], { input: script, encoding: "utf8" });
  if (error !== undefined) return (error as NodeJS.ErrnoException).code === "ENOENT" ? "nft is not installed (apt-get install nftables)" : error.message;
  return status === 0 ? null : (stderr.trim().split("\n")[0] ?? `nft ended with ${status}`);
}
