/**
 * `enforcer completion bash|zsh|fish`: a script for the shell, made from the commands themselves.
 *
 * Holds always: it names exactly the verbs and options that this version has; it asks the agent for names only through
 * `enforcer list`, and says nothing when none answers.
 */
import type { Command } from "commander";

export type Shell = "bash" | "zsh" | "fish";
export const SHELLS: readonly Shell[] = ["bash", "zsh", "fish"];

interface Verb { readonly path: readonly string[]; readonly description: string; readonly options: readonly { readonly long: string; readonly description: string; readonly takesFile: boolean; readonly takesValue: boolean; readonly choices: readonly string[] }[]; readonly verbs: readonly string[]; readonly takesSandbox: boolean }

/** Verbs whose first argument is a sandbox. */
function verbsOf(command: Command, path: readonly string[] = []): Verb[] {
  const own: Verb = {
    path, description: command.description(), verbs: command.commands.map((one) => one.name()),
    options: command.options.filter(({ long }) => long !== undefined).map((option) => ({
      long: option.long!, description: option.description, takesValue: option.required || option.optional, takesFile: /<(file|dir)>/.test(option.flags), choices: option.argChoices ?? [],
    })),
    takesSandbox: command.registeredArguments[0]?.name() === "sandbox",
  };
  return [own, ...command.commands.flatMap((one) => verbsOf(one, [...path, one.name()]))];
}

export function completionScript(root: Command, shell: Shell): string {
  const verbs = verbsOf(root);
  return { bash, zsh, fish }[shell](verbs);
}

const names = "enforcer list --json 2>/dev/null | tr ',{' '\\n\\n' | sed -n 's/^\"name\":\"\\([^\"]*\\)\".*/\\1/p'";

function bash(verbs: readonly Verb[]): string {
  const cases = verbs.map(({ path, options, verbs: below, takesSandbox }) => `    '${path.join(" ")}') words='${[...below, ...options.map(({ long }) => long), "--help"].join(" ")}'; ${takesSandbox ? "named=1" : "named="} ;;`);
  const values = [...new Map(verbs.flatMap(({ options }) => options).map((option) => [option.long, option])).values()].filter(({ takesValue }) => takesValue)
    .map(({ long, takesFile, choices }) => `    ${long}) ${choices.length > 0 ? `COMPREPLY=($(compgen -W '${choices.join(" ")}' -- "$word"))` : takesFile ? "compopt -o default; COMPREPLY=()" : "COMPREPLY=()"}; return ;;`);
  const paths = verbs.filter(({ path }) => path.length > 0).map(({ path }) => `'${path.join(" ")}'`).join("|");
  return `# bash completion of enforcer; made by: enforcer completion bash
_enforcer() {
  local word=\${COMP_WORDS[COMP_CWORD]} before=\${COMP_WORDS[COMP_CWORD-1]} verb= words= named= i
  COMPREPLY=()
  for ((i = 1; i < COMP_CWORD; i++)); do
    case "\${verb:+$verb }\${COMP_WORDS[i]}" in ${paths}) verb="\${verb:+$verb }\${COMP_WORDS[i]}" ;; esac
  done
  case "$before" in
${values.join("\n")}
  esac
  case "$verb" in
${cases.join("\n")}
  esac
  [[ $named && $word != -* ]] && words=$(${names})
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}
complete -F _enforcer enforcer
`;
}

function zsh(verbs: readonly Verb[]): string {
  const quote = (text: string): string => text.replaceAll("'", "’").replaceAll("[", "(").replaceAll("]", ")").replaceAll(":", "\\:");
  const cases = verbs.map(({ path, options, verbs: below, takesSandbox }) => {
    const described = below.map((name) => `'${name}:${quote(verbs.find((verb) => verb.path.join(" ") === [...path, name].join(" "))?.description ?? "")}'`);
    const flags = options.map(({ long, description }) => `'${long}:${quote(description)}'`);
    return `    '${path.join(" ")}') verbs=(${described.join(" ")}); flags=(${flags.join(" ")} '--help:help'); ${takesSandbox ? "named=1" : "named="} ;;`;
  });
  const files = [...new Set(verbs.flatMap(({ options }) => options).filter(({ takesFile }) => takesFile).map(({ long }) => long))];
  const paths = verbs.filter(({ path }) => path.length > 0).map(({ path }) => `'${path.join(" ")}'`).join("|");
  return `#compdef enforcer
# zsh completion of enforcer; made by: enforcer completion zsh
_enforcer() {
  local verb= named= i
  local -a verbs flags
  for ((i = 2; i < CURRENT; i++)); do
    case "\${verb:+$verb }\${words[i]}" in (${paths}) verb="\${verb:+$verb }\${words[i]}" ;; esac
  done
  case "\${words[CURRENT-1]}" in (${files.join("|")}) _files; return ;; esac
  case "$verb" in
${cases.map((one) => one.replace(/^ {4}'/, "    ('")).join("\n")}
  esac
  if [[ $PREFIX == -* ]]; then _describe option flags; return; fi
  (( $#verbs )) && _describe command verbs
  [[ -n $named ]] && compadd -- \${(f)"$(${names})"}
}
compdef _enforcer enforcer
`;
}

function fish(verbs: readonly Verb[]): string {
  const quote = (text: string): string => `'${text.replaceAll("\\", "\\\\").replaceAll("'", "\\'")}'`;
  const lines = ["# fish completion of enforcer; made by: enforcer completion fish", "complete -c enforcer -f"];
  for (const { path, options, verbs: below, takesSandbox } of verbs) {
    const inside = path.map((word) => `__fish_seen_subcommand_from ${word}`).join("; and ");
    const condition = path.length === 0 ? "__fish_use_subcommand" : below.length > 0 ? `${inside}; and not __fish_seen_subcommand_from ${below.join(" ")}` : inside;
    for (const name of below) lines.push(`complete -c enforcer -n ${quote(condition)} -a ${name} -d ${quote(verbs.find((verb) => verb.path.join(" ") === [...path, name].join(" "))?.description ?? "")}`);
    if (takesSandbox) lines.push(`complete -c enforcer -n ${quote(condition)} -a ${quote(`(${names})`)}`);
    for (const { long, description, takesValue, takesFile, choices } of options) {
      lines.push(`complete -c enforcer -n ${quote(condition)} -l ${long.slice(2)}${takesFile ? " -r -F" : takesValue ? " -x" : ""}${choices.length > 0 ? ` -a ${quote(choices.join(" "))}` : ""} -d ${quote(description)}`);
    }
  }
  return `${lines.join("\n")}\n`;
}
