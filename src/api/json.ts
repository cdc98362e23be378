/**
 * JSON of a request, strictly: a field that is there twice would be one thing to whoever has looked at the request before, and
 * another here.
 *
 * Holds always: pure; time and memory in proportion to the text.
 */

/** @throws SyntaxError: it is not JSON, or an object in it has a key twice. */
export function parseStrictJson(text: string): unknown {
  const value = JSON.parse(text) as unknown;
  /** Keys of the objects that are open; null: an array. */
  const open: (Set<string> | null)[] = [];
  let key = false;
  for (let i = 0; i < text.length; i++) {
    switch (text[i]) {
      case "{": open.push(new Set()); key = true; break;
      case "[": open.push(null); key = false; break;
      case "}": case "]": open.pop(); break;
      case ",": key = open.at(-1) instanceof Set; break;
      case ":": key = false; break;
      case '"': {
        const begun = i;
        do i = text.indexOf('"', i + 1); while (backslashes(text, i) % 2 === 1);
        if (!key) break;
        const name = JSON.parse(text.slice(begun, i + 1)) as string, keys = open.at(-1) as Set<string>;
        if (keys.has(name)) throw new SyntaxError(`${JSON.stringify(name.slice(0, 100))} is there twice`);
        keys.add(name);
      }
    }
  }
  return value;
}

/** How many stand right before a place. */
function backslashes(text: string, place: number): number {
  let count = 0;
  while (text[place - 1 - count] === "\\") count++;
  return count;
}
