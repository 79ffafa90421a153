// llama.cpp through its prebuilt npm binding: prefill and decode of one sequence, as one JSON object on standard output.
//
// usage: node llama.mjs MODULES MODEL THREADS
//
// MODULES is the folder `node_modules`. Nothing is downloaded or compiled here: where the prebuilt binary does not fit
// this machine, that is an error.
import { readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";

const [modules, modelPath, threadsText] = process.argv.slice(2);
const threads = Number(threadsText);
// What `tartlet bench` measures as prefill.512 and decode.64: the same counts at the same slots.
const PROMPT = 512; // tokens of the prefill, the token after them included
const CONTEXT = 64; // slots in use before the decoded tokens
const TOKENS = 16; // decoded tokens of one sample
const SAMPLES = 5;

const folder = resolve(modules, "node-llama-cpp");
const { version } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
const { getLlama } = await import(pathToFileURL(join(folder, "dist/index.js")));
const llama = await getLlama({ gpu: false, build: "never", skipDownload: true, progressLogs: false, maxThreads: threads });
const model = await llama.loadModel({ modelPath });
const context = await model.createContext({ contextSize: 1024, batchSize: PROMPT, threads });
const sequence = context.getSequence();

// The same tokens as `tartlet bench` feeds.
const vocab = model.fileInfo.metadata.tokenizer.ggml.tokens.length;
const prompt = (length) => Array.from({ length }, (_, slot) => Number((BigInt(slot * 31) * 2654435761n % 4294967296n) % BigInt(vocab)));
const seconds = (since) => Number(process.hrtime.bigint() - since) / 1e9;

async function prefill() {
    await sequence.clearHistory();
    const since = process.hrtime.bigint();
    for await (const _ of sequence.evaluate(prompt(PROMPT), { temperature: 0, yieldEogToken: true })) return PROMPT / seconds(since);
    throw new Error("the model said nothing after the prompt");
}

async function decode() {
    await sequence.clearHistory();
    let made = -1; // the first token comes with the prompt
    let since;
    for await (const _ of sequence.evaluate(prompt(CONTEXT), { temperature: 0, yieldEogToken: true })) {
        since ??= process.hrtime.bigint();
        made += 1;
        if (made === TOKENS) break;
    }
    if (made < TOKENS) throw new Error(`the model stopped after ${made} tokens`);
    return made / seconds(since);
}

const samples = { prefill: [], decode: [] };
await prefill();
await decode();
for (let sample = 0; sample < SAMPLES; sample += 1) {
    samples.prefill.push(await prefill());
    samples.decode.push(await decode());
}
console.log(JSON.stringify({ version, llamaCpp: llama.llamaCppRelease.release, threads: context.currentThreads, system: llama.systemInfo, ...samples }));
process.exit(0);
