/**
 * Packed models of tritune in a page or in Node, computed by the engine in WebAssembly.
 *
 *     import { Tokenizer } from "./tokenizers.mjs";   // of the package @huggingface/tokenizers
 *     import { load } from "./tritune.mjs";
 *
 *     const model = await load("model/", { Tokenizer });
 *     model.classify(["They drank the pub dry."]);    // [{prediction: "acceptable", probabilities: {...}}]
 *
 * The folder is what `tritune export MODEL --format web` writes.
 */

/** What cannot be done, in one line. */
export class TrituneError extends Error {}

// Modules of the engine, best first: browsers without relaxed SIMD refuse the first one as a whole.
const MODULES = ["tritune-relaxed.wasm", "tritune.wasm"];

/**
 * Load a model.
 *
 * @param {string | URL} folder of `web.json`, the packed model and its tokenizer.
 * @param {object} options
 * @param {Function} options.Tokenizer the class of that name of @huggingface/tokenizers.
 * @param {(string | URL)[]} [options.modules] addresses of the engine's modules, best first; by default beside this file.
 * @param {string} [options.isa] the kernels to use, one of `Engine.isas`; by default the best ones.
 * @returns {Promise<Model>}
 * @throws {TrituneError} a file is missing or damaged, or the model is not one that the engine runs.
 */
export async function load(folder, { Tokenizer, modules, isa } = {}) {
  if (typeof Tokenizer !== "function") throw new TrituneError("load needs { Tokenizer } of @huggingface/tokenizers");
  const base = new URL(String(folder).replace(/\/?$/, "/"), globalThis.document?.baseURI ?? currentFolder());
  try {
    const file = (name) => bytesOf(new URL(name, base));
    const [settings, config, weights, tokenizer, options, engine] = await Promise.all([
      file("web.json").then(json),
      file("config.json"),
      file("model.safetensors"),
      file("tokenizer.json").then(json),
      file("tokenizer_config.json").then(json),
      Engine.start(modules ?? MODULES.map((name) => new URL(name, import.meta.url))),
    ]);
    await verify(weights, json(config).quantization_config.checksums);
    engine.load(config, weights, isa);
    return new Model(engine, settings, new Tokenizer(tokenizer, options));
  } catch (error) {
    throw error instanceof TrituneError ? error : new TrituneError(`${base}: cannot be loaded (${error.message})`);
  }
}

/** A model that reads texts; `load` makes it. */
export class Model {
  constructor(engine, settings, tokenizer) {
    const added = Array.from(tokenizer.get_added_tokens_decoder().values(), ({ content, id }) => [content, id]);
    Object.assign(this, { engine, settings, tokenizer, added: new Map(added) });
  }

  /** The instruction set in use. */
  get isa() {
    return this.engine.isa;
  }

  /** Names of the labels in id order; empty if the model gives a score or embeddings. */
  get labels() {
    return this.settings.labels;
  }

  /**
   * What a text classifier says of every text, under the names and with the digits of `tritune predict`.
   *
   * @param {string[]} texts
   * @param {string[]} [pairs] the second text of each, for models of pairs.
   * @returns {{prediction: string | string[] | number, probabilities?: Object<string, number>}[]}
   * @throws {TrituneError} the model gives embeddings, or something is not text.
   */
  classify(texts, pairs) {
    if (this.settings.kind !== "text-classification") {
      throw new TrituneError(`the model is for ${this.settings.kind}; use encode`);
    }
    return this.tokens(texts, pairs).map((tokens) => this.answer(this.engine.run(tokens).answers));
  }

  /**
   * Embeddings of texts, pooled and scaled as the model's sentence-transformers files say.
   *
   * @param {string[]} texts
   * @returns {Float32Array[]}
   * @throws {TrituneError} something is not text.
   */
  encode(texts) {
    const { pooling, normalize } = this.settings;
    return this.tokens(texts).map((tokens) => {
      const { hidden } = this.engine.run(tokens, true);
      const width = this.engine.shape.hiddenSize;
      const vector = new Float32Array(pooling.length * width);
      pooling.forEach((mode, place) => pool(mode, hidden, width, vector.subarray(place * width, (place + 1) * width)));
      return normalize ? normalized(vector) : vector;
    });
  }

  /** Token ids and types of texts or pairs, truncated as tritune does. */
  tokens(texts, pairs) {
    if (!Array.isArray(texts) || (pairs !== undefined && pairs?.length !== texts.length)) {
      throw new TrituneError("texts must be an array of texts, and pairs, where there are any, as many");
    }
    return texts.map((text, row) => {
      const both = pairs === undefined ? [text] : [text, pairs[row]];
      if (both.some((one) => typeof one !== "string")) throw new TrituneError(`texts[${row}] is not text`);
      const found = tokensOf(this, both);
      if (!found.ids.length) throw new TrituneError(`texts[${row}]: has no tokens; drop it`);
      return found;
    });
  }

  answer(logits) {
    if (!logits.every(Number.isFinite)) throw new TrituneError("the model gives NaN or infinite values");
    const { labels, multi_label: multiLabel } = this.settings;
    if (!labels.length) return { prediction: logits[0] };
    const shares = multiLabel ? Array.from(logits, sigmoid) : softmax(logits);
    const likely = labels.filter((_, index) => logits[index] > 0);
    return {
      prediction: multiLabel ? likely : labels[logits.indexOf(Math.max(...logits))],
      probabilities: Object.fromEntries(labels.map((label, index) => [label, Math.round(shares[index] * 1e6) / 1e6])),
    };
  }
}

/** The engine with one model. */
class Engine {
  static async start(modules) {
    for (const address of modules) {
      const bytes = await bytesOf(address);
      if (!WebAssembly.validate(bytes)) continue;
      const engine = new Engine();
      const fail = (at, size) => {
        throw new TrituneError(text(engine.view(Uint8Array, at, size)));
      };
      // What a C library would write with; the engine writes nothing.
      const wasi = { fd_close: () => 8, fd_seek: () => 8, fd_write: () => 8 };
      const { instance } = await WebAssembly.instantiate(bytes, { tritune: { fail }, wasi_snapshot_preview1: wasi });
      engine.exports = instance.exports;
      engine.exports._initialize();
      return engine;
    }
    throw new TrituneError("this browser has no WebAssembly with SIMD; a newer one is needed");
  }

  /** A view of the engine's memory, which moves when it grows: take it anew after every call. */
  view(Type, at, length) {
    return new Type(this.exports.memory.buffer, at, length);
  }

  /** Memory for so many bytes, to be freed. */
  reserve(bytes) {
    const at = this.exports.malloc(Math.max(bytes, 1));
    if (!at) throw new TrituneError("not enough memory");
    return at;
  }

  /** A copy of an array in the engine's memory; its address. */
  copy(array) {
    const at = this.reserve(array.byteLength);
    this.view(Uint8Array, at, array.byteLength).set(new Uint8Array(array.buffer, array.byteOffset, array.byteLength));
    return at;
  }

  /** Call a function of the engine. An error leaves it from anywhere, so its stack is put back. */
  call(name, ...values) {
    const stack = this.exports.__stack_pointer;
    const top = stack.value;
    try {
      return this.exports[name](...values);
    } catch (error) {
      stack.value = top;
      throw error instanceof TrituneError ? error : new TrituneError(`the engine stopped (${error.message})`);
    }
  }

  word(at) {
    const memory = this.view(Uint8Array, at);
    return text(memory.subarray(0, memory.indexOf(0)));
  }

  get isas() {
    return this.word(this.exports.tritune_isas()).split(" ");
  }

  /** The model's weights stay where they are copied to: word embeddings are read from there. */
  load(config, weights, isa) {
    const named = isa === undefined ? 0 : this.copy(new TextEncoder().encode(`${isa}\0`));
    const configAt = this.copy(config);
    const weightsAt = this.copy(weights);
    this.model = this.call("tritune_load", configAt, config.length, weightsAt, weights.length, named, 0, 0);
    const shapeAt = this.reserve(56);
    this.exports.tritune_describe(shapeAt, this.model);
    const [hiddenSize, outputs] = Array.from(this.view(BigInt64Array, shapeAt, 7), Number);
    this.shape = { hiddenSize, outputs };
    this.isa = this.word(this.exports.tritune_isa(this.model));
    [named, configAt, shapeAt].forEach((at) => this.exports.free(at));
  }

  /** One sequence: its answers, or its hidden states, (tokens, hidden size). */
  run({ ids, types }, wantsHidden = false) {
    const size = wantsHidden ? ids.length * this.shape.hiddenSize : this.shape.outputs;
    const given = [Int32Array.from(ids), types && Int32Array.from(types), BigInt64Array.of(0n, BigInt(ids.length))];
    const [idsAt, typesAt, offsetsAt] = given.map((array) => (array ? this.copy(array) : 0));
    const outputAt = this.reserve(4 * size);
    const outputs = wantsHidden ? [outputAt, 0] : [0, outputAt];
    try {
      this.call("tritune_run", this.model, idsAt, typesAt, 0, offsetsAt, 1n, 1, ...outputs, 0, 0);
      const output = this.view(Float32Array, outputAt, size).slice();
      return wantsHidden ? { hidden: output } : { answers: output };
    } finally {
      [idsAt, typesAt, offsetsAt, outputAt].forEach((at) => this.exports.free(at));
    }
  }
}

/** Ids and types of a text or a pair, with at most `max_length` tokens; special tokens are never cut off. */
function tokensOf({ tokenizer, added, settings }, texts) {
  const parts = texts.map((one) => tokenizer.tokenize(one, { add_special_tokens: false }));
  // With the special tokens, as its file says; the tokenizer's own `encode` cannot truncate.
  const together = ([first, second = null]) =>
    tokenizer.post_processor?.(first, second, true) ?? { tokens: [first, second ?? []].flat() };
  const special = together(parts.map(() => [])).tokens.length;
  const kept = lengthsWithin(parts.map((part) => part.length), settings.max_length - special);
  const cut = (part, length) => (settings.truncation_side === "left" ? part.slice(part.length - length) : part.slice(0, length));
  const { tokens, token_type_ids: types } = together(parts.map((part, which) => cut(part, kept[which])));
  const ids = tokens.map((token) => added.get(token) ?? tokenizer.token_to_id(token) ?? tokenizer.model.unk_token_id);
  return { ids, types: settings.has_types ? (types ?? ids.map(() => 0)) : null };
}

/** Lengths of one or two texts that together have at most `room` tokens; the longer one is cut first. */
export function lengthsWithin(lengths, room) {
  if (room < 0) throw new TrituneError("max_length leaves no room for text beside the special tokens");
  if (lengths.length === 1) return [Math.min(lengths[0], room)];
  const total = lengths[0] + lengths[1];
  if (total <= room) return lengths;
  const isSwapped = lengths[0] > lengths[1];
  const shorter = Math.min(...lengths);
  const half = Math.floor(room / 2);
  const kept = shorter > half ? [half, room - half] : [shorter, room - shorter];
  return isSwapped ? kept.reverse() : kept;
}

/** States of tokens to one vector, by the names of sentence-transformers. */
function pool(mode, states, width, out) {
  const count = states.length / width;
  const state = (token) => states.subarray(token * width, (token + 1) * width);
  if (mode === "cls" || mode === "lasttoken") return out.set(state(mode === "cls" ? 0 : count - 1));
  if (mode === "max") out.fill(-Infinity);
  for (let token = 0; token < count; token += 1) {
    const weight = mode === "weightedmean" ? token + 1 : 1;
    state(token).forEach((value, at) => {
      out[at] = mode === "max" ? Math.max(out[at], value) : out[at] + weight * value;
    });
  }
  const divisors = { mean: count, mean_sqrt_len_tokens: Math.sqrt(count), weightedmean: (count * (count + 1)) / 2 };
  const divisor = divisors[mode] ?? 1;
  out.forEach((value, at) => (out[at] = value / divisor));
}

function normalized(vector) {
  const length = Math.max(Math.sqrt(vector.reduce((sum, value) => sum + value * value, 0)), 1e-12);
  return vector.map((value) => value / length);
}

const sigmoid = (x) => 1 / (1 + Math.exp(-x));

function softmax(logits) {
  const largest = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp(logit - largest));
  const sum = powers.reduce((total, power) => total + power);
  return powers.map((power) => power / sum);
}

/** Check that the tensors of a safetensors file are those that were written, where the page may compute SHA-256. */
async function verify(weights, checksums) {
  const digests = globalThis.crypto?.subtle;
  if (!digests) return; // pages that are not served over https have none
  const begin = 8 + Number(new DataView(weights.buffer, weights.byteOffset).getBigUint64(0, true));
  const entries = Object.entries(JSON.parse(text(weights.subarray(8, begin)))).filter(([name]) => name !== "__metadata__");
  const names = { U8: "torch.uint8", F32: "torch.float32", I8: "torch.int8", F16: "torch.float16", BF16: "torch.bfloat16",
    F64: "torch.float64", I64: "torch.int64", I32: "torch.int32", I16: "torch.int16", BOOL: "torch.bool" };
  for (const [name, { dtype, shape, data_offsets: [first, last] }] of entries) {
    // As Python writes a tuple.
    const title = `${names[dtype]} (${shape.join(", ")}${shape.length === 1 ? "," : ""})`;
    const content = new Uint8Array(title.length + last - first);
    content.set(new TextEncoder().encode(title));
    content.set(weights.subarray(begin + first, begin + last), title.length);
    const digest = new Uint8Array(await digests.digest("SHA-256", content)).slice(0, 16);
    const found = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
    if (found !== checksums[name]) throw new TrituneError(`model.safetensors: ${name} is damaged; download it again`);
  }
}

async function bytesOf(address) {
  const url = new URL(address, globalThis.document?.baseURI ?? currentFolder());
  if (url.protocol === "file:") return (await import("node:fs/promises")).readFile(url).then((read) => new Uint8Array(read));
  const answer = await fetch(url);
  if (!answer.ok) throw new TrituneError(`${url}: ${answer.status} ${answer.statusText}`);
  return new Uint8Array(await answer.arrayBuffer());
}

const currentFolder = () => `file://${encodeURI(globalThis.process?.cwd?.() ?? "").replace(/[?#]/g, encodeURIComponent)}/`;
const text = (bytes) => new TextDecoder().decode(bytes);
const json = (bytes) => JSON.parse(text(bytes));
