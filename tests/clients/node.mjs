// node node.mjs ASKED MODELS: the answers as JSON.
import { readFileSync } from "node:fs";
import * as transformers from "@huggingface/transformers";
import * as ort from "onnxruntime-web";
import { answers } from "./answers.mjs";

const [file, models] = process.argv.slice(2);
const asked = JSON.parse(readFileSync(file, "utf-8"));
asked.onnxruntime.file = readFileSync(`${models}/${asked.onnxruntime.file}`);
transformers.env.allowRemoteModels = false;
transformers.env.localModelPath = models;
console.log(JSON.stringify(await answers(transformers, ort, asked)));
