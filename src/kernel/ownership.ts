/**
 * Whether what lies on a file system is this user's own: a directory or file that somebody else can write says whatever he likes.
 *
 * Holds always: the words say what is wrong with it, and null means nothing is. Changes nothing.
 */
import { closeSync, constants, fstatSync, lstatSync, openSync, readFileSync, statSync, type Stats } from "node:fs";

/** Octets of a file that is read whole. */
const FILE_OCTETS = 64 * 1024 * 1024;

function faultOf({ uid, mode }: Stats): string | null {
  if (uid !== process.geteuid!()) return `it belongs to another user (${uid})`;
  return (mode & 0o022) === 0 ? null : `it may be written to by others (mode ${(mode & 0o7777).toString(8).padStart(4, "0")})`;
}

/** Null as well when it is not there. A symbolic link counts where it is this user's own and leads to what is. */
export function directoryFault(path: string): string | null {
  const link = lstatSync(path, { throwIfNoEntry: false });
  if (link === undefined) return null;
  if (link.isSymbolicLink() && link.uid !== process.geteuid!()) return `it is a symbolic link that belongs to another user (${link.uid})`;
  const there = statSync(path, { throwIfNoEntry: false });
  if (there === undefined) return "it is a symbolic link to nowhere";
  return there.isDirectory() ? faultOf(there) : "it is no directory";
}

/** The text of an ordinary file that nobody else can have written, or what is wrong with it. */
export function readOwn(path: string): { readonly text: string } | { readonly fault: string } {
  let fd: number;
  try {
    fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? "error";
    if (code === "ENOENT") return { fault: "it is missing" };
    if (code === "ELOOP") return { fault: "it is a symbolic link" };
    // Without the capability to read all files, another user's is closed.
    const there = lstatSync(path, { throwIfNoEntry: false });
    return { fault: (there === undefined ? null : faultOf(there)) ?? `it cannot be read (${code})` };
  }
  try {
    const facts = fstatSync(fd);
    const fault = !facts.isFile() ? "it is no ordinary file" : (faultOf(facts) ?? (facts.size > FILE_OCTETS ? "it is too large" : null));
    return fault === null ? { text: readFileSync(fd, "utf8") } : { fault };
  } catch (error) {
    return { fault: `it cannot be read (${(error as NodeJS.ErrnoException).code ?? "error"})` };
  } finally {
    closeSync(fd);
  }
}
