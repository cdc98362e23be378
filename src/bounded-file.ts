/**
 * Reading a file that somebody named, which may be anything.
 *
 * Holds always: no more is read than is asked for, whatever the file's size is said to be; nothing is waited for unless pipes are
 * taken.
 */
import { closeSync, constants, fstatSync, openSync, readSync } from "node:fs";

const CHUNK = 65_536;

/**
 * @param most octets.
 * @param pipe a pipe or a device is taken as well, and waited for: only where a person who waits has named it.
 * @throws Error whose message ends a sentence that begins with "it cannot be read: ".
 */
export function readBounded(path: string, most: number, { pipe = false } = {}): Buffer {
  const fd = openSync(path, constants.O_RDONLY | (pipe ? 0 : constants.O_NONBLOCK));
  try {
    const facts = fstatSync(fd);
    if (facts.isDirectory()) throw new Error("it is a directory");
    if (!pipe && !facts.isFile()) throw new Error("it is no ordinary file");
    const parts: Buffer[] = [];
    let length = 0;
    for (let size = Math.min(most, facts.size) + 1; ; size = CHUNK) {
      const part = Buffer.allocUnsafe(size), read = readSync(fd, part, 0, size, null);
      if (read === 0) return parts.length === 1 ? parts[0]! : Buffer.concat(parts, length);
      parts.push(part.subarray(0, read));
      length += read;
      if (length > most) throw new Error(`it is larger than ${most >= 1 << 20 ? `${most / 1024 / 1024} MiB` : `${most / 1024} KiB`}`);
    }
  } finally {
    closeSync(fd);
  }
}
