/**
 * YAML text to a document, without following it to any depth or breadth.
 *
 * Holds always: reading ends where the text nests too deep, before anything that recurses over it has begun. No text can use up
 * the stack: near its end V8 may end the whole process instead of throwing. It ends as well where a mapping has too many keys,
 * each of which is compared with all others, and at the first few errors: a file of garbage has one an octet, and each costs. Blank
 * lines and comments outside the document are not handed on. Does not: know what the document should hold.
 */
import { Composer, type CST, Document, type DocumentOptions, type LineCounter, type ParseOptions, Parser, type SchemaOptions, YAMLParseError } from "yaml";

/** Collections within collections; a policy has six. */
export const NESTING_MAX = 64;
/** Keys of one mapping. Lists may be as long as the file. */
export const KEYS_MAX = 4_096;
/** Errors and warnings after which nothing more is read. */
export const ERRORS_MAX = 10;

type Options = ParseOptions & DocumentOptions & SchemaOptions & { readonly lineCounter: LineCounter; readonly prettyErrors: false };

/** As parseDocument of yaml does; what stands behind the last error that it tells of was not read. @throws RangeError when the text nests too deep or a mapping is too large. */
export function readYaml(text: string, options: Options): Document.Parsed {
  const composer = new BoundedComposer(options);
  try {
    const [first, second] = composer.compose(new BoundedParser(composer, options.lineCounter.addNewLine).parse(text), true, text.length);
    const document = first as Document.Parsed;
    if (second !== undefined) document.errors.push(new YAMLParseError([second.range[0], second.range[1]], "MULTIPLE_DOCS", "the source has more than one document"));
    return document;
  } catch (error) {
    if (!(error instanceof Enough)) throw error;
    const document = new Document(null, options) as unknown as Document.Parsed;
    document.errors.push(...composer.faults);
    return document;
  }
}

/** There are errors enough. */
class Enough extends Error {}

type Place = number | readonly [number, number, ...number[]] | { readonly offset: number; readonly source?: string };

class BoundedComposer extends Composer {
  readonly faults: YAMLParseError[] = [];

  constructor(options: Options) {
    super(options);
    // What it composes with is its own function; there is no other way to be told of an error before the last token is composed.
    const own = this["onError"] as unknown as (place: Place, code: YAMLParseError["code"], message: string, warning?: boolean) => void;
    if (typeof own !== "function") throw new Error("this version of yaml reports errors in another way");
    Object.defineProperty(this, "onError", { value: (place: Place, code: YAMLParseError["code"], message: string, warning?: boolean) => {
      this.fault(place, code, message);
      own(place, code, message, warning);
    } });
  }

  /** @throws Enough */
  fault(place: Place, code: YAMLParseError["code"], message: string): void {
    // The composer takes whatever is thrown for one more error, at each level.
    if (this.faults.length >= ERRORS_MAX) throw new Enough();
    const [start, end]: readonly number[] = typeof place === "number" ? [place, place + 1] : "offset" in place ? [place.offset, place.offset + (place.source?.length ?? 1)] : place;
    this.faults.push(new YAMLParseError([start as number, end as number], code, message));
    if (this.faults.length >= ERRORS_MAX) throw new Enough();
  }
}

/** What the composer would only gather as a comment. */
const BLANK: ReadonlySet<string> = new Set<CST.Token["type"]>(["newline", "comment", "space"]);

class BoundedParser extends Parser {
  readonly #composer: BoundedComposer;

  constructor(composer: BoundedComposer, onNewLine: (offset: number) => void) {
    super(onNewLine);
    this.#composer = composer;
  }

  override *next(source: string): Generator<CST.Token, void> {
    for (const token of super.next(source)) {
      if (token.type === "error") this.#composer.fault(token, "UNEXPECTED_TOKEN", token.message);
      if (!BLANK.has(token.type)) yield token;
    }
    // The document and a scalar are on the stack as well.
    if (this.stack.length > NESTING_MAX + 2) throw new RangeError(`it nests more than ${NESTING_MAX} levels deep`);
    const top = this.stack.at(-1);
    if (top !== undefined && (top.type === "block-map" || (top.type === "flow-collection" && top.start.source === "{")) && top.items.length > KEYS_MAX) throw new RangeError(`a mapping in it has more than ${KEYS_MAX} keys`);
  }
}
