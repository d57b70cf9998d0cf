// What a model says in Node: one request as JSON on standard input, one answer as JSON on standard output.
//
// {"site": folder, "isa": name or null, "call": "classify" | "encode" | "tokens" | "isas" | "sums", "arguments": [...]}
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const { site, isa, call, arguments: given } = JSON.parse(readFileSync(0, "utf-8"));
const part = (name) => import(pathToFileURL(`${site}/tritune/${name}`));
const [{ Tokenizer }, { load }] = await Promise.all([part("tokenizers.mjs"), part("tritune.mjs")]);

/** The exact sums of codes, (tokens, columns), and a packed weight, (rows, columns / 4). */
function sums(engine, { codes, packed, tokens, rows, columns, isa }) {
  const name = engine.copy(new TextEncoder().encode(`${isa}\0`));
  const scales = engine.copy(new Float32Array(rows).fill(1));
  const linear = engine.exports.tritune_linear_new(
    engine.copy(Uint8Array.from(packed)), BigInt(rows), BigInt(columns), 1, -1, scales, 0, name, 0, 0);
  const out = engine.reserve(4 * tokens * rows);
  engine.exports.tritune_linear_sums(linear, engine.copy(Int8Array.from(codes)), BigInt(tokens), out, 0, 0);
  return Array.from(engine.view(Int32Array, out, tokens * rows));
}

/** How often an id that does not exist fails, and what the model says afterwards. */
function afterFailures(model, texts, times) {
  let failed = 0;
  for (let time = 0; time < times; time += 1) {
    try {
      model.engine.run({ ids: [1 << 30], types: null });
    } catch {
      failed += 1;
    }
  }
  return { failed, answers: model.classify(texts) };
}

let answer;
try {
  const model = await load(`${site}/model`, { Tokenizer, isa: isa ?? undefined });
  const calls = {
    classify: () => model.classify(...given),
    encode: () => model.encode(...given).map((vector) => Array.from(vector)),
    tokens: () => model.tokens(...given),
    after_failures: () => afterFailures(model, ...given),
    isas: () => model.engine.isas,
    sums: () => given[0].map((one) => sums(model.engine, one)),
  };
  answer = { value: calls[call](), isa: model.isa };
} catch (error) {
  answer = { error: error.message, kind: error.constructor.name };
}
process.stdout.write(JSON.stringify(answer));
