/**
 * YAML text to a document, without following it to any depth or breadth.
 *
 * Holds always: reading ends where the text nests too deep, before anything that recurses over it has begun. No text can use up
 * the stack: near its end V8 may end the whole process instead of throwing. It ends as well where a mapping has too many keys,
 * each of which is compared with all others. Does not: know what the document should hold.
 */
import { Composer, type CST, type Document, type DocumentOptions, type LineCounter, type ParseOptions, Parser, type SchemaOptions, YAMLParseError } from "yaml";

/** Collections within collections; a policy has six. */
export const NESTING_MAX = 64;
/** Keys of one mapping. Lists may be as long as the file. */
export const KEYS_MAX = 4_096;

type Options = ParseOptions & DocumentOptions & SchemaOptions & { readonly lineCounter: LineCounter; readonly prettyErrors: false };

/** As parseDocument of yaml does. @throws RangeError when the text nests too deep or a mapping is too large. */
export function readYaml(text: string, options: Options): Document.Parsed {
  const [first, second] = new Composer(options).compose(new BoundedParser(options.lineCounter.addNewLine).parse(text), true, text.length);
  const document = first as Document.Parsed;
  if (second !== undefined) document.errors.push(new YAMLParseError([second.range[0], second.range[1]], "MULTIPLE_DOCS", "the source has more than one document"));
  return document;
}

class BoundedParser extends Parser {
  override *next(source: string): Generator<CST.Token, void> {
    yield* super.next(source);
    // The document and a scalar are on the stack as well.
    if (this.stack.length > NESTING_MAX + 2) throw new RangeError(`it nests more than ${NESTING_MAX} levels deep`);
    const top = this.stack.at(-1);
    if (top !== undefined && (top.type === "block-map" || (top.type === "flow-collection" && top.start.source === "{")) && top.items.length > KEYS_MAX) throw new RangeError(`a mapping in it has more than ${KEYS_MAX} keys`);
  }
}
