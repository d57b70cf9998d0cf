// What `web.py` runs in Node and in a page: how long onnxruntime-web takes to load ONNX files and to run them, and
// tritune's engine to run the packed model, all in turns in one process. `read(name)` gives the bytes of a file of the
// folder that is measured, `address(name)` where it lies.

const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];

function inputs(ort, session, length) {
  const values = {
    input_ids: (index) => BigInt(id(index)),
    attention_mask: () => 1n,
    token_type_ids: () => 0n,
  };
  const tensor = (name) => new ort.Tensor("int64", BigInt64Array.from({ length }, (_, i) => values[name](i)), [1, length]);
  return Object.fromEntries(session.inputNames.map((name) => [name, tensor(name)]));
}

const id = (index) => 1000 + 37 * index;

/** What runs one row of so many tokens: of an ONNX file, or of the engine. */
async function runner(ort, { read, address }, file) {
  if (file === "engine") {
    const [{ Tokenizer }, { load }] = await Promise.all(
      ["tokenizers.mjs", "tritune.mjs"].map((name) => import(address(`site/tritune/${name}`))),
    );
    const { engine } = await load(address("site/model"), { Tokenizer });
    return (length) => {
      const row = { ids: Array.from({ length }, (_, index) => id(index)), types: new Array(length).fill(0) };
      return () => engine.run(row);
    };
  }
  const session = await ort.InferenceSession.create(await read(`${file}.onnx`), { logSeverityLevel: 3 });
  return (length) => {
    const feeds = inputs(ort, session, length);
    return () => session.run(feeds);
  };
}

async function timed(action) {
  const start = performance.now();
  const result = await action();
  return [performance.now() - start, result];
}

/** Milliseconds until a file can be run, from disk or from the local server; onnxruntime-web has been started before. */
export async function load(ort, folder, { file }) {
  ort.env.wasm.numThreads = 1;
  await ort.InferenceSession.create(await folder.read("nothing.onnx"));
  const [load_ms] = await timed(() => runner(ort, folder, file));
  return [{ file, load_ms }];
}

/** Median milliseconds of `turns` runs of each file and length. */
export async function run(ort, folder, { files, lengths, turns }) {
  ort.env.wasm.numThreads = 1;
  const runners = {};
  for (const file of files) runners[file] = await runner(ort, folder, file);
  const rows = [];
  for (const length of lengths) {
    const times = Object.fromEntries(files.map((file) => [file, []]));
    // The first quarter is for the engine that compiles: it makes its fast code while the code runs.
    for (let turn = -Math.ceil(turns / 4); turn < turns; turn++) {
      for (const file of files) {
        const [ms] = await timed(runners[file](length));
        if (turn >= 0) times[file].push(ms);
      }
    }
    rows.push(...files.map((file) => ({ file, length, median_ms: median(times[file]) })));
  }
  return rows;
}

if (typeof process !== "undefined" && process.versions?.node) {
  const { readFileSync } = await import("node:fs");
  const { createRequire } = await import("node:module");
  const { pathToFileURL } = await import("node:url");
  const [modules, folder, what, options] = process.argv.slice(2);
  const ort = createRequire(`${modules}/`)("onnxruntime-web");
  const here = { read: (name) => readFileSync(`${folder}/${name}`), address: (name) => pathToFileURL(`${folder}/${name}`) };
  const rows = await { load, run }[what](ort, here, JSON.parse(options));
  console.log(JSON.stringify(rows));
}
