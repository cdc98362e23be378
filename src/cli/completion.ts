/**
 * `enforcer completion bash|zsh|fish`: a script for the shell, made from the commands themselves.
 *
 * Holds always: it names exactly the verbs and options that this version has; it asks the agent for names only through
 * `enforcer list`, and says nothing when none answers.
 */
import type { Command } from "commander";

export type Shell = "bash" | "zsh" | "fish";
export const SHELLS: readonly Shell[] = ["bash", "zsh", "fish"];

/** What stands at a place of the command line: one of the agent's sandboxes, a tap of this host, a file, one of some words; or what nobody can guess. */
interface Place { readonly kind: "sandbox" | "tap" | "file" | "words" | "any"; readonly words: readonly string[]; readonly more: boolean }

interface Verb {
  readonly path: readonly string[]; readonly description: string; readonly verbs: readonly string[]; readonly places: readonly Place[];
  readonly options: readonly { readonly long: string; readonly description: string; readonly takesFile: boolean; readonly takesValue: boolean; readonly choices: readonly string[] }[];
}

const KINDS: Readonly<Record<string, Place["kind"]>> = { sandbox: "sandbox", tap: "tap", file: "file" };
const PROTOCOLS = ["tcp", "udp", "icmp", "icmpv6"];

function verbsOf(command: Command, path: readonly string[] = []): Verb[] {
  const own: Verb = {
    path, description: command.description(), verbs: command.commands.map((one) => one.name()),
    options: command.options.filter(({ long }) => long !== undefined).map((option) => ({
      long: option.long!, description: option.description, takesValue: option.required || option.optional, takesFile: /<(file|dir)>/.test(option.flags), choices: option.argChoices ?? [],
    })),
    places: command.registeredArguments.map((argument) => {
      const words = argument.argChoices ?? (argument.name() === "proto" ? PROTOCOLS : []);
      return { kind: words.length > 0 ? "words" : (KINDS[argument.name()] ?? "any"), words, more: argument.variadic };
    }),
  };
  return [own, ...command.commands.flatMap((one) => verbsOf(one, [...path, one.name()]))];
}

export function completionScript(root: Command, shell: Shell): string {
  const verbs = verbsOf(root);
  return { bash, zsh, fish }[shell](verbs);
}

const names = "enforcer list --json 2>/dev/null | tr ',{' '\\n\\n' | sed -n 's/^\"name\":\"\\([^\"]*\\)\".*/\\1/p'";
const taps = "ip -o link show type tun 2>/dev/null | cut -d: -f2 | tr -d ' '";

const optionsOf = (verbs: readonly Verb[]): Verb["options"] => [...new Map(verbs.flatMap(({ options }) => options).map((option) => [option.long, option])).values()].filter(({ takesValue }) => takesValue);

/** A place as the scripts name it; a last word for all places that follow. */
const placesOf = ({ places }: Verb): string => places.map(({ kind, words, more }) => `${kind === "words" ? words.join(",") : kind}${more ? " ..." : ""}`).join(" ");

function bash(verbs: readonly Verb[]): string {
  const cases = verbs.map((verb) => `    '${verb.path.join(" ")}') words='${[...verb.verbs, ...verb.options.map(({ long }) => long), "--help"].join(" ")}'; places=(${placesOf(verb)}) ;;`);
  const valued = optionsOf(verbs);
  const values = valued.map(({ long, takesFile, choices }) => `    ${long}) ${choices.length > 0 ? `COMPREPLY=($(compgen -W '${choices.join(" ")}' -- "$word"))` : takesFile ? "compopt -o default; COMPREPLY=()" : "COMPREPLY=()"}; return ;;`);
  const paths = verbs.filter(({ path }) => path.length > 0).map(({ path }) => `'${path.join(" ")}'`).join("|");
  return `# bash completion of enforcer; made by: enforcer completion bash
_enforcer() {
  local word=\${COMP_WORDS[COMP_CWORD]} before=\${COMP_WORDS[COMP_CWORD-1]} verb= words= place= skip= n=0 i
  local -a places=()
  COMPREPLY=()
  for ((i = 1; i < COMP_CWORD; i++)); do
    [[ $skip ]] && { skip=; continue; }
    case "\${COMP_WORDS[i]}" in
    ${valued.map(({ long }) => long).join("|")}) skip=1; continue ;;
    -*) continue ;;
    esac
    case "\${verb:+$verb }\${COMP_WORDS[i]}" in
    ${paths}) verb="\${verb:+$verb }\${COMP_WORDS[i]}" n=0 ;;
    *) n=$((n + 1)) ;;
    esac
  done
  case "$before" in
${values.join("\n")}
  esac
  case "$verb" in
${cases.join("\n")}
  esac
  if [[ $word != -* ]]; then
    [[ \${#places[@]} -gt 1 && \${places[-1]} == ... && $n -ge $((\${#places[@]} - 2)) ]] && place=\${places[-2]} || place=\${places[n]}
    case "$place" in
    '') [[ \${#places[@]} -gt 0 ]] && words= ;;
    sandbox) words=$(${names}) ;;
    tap) words=$(${taps}) ;;
    file) compopt -o default; return ;;
    any) words= ;;
    *) words=\${place//,/ } ;;
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}
complete -F _enforcer enforcer
`;
}

function zsh(verbs: readonly Verb[]): string {
  const quote = (text: string): string => text.replaceAll("'", "’").replaceAll("[", "(").replaceAll("]", ")").replaceAll(":", "\\:");
  const cases = verbs.map((verb) => {
    const described = verb.verbs.map((name) => `'${name}:${quote(verbs.find(({ path }) => path.join(" ") === [...verb.path, name].join(" "))?.description ?? "")}'`);
    const flags = verb.options.map(({ long, description }) => `'${long}:${quote(description)}'`);
    return `    ('${verb.path.join(" ")}') verbs=(${described.join(" ")}); flags=(${flags.join(" ")} '--help:help'); places=(${placesOf(verb)}) ;;`;
  });
  const valued = optionsOf(verbs);
  const values = valued.map(({ long, takesFile, choices }) => `    (${long}) ${choices.length > 0 ? `compadd -- ${choices.join(" ")}` : takesFile ? "_files" : ":"}; return ;;`);
  const paths = verbs.filter(({ path }) => path.length > 0).map(({ path }) => `'${path.join(" ")}'`).join("|");
  return `#compdef enforcer
# zsh completion of enforcer; made by: enforcer completion zsh
_enforcer() {
  local verb= place= skip= n=1 i
  local -a verbs flags places
  for ((i = 2; i < CURRENT; i++)); do
    [[ -n $skip ]] && { skip=; continue }
    case "\${words[i]}" in
    (${valued.map(({ long }) => long).join("|")}) skip=1; continue ;;
    (-*) continue ;;
    esac
    case "\${verb:+$verb }\${words[i]}" in
    (${paths}) verb="\${verb:+$verb }\${words[i]}" n=1 ;;
    (*) n=$((n + 1)) ;;
    esac
  done
  case "\${words[CURRENT-1]}" in
${values.join("\n")}
  esac
  case "$verb" in
${cases.join("\n")}
  esac
  if [[ $PREFIX == -* ]]; then _describe option flags; return; fi
  (( $#verbs )) && _describe command verbs
  [[ \${places[-1]} == ... && $n -ge $(($#places - 1)) ]] && place=\${places[-2]} || place=\${places[n]}
  case "$place" in
  (''|any) ;;
  (sandbox) compadd -- \${(f)"$(${names})"} ;;
  (tap) compadd -- \${(f)"$(${taps})"} ;;
  (file) _files ;;
  (*) compadd -- \${(s:,:)place} ;;
  esac
}
compdef _enforcer enforcer
`;
}

function fish(verbs: readonly Verb[]): string {
  const quote = (text: string): string => `'${text.replaceAll("\\", "\\\\").replaceAll("'", "\\'")}'`;
  const lines = ["# fish completion of enforcer; made by: enforcer completion fish", "complete -c enforcer -f"];
  for (const { path, options, verbs: below, places } of verbs) {
    const inside = path.map((word) => `__fish_seen_subcommand_from ${word}`).join("; and ");
    const condition = path.length === 0 ? "__fish_use_subcommand" : below.length > 0 ? `${inside}; and not __fish_seen_subcommand_from ${below.join(" ")}` : inside;
    for (const name of below) lines.push(`complete -c enforcer -n ${quote(condition)} -a ${name} -d ${quote(verbs.find((verb) => verb.path.join(" ") === [...path, name].join(" "))?.description ?? "")}`);
    for (const kind of new Set(places.map((place) => place.kind))) {
      if (kind === "sandbox") lines.push(`complete -c enforcer -n ${quote(condition)} -a ${quote(`(${names})`)}`);
      if (kind === "tap") lines.push(`complete -c enforcer -n ${quote(condition)} -a ${quote(`(${taps})`)}`);
      if (kind === "file") lines.push(`complete -c enforcer -n ${quote(condition)} -F`);
    }
    for (const { kind, words } of places) if (kind === "words") lines.push(`complete -c enforcer -n ${quote(condition)} -a ${quote(words.join(" "))}`);
    for (const { long, description, takesValue, takesFile, choices } of options) {
      lines.push(`complete -c enforcer -n ${quote(condition)} -l ${long.slice(2)}${takesFile ? " -r -F" : takesValue ? " -x" : ""}${choices.length > 0 ? ` -a ${quote(choices.join(" "))}` : ""} -d ${quote(description)}`);
    }
  }
  return `${lines.join("\n")}\n`;
}
