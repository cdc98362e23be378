/**
 * What a policy's author is told: errors and warnings, each with file, line, rule, sentence and remedy.
 *
 * Holds always: a diagnostic names its place and a remedy; all errors of a policy are reported together.
 */
import { EnforcerError, visibleLine } from "../errors.js";
import type { Place } from "./types.js";

export interface Diagnostic extends Place {
  readonly severity: "error" | "warning";
  readonly message: string;
  readonly remedy: string;
}

/** One line: `policy.yaml:7: rule 3: ports need tcp or udp; remedy`. */
export function formatDiagnostic(diagnostic: Diagnostic): string {
  const { file, line, rule, severity, message, remedy } = diagnostic;
  return `${file}${line === null ? "" : `:${line}`}: ${severity}: ${rule === null ? "" : `rule ${rule}: `}${message}; ${remedy}`;
}

/** A policy that is refused. The message lists every error, one a line. */
export class PolicyError extends EnforcerError {
  readonly diagnostics: readonly Diagnostic[];

  constructor(diagnostics: readonly Diagnostic[]) {
    super("E_POLICY", diagnostics.map(formatDiagnostic).join("\n"));
    this.diagnostics = diagnostics;
  }
}

/** Longest list of errors or warnings worth printing; a file of garbage has one per line. */
const SHOWN = 50;
/** Letters of a sentence: it may quote what stands in the file, and that may be a megabyte without a break. */
const SENTENCE = 1_000;

/** The beginning of what is too long to be read. */
export function clipped(text: string): string { return text.length <= SENTENCE ? text : `${text.slice(0, SENTENCE).replace(/[\ud800-\udbff]$/, "")}… (${text.length} letters)`; }

/** Gathers diagnostics while a policy is read. */
export class Report {
  readonly #errors: Diagnostic[] = [];
  readonly #warnings: Diagnostic[] = [];

  error(place: Place, message: string, remedy: string): void {
    this.#errors.push({ severity: "error", ...place, message: visibleLine(clipped(message)), remedy: visibleLine(clipped(remedy)) });
  }

  warn(place: Place, message: string, remedy: string): void {
    this.#warnings.push({ severity: "warning", ...place, message: visibleLine(clipped(message)), remedy: visibleLine(clipped(remedy)) });
  }

  get warnings(): readonly Diagnostic[] {
    return shortened(this.#warnings, "warnings");
  }

  get errorCount(): number {
    return this.#errors.length;
  }

  /** Takes over what another report holds. */
  add(other: Report): void {
    this.#errors.push(...other.#errors);
    this.#warnings.push(...other.#warnings);
  }

  /** Throws PolicyError when there is any error. */
  throwIfFailed(): void {
    if (this.#errors.length === 0) return;
    throw new PolicyError(shortened(this.#errors, "errors"));
  }
}

function shortened(all: readonly Diagnostic[], what: string): readonly Diagnostic[] {
  const last = all[SHOWN - 1];
  if (last === undefined || all.length <= SHOWN) return all;
  return [...all.slice(0, SHOWN), { ...last, message: `${all.length - SHOWN} more ${what}`, remedy: "mend these first" }];
}

/** Damerau–Levenshtein distance (adjacent transpositions count one). */
function distance(a: string, b: string): number {
  const rows: number[][] = [Array.from({ length: b.length + 1 }, (_, j) => j)];
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const cost = a[i - 1] === b[j - 1] ? 0 : 1;
      let best = Math.min((rows[i - 1]?.[j] as number) + 1, (row[j - 1] as number) + 1, (rows[i - 1]?.[j - 1] as number) + cost);
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) best = Math.min(best, (rows[i - 2]?.[j - 2] as number) + 1);
      row.push(best);
    }
    rows.push(row);
  }
  return rows[a.length]?.[b.length] as number;
}

/** The known word that was probably meant, or null: at most a third of its letters wrong, hyphens and underscores alike. */
export function nearest(word: string, knownWords: readonly string[]): string | null {
  if (word.length > 40) return null;
  const plain = (text: string): string => text.toLowerCase().replaceAll(/[-_ ]/g, "");
  let best: string | null = null;
  let bestDistance = Infinity;
  for (const candidate of knownWords) {
    const found = distance(plain(word), plain(candidate));
    if (found < bestDistance && found <= Math.max(1, Math.floor(candidate.length / 3))) {
      best = candidate;
      bestDistance = found;
    }
  }
  return best;
}

/** Remedy for an unknown word. */
export function suggest(word: string, knownWords: readonly string[]): string {
  const near = nearest(word, knownWords);
  return near === null ? `write one of: ${knownWords.join(", ")}` : `did you mean ${near}?`;
}
