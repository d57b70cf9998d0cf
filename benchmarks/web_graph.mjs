// What `web_graph.py` runs in Node and in a page: how long onnxruntime-web takes to load ONNX files and to run them, all
// in turns in one process. `read(name)` gives the bytes of a file of the folder that is measured.

const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];

function inputs(ort, session, length) {
  const values = {
    input_ids: (index) => BigInt(1000 + 37 * index),
    attention_mask: () => 1n,
    token_type_ids: () => 0n,
  };
  const tensor = (name) => new ort.Tensor("int64", BigInt64Array.from({ length }, (_, i) => values[name](i)), [1, length]);
  return Object.fromEntries(session.inputNames.map((name) => [name, tensor(name)]));
}

async function timed(action) {
  const start = performance.now();
  const result = await action();
  return [performance.now() - start, result];
}

/** Milliseconds of the first session of a file, after the runtime itself has been started. */
export async function load(ort, read, { file }) {
  ort.env.wasm.numThreads = 1;
  await ort.InferenceSession.create(await read("nothing.onnx"));
  const bytes = await read(`${file}.onnx`);
  const [load_ms] = await timed(() => ort.InferenceSession.create(bytes, { logSeverityLevel: 3 }));
  return [{ file, load_ms }];
}

/** Median milliseconds of `turns` runs of each file and length. */
export async function run(ort, read, { files, lengths, turns }) {
  ort.env.wasm.numThreads = 1;
  const sessions = {};
  for (const file of files) {
    sessions[file] = await ort.InferenceSession.create(await read(`${file}.onnx`), { logSeverityLevel: 3 });
  }
  const rows = [];
  for (const length of lengths) {
    const times = Object.fromEntries(files.map((file) => [file, []]));
    // The first quarter is for the engine that compiles: it makes its fast code while the code runs.
    for (let turn = -Math.ceil(turns / 4); turn < turns; turn++) {
      for (const file of files) {
        const feeds = inputs(ort, sessions[file], length);
        const [ms] = await timed(() => sessions[file].run(feeds));
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
  const [modules, folder, what, options] = process.argv.slice(2);
  const ort = createRequire(`${modules}/`)("onnxruntime-web");
  const rows = await { load, run }[what](ort, (name) => readFileSync(`${folder}/${name}`), JSON.parse(options));
  console.log(JSON.stringify(rows));
}
