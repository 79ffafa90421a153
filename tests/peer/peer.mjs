// Tartlet beside llama.cpp: the same model file, the same machine, in turn, so that a slow minute meets both.
//
// usage: node peer.mjs TARTLET MODULES MODEL [THREADS]
//
// A round is `tartlet bench` and then llama.mjs, each in a process of its own. Printed are the medians over all rounds
// and their ratio. llama.cpp's threads wait by spinning, and node has a thread too: where that costs more than a thread
// brings, one thread fewer is faster, so both are tried and the better counts. Where `llama-bench` and
// `llama-batched-bench` are installed, what they say follows.
import { spawnSync } from "node:child_process";
import { availableParallelism } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const [tartlet, modules, model, threads = String(availableParallelism())] = process.argv.slice(2);
const ROUNDS = 5;
const here = dirname(fileURLToPath(import.meta.url));
const FIGURES = [
    { name: "decode", ours: "decode.64", what: "decode behind 64 tokens" },
    { name: "prefill", ours: "prefill.512", what: "prefill of 512 tokens" },
];

function fail(sentence) {
    if (process.stderr.isTTY) process.stderr.write("\r\x1b[K");
    console.error(sentence);
    process.exit(1);
}

// What a tool has said, or why it failed. What it says about its progress stays off.
function said(program, args) {
    const ended = spawnSync(program, args, { encoding: "utf8", maxBuffer: 64 << 20 });
    if (ended.error) return { missing: ended.error.code === "ENOENT", why: ended.error.message };
    if (ended.status === 0) return { text: ended.stdout, aside: ended.stderr };
    // Of a stack trace, the line that names the error.
    const lines = ended.stderr.trim().split("\n");
    const why = lines.find((line) => /^\w*Error\b/.test(line)) ?? lines.at(-1);
    return { why: why || `it ended with ${ended.signal ?? `status ${ended.status}`}` };
}

function parsed(text) {
    try {
        return JSON.parse(text);
    } catch {
        return undefined;
    }
}

// The one JSON object that `what` prints.
function run(what, program, args) {
    const { text, why } = said(program, args);
    if (why !== undefined) fail(`${what} failed: ${why}`);
    return parsed(text) ?? fail(`${what} did not print one JSON object.`);
}

function median(values) {
    const sorted = [...values].sort((a, b) => a - b);
    const middle = Math.floor(sorted.length / 2);
    return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

if (!model) fail("usage: node peer.mjs TARTLET MODULES MODEL [THREADS]");
const only = FIGURES.flatMap(({ ours }) => ["--only", ours]);
const ours = { decode: [], prefill: [] };
const theirs = { decode: [], prefill: [] };
const counts = Number(threads) > 1 ? [Number(threads), Number(threads) - 1] : [1];
let report, peer;
for (let round = 1; round <= ROUNDS; round += 1) {
    if (process.stderr.isTTY) process.stderr.write(`\rround ${round} of ${ROUNDS} `);
    report = run("tartlet bench", tartlet, ["bench", "--json", "--model", model, "--threads", threads, ...only]);
    const peers = counts.map((count) => run("llama.cpp by node-llama-cpp", process.execPath, [join(here, "llama.mjs"), modules, model, String(count)]));
    peer = peers[0];
    for (const { name, ours: figure } of FIGURES) {
        const found = report.measures.find((measure) => measure.name === figure);
        if (!found) fail(`tartlet bench did not measure ${figure}. ${report.notes.join(" ")}`);
        ours[name].push(found.median);
        theirs[name].push(Math.max(...peers.map((one) => median(one[name]))));
    }
}
if (process.stderr.isTTY) process.stderr.write("\r\x1b[K");

console.log(`${report.machine.processor}, ${report.machine.cores} cores, ${threads} threads, ${report.date}`);
console.log(`${report.model.name}; ${report.model.description}`);
console.log(`ours: tartlet ${report.version}, ${report.model.device}`);
console.log(`theirs: llama.cpp ${peer.llamaCpp} by node-llama-cpp ${peer.version}, the better of ${counts.join(" and ")} threads; ${peer.system}`);
console.log(
    "Both read 512 tokens and give the one after them, and decode 16 tokens one by one behind 64; ours is the backend alone,\n" +
        "without server and guest program, theirs goes through the binding's JavaScript, whose cost per token is in its figure.",
);
console.log(`medians of ${ROUNDS} rounds in turn, tokens/s`);
for (const { name, what } of FIGURES) {
    const [a, b] = [median(ours[name]), median(theirs[name])];
    const rounds = ours[name].map((value, round) => value / theirs[name][round]);
    const spread = `${Math.min(...rounds).toFixed(2)} … ${Math.max(...rounds).toFixed(2)} by round`;
    console.log(`  ${what.padEnd(28)} ours ${a.toFixed(1).padStart(8)}  theirs ${b.toFixed(1).padStart(8)}  ratio ${(a / b).toFixed(2)} (${spread})`);
}

// Their own instruments, where a person has installed them: no binding between, and many sequences too. Neither has had
// `--version` at all times, so the build is taken from what they print.
function beside(program, args, show) {
    const { text, aside, missing, why } = said(program, args);
    if (missing) console.log(`${program} is not installed: left out`);
    else if (why !== undefined) console.log(`${program} is left out, for it failed: ${why}`);
    else show(text, aside);
}

beside("llama-bench", ["-m", model, "-t", threads, "-ngl", "0", "-p", "512", "-n", "16", "-r", "5", "-o", "json"], (text) => {
    const tests = parsed(text);
    if (!Array.isArray(tests) || tests.length === 0) return console.log("llama-bench is left out, for it did not print its tests as JSON");
    console.log(`\nllama-bench, build ${tests[0].build_number} (${tests[0].build_commit}), tokens/s`);
    for (const test of tests) {
        const what = test.n_gen > 0 ? `decode of ${test.n_gen} tokens from an empty context` : `prefill of ${test.n_prompt} tokens`;
        console.log(`  ${what.padEnd(44)} ${Number(test.avg_ts).toFixed(1).padStart(8)} ± ${Number(test.stddev_ts).toFixed(1)}`);
    }
});
beside(
    "llama-batched-bench",
    ["-m", model, "-t", threads, "-ngl", "0", "-c", "8192", "-npp", "64", "-ntg", "16", "-npl", "1,2,4,8,16,32"],
    (text, aside) => {
        const build = /build\W+\d+ \(\w+\)/.exec(aside + text)?.[0];
        console.log(`\nllama-batched-bench, ${build ?? "which does not say its build"}`);
        console.log(text.trim());
    },
);
