// What transformers.js and onnxruntime-web answer, in Node and in a browser alike.

/** Answers to `asked`, see tests/test_clients.py; the models lie where `transformers.env` says, in the layout for it. */
export async function answers(transformers, ort, asked) {
  const { AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline } = transformers;
  const { texts, pairs, questions } = asked;
  const cut = { padding: true, truncation: true };

  const tokenizer = await AutoTokenizer.from_pretrained("sentences");
  const encoder = await AutoModel.from_pretrained("sentences");
  const { sentence_embedding } = await encoder(tokenizer(texts, cut));
  const extract = await pipeline("feature-extraction", "sentences");

  const reads = await AutoTokenizer.from_pretrained("pairs");
  const scores = await AutoModelForSequenceClassification.from_pretrained("pairs");
  const both = reads(pairs.map(([first]) => first), { ...cut, text_pair: pairs.map(([, second]) => second) });

  const classify = async (name) => (await pipeline("text-classification", name))(texts, { top_k: 3 });
  const tag = await pipeline("token-classification", "tags");
  const answer = await pipeline("question-answering", "questions");
  const found = [];
  for (const [question, context] of questions) found.push(await answer(question, context));
  return {
    embeddings: sentence_embedding.tolist(),
    pooled: (await extract(texts, { pooling: "mean", normalize: true })).tolist(),
    classes: await classify("classes"),
    many_labels: await classify("many_labels"),
    pairs: (await scores(both)).logits.tolist(),
    tags: await tag(texts, { ignore_labels: [] }),
    questions: found,
    onnxruntime: await run(ort, asked.onnxruntime),
  };
}

/** The first output of an ONNX file, given as a path, a URL or bytes, for a batch of whole numbers. */
async function run(ort, { file, batch }) {
  const session = await ort.InferenceSession.create(file, { executionProviders: ["wasm"] });
  const feeds = {};
  for (const [name, rows] of Object.entries(batch)) {
    const values = BigInt64Array.from(rows.flat().map(BigInt));
    feeds[name] = new ort.Tensor("int64", values, [rows.length, rows[0].length]);
  }
  const output = (await session.run(feeds))[session.outputNames[0]];
  return { dims: [...output.dims], values: [...output.data] };
}
