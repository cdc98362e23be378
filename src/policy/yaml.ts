/**
 * YAML text to a document, without following it to any depth.
 *
 * Holds always: reading ends where the text nests too deep, before anything that recurses over it has begun. No text can use up
 * the stack: near its end V8 may end the whole process instead of throwing. Does not: know what the document should hold.
 */
import { Composer, type CST, type Document, type DocumentOptions, type LineCounter, type ParseOptions, Parser, type SchemaOptions, YAMLParseError } from "yaml";

/** Collections within collections; a policy has six. */
export const NESTING_MAX = 64;

type Options = ParseOptions & DocumentOptions & SchemaOptions & { readonly lineCounter: LineCounter; readonly prettyErrors: false };

/** As parseDocument of yaml does. @throws RangeError when the text nests too deep. */
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
  }
}
